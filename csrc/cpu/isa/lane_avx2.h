// SPDX-License-Identifier: Apache-2.0
// AVX2 + FMA lanes: 8 floats or 4 doubles, 16 registers.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__)
#error "lane_avx2.h needs a file compiled with AVX2 and FMA flags"
#endif

#include <immintrin.h>

#include <cstring>

#include "core/lane.h"

namespace rnnkern {

struct Avx2Float {
  using value = float;
  static constexpr int size = 8;
  static constexpr int registers = 16;

  __m256 v;

  Avx2Float() = default;
  explicit Avx2Float(float s) : v(_mm256_set1_ps(s)) {}
  explicit Avx2Float(__m256 r) : v(r) {}

  static __m256i first(Index n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Avx2Float load(const float* p) { return Avx2Float(_mm256_loadu_ps(p)); }
  static void load_pair(const Bfloat16* p, Avx2Float& a, Avx2Float& b) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    a.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    b.v = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)));
  }
  static void store_pair(Bfloat16* p, Avx2Float a, Avx2Float b) {
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(a.v), 16);
    const __m256i high = _mm256_and_si256(_mm256_castps_si256(b.v), _mm256_set1_epi32(-65536));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_or_si256(low, high));
  }
  friend Avx2Float round_to_bfloat16(Avx2Float a) {
    // As the function of one float in core/lane.h.
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 changed =
        _mm256_blendv_ps(_mm256_castsi256_ps(nearest), _mm256_castsi256_ps(quiet),
                         _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    return Avx2Float(_mm256_and_ps(changed, _mm256_castsi256_ps(_mm256_set1_epi32(-65536))));
  }
  static Avx2Float load(const float* p, Index n) {
    return Avx2Float(_mm256_maskload_ps(p, first(n)));
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, Index n) const { _mm256_maskstore_ps(p, first(n), v); }

  friend Avx2Float operator+(Avx2Float a, Avx2Float b) {
    return Avx2Float(_mm256_add_ps(a.v, b.v));
  }
  friend Avx2Float operator-(Avx2Float a, Avx2Float b) {
    return Avx2Float(_mm256_sub_ps(a.v, b.v));
  }
  friend Avx2Float operator*(Avx2Float a, Avx2Float b) {
    return Avx2Float(_mm256_mul_ps(a.v, b.v));
  }
  friend Avx2Float operator/(Avx2Float a, Avx2Float b) {
    return Avx2Float(_mm256_div_ps(a.v, b.v));
  }
  friend Avx2Float sqrt(Avx2Float a) { return Avx2Float(_mm256_sqrt_ps(a.v)); }
  friend Avx2Float quotient(Avx2Float a, Avx2Float b) { return a / b; }
  friend Avx2Float fma(Avx2Float a, Avx2Float b, Avx2Float c) {
    return Avx2Float(_mm256_fmadd_ps(a.v, b.v, c.v));
  }
  friend Avx2Float min(Avx2Float a, Avx2Float b) { return Avx2Float(_mm256_min_ps(a.v, b.v)); }
  friend Avx2Float max(Avx2Float a, Avx2Float b) { return Avx2Float(_mm256_max_ps(a.v, b.v)); }
  friend Avx2Float abs(Avx2Float a) { return Avx2Float(_mm256_andnot_ps(sign_bit(), a.v)); }
  friend Avx2Float copy_sign(Avx2Float magnitude, Avx2Float sign) {
    return Avx2Float(
        _mm256_or_ps(_mm256_andnot_ps(sign_bit(), magnitude.v), _mm256_and_ps(sign_bit(), sign.v)));
  }
  friend void interleave(Avx2Float& a, Avx2Float& b) {
    const __m256 even = _mm256_unpacklo_ps(a.v, b.v), odd = _mm256_unpackhi_ps(a.v, b.v);
    a.v = _mm256_permute2f128_ps(even, odd, 0x20);
    b.v = _mm256_permute2f128_ps(even, odd, 0x31);
  }
  friend Avx2Float positive(Avx2Float x, Avx2Float v) {
    return Avx2Float(_mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ), v.v));
  }
  friend Avx2Float exp2_integer(Avx2Float n) {
    // The exponent field of 2^n is n + bias; of a NaN that is some number, and the caller keeps the NaN.
    const __m256i k = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return Avx2Float(_mm256_castsi256_ps(_mm256_slli_epi32(k, 23)));
  }

 private:
  static __m256 sign_bit() { return _mm256_set1_ps(-0.0f); }
};

