// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/lane_avx2.h"
#include "cpu/isa/make_backend.h"

namespace rnnkern {

const Backend& avx2_backend() {
  static constexpr Backend backend = make_backend<Avx2Float, Avx2Double, Avx2Int8>(
      "avx2", "int8 widened to int16 pairs (vpmaddwd)");
  return backend;
}

}  // namespace rnnkern
