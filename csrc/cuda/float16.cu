// SPDX-License-Identifier: Apache-2.0
#include "cuda/make_kernels.h"

namespace rnnkern::cuda {

const ComputeKernels<float>& float16_kernels() {
  static const auto kernels = make_kernels<Float16>();
  return kernels;
}

}  // namespace rnnkern::cuda
