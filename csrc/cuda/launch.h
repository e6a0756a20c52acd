// SPDX-License-Identifier: Apache-2.0
// How a kernel is started: K::run(block, arguments) for every block of a grid.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/block.h"
#include "cuda/kernels.h"

#ifdef __CUDACC__
#include <atomic>
#else
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#endif

namespace rnnkern::cuda {

#ifdef __CUDACC__

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class K>
__global__ void __launch_bounds__(kThreads, 1)
    entry(const __grid_constant__ typename K::Arguments arguments) {
  K::run(Block(), arguments);
}

// Once a kernel and device, and to the most that there is: a limit that followed each launch could
// be lowered between another thread's limit and its launch, or behind a launch that a graph has
// captured.
template <class K>
void allow_all_shared_memory() {
  static std::atomic<std::uint64_t> allowed = 0;  // a bit a device
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if (allowed.load() & bit) return;
  check(cudaFuncSetAttribute(entry<K>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             current_device().shared_bytes),
        "cudaFuncSetAttribute");
  allowed |= bit;
}

template <class K>
void launch(const Grid& grid, const typename K::Arguments& arguments) {
  allow_all_shared_memory<K>();
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(grid.shared_bytes);
  config.stream = static_cast<cudaStream_t>(grid.stream);
  config.attrs = &cooperative;
  config.numAttrs = grid.together ? 1 : 0;
  check(cudaLaunchKernelEx(&config, entry<K>, arguments), "cudaLaunchKernel");
}

#else

// Within a phase, whether higher threads run first in the kernels that follow.
inline std::atomic<bool> descending_threads = false;

template <class K>
void launch(const Grid& grid, const typename K::Arguments& arguments) {
  const auto run = [&](Index index) {
    std::vector<PendingCopy> pending;
    // Shared memory begins as nothing in particular: not-a-numbers.
    const auto size = static_cast<std::size_t>(grid.shared_bytes);
    const std::unique_ptr<Vector[]> shared(
        new Vector[(size + sizeof(Vector) - 1) / sizeof(Vector)]);
    std::memset(shared.get(), 0xff, size);
    K::run(Block(index, grid.blocks, reinterpret_cast<std::byte*>(shared.get()), pending,
                 descending_threads),
           arguments);
  };
  // Blocks that do not wait for each other: two at a time.
  const Index threads = grid.together ? grid.blocks : grid.blocks > 1 ? 2 : 1;
  std::vector<std::thread> team;
  std::mutex mutex;
  std::exception_ptr error;
  for (Index i = 0; i < threads; ++i) {
    team.emplace_back([&, i] {
      try {
        for (Index block = i; block < grid.blocks; block += threads) run(block);
      } catch (...) {
        const std::lock_guard lock(mutex);
        error = std::current_exception();
      }
    });
  }
  for (auto& thread : team) thread.join();
  if (error) std::rethrow_exception(error);
}

#endif

}  // namespace rnnkern::cuda
