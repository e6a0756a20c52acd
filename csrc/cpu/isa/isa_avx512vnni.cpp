// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstring>

#include "cpu/isa/lane_avx512.h"
#include "cpu/isa/make_backend.h"

#ifndef __AVX512VNNI__
#error "isa_avx512vnni.cpp needs AVX512-VNNI flags"
#endif

namespace rnnkern {

const Backend& avx512_backend();  // isa_avx512.cpp

// Of int8_product.h: products of four bytes at once, of which those of A have no sign.
struct Avx512Vnni {
  using V = Avx512Float<Avx512Vnni>;
  using Operand = std::uint8_t;
  using Sums = __m512i;
  using Columns = __m512i;
  static constexpr int kDeep = 4, kShift = 128;

  static Sums load(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static Columns load(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  static Columns broadcast(const Operand* p) {
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static Sums add(Sums sum, Columns row, Columns column) {
    return _mm512_dpbusd_epi32(sum, row, column);
  }
  static V values(Sums sum) { return V(_mm512_cvtepi32_ps(sum)); }
  static void store(Operand* p, V v) {
    const __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(v.v), _mm512_set1_epi32(kShift));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(shifted));
  }
};

const Backend& avx512vnni_backend() {
  static const Backend backend = [] {
    Backend b = avx512_backend();
    b.name = "avx512vnni";
    static const auto loops =
        make_forward_loops<Int8Product<Avx512Vnni::V, Avx512Vnni>>(b.for_float->exact.equations);
    b.for_int8 = &loops;
    b.int8_product = "AVX512-VNNI (vpdpbusd)";
    return b;
  }();
  return backend;
}

}  // namespace rnnkern
