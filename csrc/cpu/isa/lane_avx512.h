// SPDX-License-Identifier: Apache-2.0
// AVX-512 lanes: 16 floats or 8 doubles, 32 registers. Isa is the file that they are compiled in:
// files with other flags must share no symbol.
#pragma once

#ifndef __AVX512F__
#error "lane_avx512.h needs a file compiled with AVX-512 flags"
#endif

#include <immintrin.h>

#include "core/lane.h"

namespace rnnkern {

template <class Isa>
struct Avx512Float {
  using value = float;
  static constexpr int size = 16;
  static constexpr int registers = 32;

  __m512 v;

  Avx512Float() = default;
  explicit Avx512Float(float s) : v(_mm512_set1_ps(s)) {}
  explicit Avx512Float(__m512 r) : v(r) {}

  static __mmask16 first(Index n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Avx512Float load(const float* p) { return Avx512Float(_mm512_loadu_ps(p)); }
  static void load_pair(const Bfloat16* p, Avx512Float& a, Avx512Float& b) {
    const __m512i both = _mm512_loadu_si512(p);
    a.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    b.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536)));
  }
  static void store_pair(Bfloat16* p, Avx512Float a, Avx512Float b) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(a.v), 16);
    const __m512i high = _mm512_and_si512(_mm512_castps_si512(b.v), _mm512_set1_epi32(-65536));
    _mm512_storeu_si512(p, _mm512_or_si512(low, high));
  }
  friend Avx512Float round_to_bfloat16(Avx512Float a) {
    // As the function of one float in core/lane.h.
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i nearest =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i changed = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x400000));
    return Avx512Float(_mm512_castsi512_ps(_mm512_and_si512(changed, _mm512_set1_epi32(-65536))));
  }
  static Avx512Float load(const float* p, Index n) {
    return Avx512Float(_mm512_maskz_loadu_ps(first(n), p));
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, Index n) const { _mm512_mask_storeu_ps(p, first(n), v); }

  friend Avx512Float operator+(Avx512Float a, Avx512Float b) {
    return Avx512Float(_mm512_add_ps(a.v, b.v));
  }
  friend Avx512Float operator-(Avx512Float a, Avx512Float b) {
    return Avx512Float(_mm512_sub_ps(a.v, b.v));
  }
  friend Avx512Float operator*(Avx512Float a, Avx512Float b) {
    return Avx512Float(_mm512_mul_ps(a.v, b.v));
  }
  friend Avx512Float operator/(Avx512Float a, Avx512Float b) {
    return Avx512Float(_mm512_div_ps(a.v, b.v));
  }
  friend Avx512Float sqrt(Avx512Float a) { return Avx512Float(_mm512_sqrt_ps(a.v)); }
  friend Avx512Float quotient(Avx512Float a, Avx512Float b) {
    // 1/b to 14 bits, one Newton step to about 28, and the quotient's own remainder put back.
    const __m512 coarse = _mm512_rcp14_ps(b.v);
    const __m512 error = _mm512_fnmadd_ps(b.v, coarse, _mm512_set1_ps(1.0f));
    const __m512 reciprocal = _mm512_fmadd_ps(coarse, error, coarse);
    const __m512 q = _mm512_mul_ps(a.v, reciprocal);
    return Avx512Float(_mm512_fmadd_ps(_mm512_fnmadd_ps(q, b.v, a.v), reciprocal, q));
  }
  friend Avx512Float fma(Avx512Float a, Avx512Float b, Avx512Float c) {
    return Avx512Float(_mm512_fmadd_ps(a.v, b.v, c.v));
  }
  friend Avx512Float min(Avx512Float a, Avx512Float b) {
    return Avx512Float(_mm512_min_ps(a.v, b.v));
  }
  friend Avx512Float max(Avx512Float a, Avx512Float b) {
    return Avx512Float(_mm512_max_ps(a.v, b.v));
  }
  friend Avx512Float abs(Avx512Float a) { return Avx512Float(_mm512_abs_ps(a.v)); }
  friend Avx512Float copy_sign(Avx512Float magnitude, Avx512Float sign) {
    // Bitwise select: the sign bit from sign, the rest from magnitude.
    const __m512i bit = _mm512_set1_epi32(std::int32_t{1} << 31);
    return Avx512Float(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        bit, _mm512_castps_si512(sign.v), _mm512_castps_si512(magnitude.v), 0xCA)));
  }
  friend void interleave(Avx512Float& a, Avx512Float& b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    const __m512 first = _mm512_permutex2var_ps(a.v, low, b.v);
    b.v = _mm512_permutex2var_ps(a.v, high, b.v);
    a.v = first;
  }
  friend Avx512Float positive(Avx512Float x, Avx512Float v) {
    return Avx512Float(
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), v.v));
  }
  friend Avx512Float exp2_integer(Avx512Float n) {
    return Avx512Float(_mm512_scalef_ps(_mm512_set1_ps(1), n.v));
  }
};

