// How a kernel is started: K::run(block, arguments) for every block of a grid.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/block.h"
#include "cuda/kernels.h"

#ifndef __CUDACC__
#include <cstring>
#include <memory>
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
  extern __shared__ __align__(16) std::byte shared[];
  K::run(Block(shared), arguments);
}

template <class K>
void launch(const Grid& grid, const typename K::Arguments& arguments) {
  check(cudaFuncSetAttribute(entry<K>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             grid.shared_bytes),
        "cudaFuncSetAttribute");
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
    // Shared memory begins as nothing in particular: not-a-numbers.
    const auto size = static_cast<std::size_t>(grid.shared_bytes);
    const std::unique_ptr<Vector[]> shared(
        new Vector[(size + sizeof(Vector) - 1) / sizeof(Vector)]);
    std::memset(shared.get(), 0xff, size);
    K::run(
        Block(index, grid.blocks, reinterpret_cast<std::byte*>(shared.get()), descending_threads),
        arguments);
  };
  // Blocks that do not wait for each other: two at a time.
  const Index threads = grid.together ? grid.blocks : grid.blocks > 1 ? 2 : 1;
  std::vector<std::thread> team;
  for (Index i = 0; i < threads; ++i) {
    team.emplace_back([&, i] {
      for (Index block = i; block < grid.blocks; block += threads) run(block);
    });
  }
  for (auto& thread : team) thread.join();
}

#endif

}  // namespace rnnkern::cuda
