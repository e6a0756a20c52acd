// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/make_backend.h"

namespace rnnkern {

const Backend& scalar_backend() {
  static constexpr Backend backend =
      make_backend<Scalar<float>, Scalar<double>, PlainInt8<Scalar<float>>>(
          "scalar", "whole numbers one by one");
  return backend;
}

}  // namespace rnnkern
