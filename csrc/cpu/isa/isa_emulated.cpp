// SPDX-License-Identifier: Apache-2.0
// The backends "emulated-avx512bf16" and "emulated-amx": the scalar one, with the products of the
// instruction sets that they are named for.
#include "cpu/gemm/tall_tiles.h"
#include "cpu/isa/emulated.h"
#include "cpu/isa/make_backend.h"

namespace rnnkern {

const Backend& scalar_backend();  // isa_scalar.cpp

const Backend& emulated_avx512bf16_backend() {
  static const Backend backend = [] {
    Backend b = scalar_backend();
    b.name = "emulated-avx512bf16";
    static constexpr auto loops =
        make_loops<PairProduct<EmulatedFloat, EmulatedDot>>(&equations_of<EmulatedFloat>);
    b.for_bfloat16 = &loops;
    b.bfloat16_product = "emulated vdpbf16ps";
    b.for_int8 = &int8_loops_of<EmulatedFloat, EmulatedVnni>;
    b.int8_product = "emulated vpdpbusd";
    return b;
  }();
  return backend;
}

const Backend& emulated_amx_backend() {
  static const Backend backend = [] {
    Backend b = emulated_avx512bf16_backend();
    b.name = "emulated-amx";
    b.bfloat16_product = "emulated tdpbf16ps; emulated vdpbf16ps for fewer than 16 rows";
    b.tall_tiles = &tall_tiles_of<EmulatedAmx>;
    return b;
  }();
  return backend;
}

}  // namespace rnnkern
