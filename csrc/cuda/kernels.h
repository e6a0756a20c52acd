// SPDX-License-Identifier: Apache-2.0
// The kernels as functions of the host: all that the engine knows of the device's code.
#pragma once

#include <vector>

#include "core/cells.h"
#include "cuda/problem.h"

namespace rnnkern::cuda {

struct Grid {
  void* stream;  // a cudaStream_t
  Index blocks;
  int shared_bytes = 0;
  bool together = false;  // all blocks are there at once, so that they may wait for each other
};

// The persistent kernels of every cell.
template <class T>
struct TimeLoops {
  void (*forward[AllCells::size])(const Grid&, const RecurrentProblem<ForwardStrand<T>>&);
  void (*backward[AllCells::size])(const Grid&, const RecurrentProblem<BackwardStrand<T>>&);
};

// Those that are built on one product.
template <class T>
struct RecurrentKernels {
  ProductFacts product;
  TimeLoops<T> own,
      given;  // by the functions that equations apply: the cells', and a layer's options

  const TimeLoops<T>& loops(bool given_functions) const { return given_functions ? given : own; }
};

// What depends on how products are computed; each defined in csrc/cuda/<compute>.cu.
template <class T>
struct ComputeKernels {
  RecurrentKernels<T> matrix, vector;  // for many rows of the batch, and for few
  void (*pack)(void* stream, const PackArguments<T>&);
  void (*matmul)(void* stream, const MatmulArguments<T>&);
};
const ComputeKernels<float>& float32_kernels();
const ComputeKernels<float>& tfloat32_kernels();
const ComputeKernels<float>& bfloat16_kernels();
const ComputeKernels<float>& float16_kernels();
const ComputeKernels<double>& float64_kernels();

// What does not: csrc/cuda/common.cu.
template <class T>
struct StorageKernels {
  void (*gather)(void* stream, const GatherArguments<T>&);
  void (*zero_tail)(void* stream, const ZeroTailArguments<T>&);
  void (*column_sums)(void* stream, const ColumnSumsArguments<T>&);
};
template <class T>
const StorageKernels<T>& storage_kernels();

void fill_schedule(void* stream, const SchedulePart&);
void expand_schedule(void* stream, const DeviceSchedule&);
void zero(void* stream, const ZeroArguments&);

// Of the calling thread's device, and of all.
const DeviceFacts& current_device();
std::vector<DeviceFacts> all_devices();

}  // namespace rnnkern::cuda
