// SPDX-License-Identifier: Apache-2.0
// The kernels that no compute mode changes, and the devices.
#include "cuda/launch.h"
#include "cuda/prepare.h"

#ifndef __CUDACC__
#include "cuda/emulation.h"
#endif

namespace rnnkern::cuda {
namespace {

template <class T>
void gather(void* stream, const GatherArguments<T>& args) {
  launch<GatherKernel<T>>(element_grid(stream, Index{args.rows} * args.gate_units), args);
}

template <class T>
void zero_tail(void* stream, const ZeroTailArguments<T>& args) {
  const Index count = Index{args.schedule.steps} * args.schedule.batch * args.units;
  launch<ZeroTailKernel<T>>(element_grid(stream, count), args);
}

template <class T>
void column_sums(void* stream, const ColumnSumsArguments<T>& args) {
  launch<ColumnSumsKernel<T>>({.stream = stream,
                               .blocks = (args.columns + Index{kLanes} - 1) / kLanes,
                               .shared_bytes = ColumnSumsKernel<T>::shared_bytes},
                              args);
}

}  // namespace

template <class T>
const StorageKernels<T>& storage_kernels() {
  static const StorageKernels<T> kernels{gather<T>, zero_tail<T>, column_sums<T>};
  return kernels;
}
template const StorageKernels<float>& storage_kernels();
template const StorageKernels<double>& storage_kernels();

void fill_schedule(void* stream, const SchedulePart& args) {
  launch<FillScheduleKernel>(element_grid(stream, args.count), args);
}

void expand_schedule(void* stream, const DeviceSchedule& schedule) {
  launch<OffsetKernel>(element_grid(stream, schedule.steps + Index{1}), schedule);
  launch<PackedRowsKernel>(element_grid(stream, Index{schedule.steps} * schedule.batch), schedule);
}

void zero(void* stream, const ZeroArguments& args) {
  launch<ZeroKernel>(element_grid(stream, args.count), args);
}

#ifdef __CUDACC__

namespace {

DeviceFacts facts_of(int device) {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  return {.name = p.name,
          .major = p.major,
          .minor = p.minor,
          .multiprocessors = p.multiProcessorCount,
          .shared_bytes = static_cast<int>(p.sharedMemPerBlockOptin),
          .memory_bytes = static_cast<Index>(p.totalGlobalMem)};
}

}  // namespace

std::vector<DeviceFacts> all_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) return {};
  check(error, "cudaGetDeviceCount");
  std::vector<DeviceFacts> devices;
  for (int i = 0; i < count; ++i) devices.push_back(facts_of(i));
  return devices;
}

const DeviceFacts& current_device() {
  static const std::vector<DeviceFacts> devices = all_devices();
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return devices.at(static_cast<std::size_t>(device));
}

#else

namespace {

DeviceFacts emulated{.name = "emulation",
                     .major = 9,
                     .minor = 0,
                     .multiprocessors = 8,
                     .shared_bytes = 227 << 10,
                     .memory_bytes = Index{1} << 30};

}  // namespace

void set_device(const DeviceFacts& facts, bool descending, std::uint32_t polls) {
  emulated = facts;
  descending_threads = descending;
  most_polls = polls;
}

std::vector<DeviceFacts> all_devices() { return {emulated}; }
const DeviceFacts& current_device() { return emulated; }

#endif

}  // namespace rnnkern::cuda
