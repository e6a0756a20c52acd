// SPDX-License-Identifier: Apache-2.0
#include "cuda/make_kernels.h"

namespace rnnkern::cuda {

const ComputeKernels<double>& float64_kernels() {
  static const auto kernels = make_kernels<Exact<double>>();
  return kernels;
}

}  // namespace rnnkern::cuda
