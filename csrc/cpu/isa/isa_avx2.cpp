// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/lane_avx2.h"
#include "cpu/isa/make_backend.h"

namespace rnnkern {

const Backend& avx2_backend() {
  static constexpr Backend backend = make_backend<Avx2Float, Avx2Double>("avx2");
  return backend;
}

}  // namespace rnnkern
