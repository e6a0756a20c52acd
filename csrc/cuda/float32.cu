// SPDX-License-Identifier: Apache-2.0
#include "cuda/make_kernels.h"

namespace rnnkern::cuda {

const ComputeKernels<float>& float32_kernels() {
  static const auto kernels = make_kernels<Exact<float>>();
  return kernels;
}

}  // namespace rnnkern::cuda
