// SPDX-License-Identifier: Apache-2.0
#include "cuda/make_kernels.h"

namespace rnnkern::cuda {

const ComputeKernels<float>& tfloat32_kernels() {
  static const auto kernels = make_kernels<TensorFloat32>();
  return kernels;
}

}  // namespace rnnkern::cuda