// Of int8_product.h: products of int16 pairs, two of them at once an int32.
struct Avx2Int8 {
  using Operand = std::int16_t;
  using Sums = __m256i;
  using Columns = __m256i;
  static constexpr int kDeep = 2, kShift = 0;

  static Sums zero() { return _mm256_setzero_si256(); }
  static Columns load(const std::int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Columns broadcast(const Operand* p) {
    std::int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
  }
  static Sums add(Sums sum, Columns row, Columns column) {
    const Columns products = _mm256_madd_epi16(row, column);
    // Left to the compiler, additions of whole numbers are moved about until the sums no longer fit the
    // registers.
    asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
    return sum;
  }
  static Avx2Float values(Sums sum) { return Avx2Float(_mm256_cvtepi32_ps(sum)); }
  static void store(Operand* p, Avx2Float v) {
    const __m256i whole = _mm256_cvtps_epi32(v.v);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(p),
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
  }
};

struct Avx2Double {
  using value = double;
  static constexpr int size = 4;
  static constexpr int registers = 16;

  __m256d v;

  Avx2Double() = default;
  explicit Avx2Double(double s) : v(_mm256_set1_pd(s)) {}
  explicit Avx2Double(__m256d r) : v(r) {}

  static __m256i first(Index n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Avx2Double load(const double* p) { return Avx2Double(_mm256_loadu_pd(p)); }
  static Avx2Double load(const double* p, Index n) {
    return Avx2Double(_mm256_maskload_pd(p, first(n)));
  }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, Index n) const { _mm256_maskstore_pd(p, first(n), v); }

  friend Avx2Double operator+(Avx2Double a, Avx2Double b) {
    return Avx2Double(_mm256_add_pd(a.v, b.v));
  }
  friend Avx2Double operator-(Avx2Double a, Avx2Double b) {
    return Avx2Double(_mm256_sub_pd(a.v, b.v));
  }
  friend Avx2Double operator*(Avx2Double a, Avx2Double b) {
    return Avx2Double(_mm256_mul_pd(a.v, b.v));
  }
  friend Avx2Double operator/(Avx2Double a, Avx2Double b) {
    return Avx2Double(_mm256_div_pd(a.v, b.v));
  }
  friend Avx2Double sqrt(Avx2Double a) { return Avx2Double(_mm256_sqrt_pd(a.v)); }
  friend Avx2Double quotient(Avx2Double a, Avx2Double b) { return a / b; }
  friend Avx2Double fma(Avx2Double a, Avx2Double b, Avx2Double c) {
    return Avx2Double(_mm256_fmadd_pd(a.v, b.v, c.v));
  }
  friend Avx2Double min(Avx2Double a, Avx2Double b) { return Avx2Double(_mm256_min_pd(a.v, b.v)); }
  friend Avx2Double max(Avx2Double a, Avx2Double b) { return Avx2Double(_mm256_max_pd(a.v, b.v)); }
  friend Avx2Double abs(Avx2Double a) { return Avx2Double(_mm256_andnot_pd(sign_bit(), a.v)); }
  friend Avx2Double copy_sign(Avx2Double magnitude, Avx2Double sign) {
    return Avx2Double(
        _mm256_or_pd(_mm256_andnot_pd(sign_bit(), magnitude.v), _mm256_and_pd(sign_bit(), sign.v)));
  }
  friend void interleave(Avx2Double& a, Avx2Double& b) {
    const __m256d even = _mm256_unpacklo_pd(a.v, b.v), odd = _mm256_unpackhi_pd(a.v, b.v);
    a.v = _mm256_permute2f128_pd(even, odd, 0x20);
    b.v = _mm256_permute2f128_pd(even, odd, 0x31);
  }
  friend Avx2Double positive(Avx2Double x, Avx2Double v) {
    return Avx2Double(_mm256_and_pd(_mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_GT_OQ), v.v));
  }
  friend Avx2Double exp2_integer(Avx2Double n) {
    // Adding 2^52 + bias puts n + bias in the lowest bits; the shift moves it into the exponent.
    const __m256d biased = _mm256_add_pd(n.v, _mm256_set1_pd(4503599627370496.0 + 1023.0));
    return Avx2Double(_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(biased), 52)));
  }

 private:
  static __m256d sign_bit() { return _mm256_set1_pd(-0.0); }
};

}  // namespace rnnkern
