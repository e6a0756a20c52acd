// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/lane_avx512.h"
#include "cpu/isa/make_backend.h"

namespace rnnkern {

const Backend& avx512_backend() {
  static constexpr Backend backend =
      make_backend<Avx512Float<struct Avx512>, Avx512Double<struct Avx512>>("avx512");
  return backend;
}

}  // namespace rnnkern