template <class Isa>
struct Avx512Double {
  using value = double;
  static constexpr int size = 8;
  static constexpr int registers = 32;

  __m512d v;

  Avx512Double() = default;
  explicit Avx512Double(double s) : v(_mm512_set1_pd(s)) {}
  explicit Avx512Double(__m512d r) : v(r) {}

  static __mmask8 first(Index n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static Avx512Double load(const double* p) { return Avx512Double(_mm512_loadu_pd(p)); }
  static Avx512Double load(const double* p, Index n) {
    return Avx512Double(_mm512_maskz_loadu_pd(first(n), p));
  }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, Index n) const { _mm512_mask_storeu_pd(p, first(n), v); }

  friend Avx512Double operator+(Avx512Double a, Avx512Double b) {
    return Avx512Double(_mm512_add_pd(a.v, b.v));
  }
  friend Avx512Double operator-(Avx512Double a, Avx512Double b) {
    return Avx512Double(_mm512_sub_pd(a.v, b.v));
  }
  friend Avx512Double operator*(Avx512Double a, Avx512Double b) {
    return Avx512Double(_mm512_mul_pd(a.v, b.v));
  }
  friend Avx512Double operator/(Avx512Double a, Avx512Double b) {
    return Avx512Double(_mm512_div_pd(a.v, b.v));
  }
  friend Avx512Double sqrt(Avx512Double a) { return Avx512Double(_mm512_sqrt_pd(a.v)); }
  friend Avx512Double quotient(Avx512Double a, Avx512Double b) { return a / b; }
  friend Avx512Double fma(Avx512Double a, Avx512Double b, Avx512Double c) {
    return Avx512Double(_mm512_fmadd_pd(a.v, b.v, c.v));
  }
  friend Avx512Double min(Avx512Double a, Avx512Double b) {
    return Avx512Double(_mm512_min_pd(a.v, b.v));
  }
  friend Avx512Double max(Avx512Double a, Avx512Double b) {
    return Avx512Double(_mm512_max_pd(a.v, b.v));
  }
  friend Avx512Double abs(Avx512Double a) { return Avx512Double(_mm512_abs_pd(a.v)); }
  friend Avx512Double copy_sign(Avx512Double magnitude, Avx512Double sign) {
    // Bitwise select: the sign bit from sign, the rest from magnitude.
    const __m512i bit = _mm512_set1_epi64(std::int64_t{1} << 63);
    return Avx512Double(_mm512_castsi512_pd(_mm512_ternarylogic_epi64(
        bit, _mm512_castpd_si512(sign.v), _mm512_castpd_si512(magnitude.v), 0xCA)));
  }
  friend void interleave(Avx512Double& a, Avx512Double& b) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    const __m512d first = _mm512_permutex2var_pd(a.v, low, b.v);
    b.v = _mm512_permutex2var_pd(a.v, high, b.v);
    a.v = first;
  }
  friend Avx512Double positive(Avx512Double x, Avx512Double v) {
    return Avx512Double(
        _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x.v, _mm512_setzero_pd(), _CMP_GT_OQ), v.v));
  }
  friend Avx512Double exp2_integer(Avx512Double n) {
    return Avx512Double(_mm512_scalef_pd(_mm512_set1_pd(1), n.v));
  }
};

}  // namespace rnnkern
