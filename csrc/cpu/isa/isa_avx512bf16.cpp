// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cstring>

#include "cpu/gemm/pair_product.h"
#include "cpu/isa/lane_avx512.h"
#include "cpu/isa/make_backend.h"

#ifndef __AVX512BF16__
#error "isa_avx512bf16.cpp needs AVX512-BF16 flags"
#endif

namespace rnnkern {

const Backend& avx512_backend();  // isa_avx512.cpp

struct Avx512Bf16 {
  using V = Avx512Float<Avx512Bf16>;
  using Pairs = __m512i;

  static Pairs load(const Bfloat16* p) { return _mm512_loadu_si512(p); }
  static Pairs broadcast(const Bfloat16* p) {
    std::int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static V dot(V sum, Pairs a, Pairs b) {
    return V(_mm512_dpbf16_ps(sum.v, std::bit_cast<__m512bh>(a), std::bit_cast<__m512bh>(b)));
  }
  static void store(Bfloat16* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        std::bit_cast<__m256i>(_mm512_cvtneps_pbh(v.v)));
  }
};

const Backend& avx512bf16_backend() {
  static const Backend backend = [] {
    Backend b = avx512_backend();
    b.name = "avx512bf16";
    static const auto loops =
        make_loops<PairProduct<Avx512Bf16::V, Avx512Bf16>>(b.for_float->exact.equations);
    b.for_bfloat16 = &loops;
    b.bfloat16_product = "AVX512-BF16 (vdpbf16ps)";
    return b;
  }();
  return backend;
}

}  // namespace rnnkern
