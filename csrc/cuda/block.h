// SPDX-License-Identifier: Apache-2.0
// A thread block, as the kernels see it: phases that all threads run, with a barrier behind each.
//
// The kernels are written once over this file. nvcc makes GPU code of them; a host compiler makes
// an emulation of them, in which a block is one std::thread, a phase a loop over the block's
// threads, shared memory an array, and the tensor cores' fragments arrays of 32 lanes. So index
// arithmetic and the exchange between blocks can be tested, under sanitizers too, on a machine
// without a GPU. To keep a forgotten barrier or wait from passing there, copies to shared memory
// are put off until they are waited for, and the order of the threads within a phase can be
// reversed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/lane.h"
#include "cuda/plan.h"

#ifndef __CUDACC__
#include <array>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>
#endif

namespace rnnkern::cuda {

// So often a block asks for a flag: some seconds, where no wait takes milliseconds. Then something
// is wrong, and the launch ends in an error: a kernel that waits for ever cannot be interrupted.
inline constexpr std::uint32_t kMostPolls = 1u << 24;

// What shared memory and the operands that blocks exchange are copied in.
struct alignas(kVectorBytes) Vector {
  std::uint32_t word[kVectorBytes / 4];
};

#ifdef __CUDACC__

#define RNNKERN_KERNEL __device__ __forceinline__
// Called from many kernels, and compiled once.
#define RNNKERN_KERNEL_CALLED __device__ __noinline__

// One T a lane of a warp, or a warp of a block: a thread's own, in its registers.
template <class T>
class Lanes {
 public:
  RNNKERN_KERNEL T& operator[](int) { return value_; }
  RNNKERN_KERNEL const T& operator[](int) const { return value_; }

 private:
  T value_;
};
template <class T>
using Warps = Lanes<T>;
template <class T>
using PerThread = Lanes<T>;

template <class F>
RNNKERN_KERNEL void each_lane(F f) {
  f(static_cast<int>(threadIdx.x) % kLanes);
}

// Passed by value: it holds nothing, so that nothing of it needs an address.
class Block {
 public:
  RNNKERN_KERNEL Index index() const { return blockIdx.x; }
  RNNKERN_KERNEL Index count() const { return gridDim.x; }
  // Declared here, not handed in, so that the compiler knows at each use that it is shared memory.
  RNNKERN_KERNEL std::byte* shared() const {
    extern __shared__ __align__(16) std::byte memory[];
    return memory;
  }

  // f(thread) by every thread, f(warp) by every warp; then a barrier.
  template <class F>
  RNNKERN_KERNEL void each(F f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class F>
  RNNKERN_KERNEL void each_warp(F f) const {
    f(static_cast<int>(threadIdx.x) / kLanes);
    __syncthreads();
  }
  // f(thread) by every thread, and no barrier: of what it leaves, no thread reads another's.
  template <class F>
  RNNKERN_KERNEL void each_alone(F f) const {
    f(static_cast<int>(threadIdx.x));
  }

  // Copies that go on while the thread does; copies_done() waits for all that it began. The vectors
  // may be other blocks' work: they are read past the multiprocessor's own cache.
  RNNKERN_KERNEL void copy(Vector* shared, const Vector* global) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(shared)), "l"(global)
                 : "memory");
  }
  template <class T>
  RNNKERN_KERNEL void copy(T* shared, const T* global) const {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address(shared)), "l"(global),
                 "n"(sizeof(T))
                 : "memory");
  }
  RNNKERN_KERNEL void copies_done() const { asm volatile("cp.async.wait_all;" ::: "memory"); }

 private:
  RNNKERN_KERNEL static std::uint32_t address(void* shared) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  }
};

// A flag in global memory: what a block wrote before it published a count, all blocks may read that
// have seen the count.
RNNKERN_KERNEL void publish(std::uint32_t* flag, std::uint32_t count) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(count) : "memory");
}
RNNKERN_KERNEL void await(const std::uint32_t* flag, std::uint32_t count) {
  for (std::uint32_t polls = 0;; ++polls) {
    std::uint32_t seen;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    if (seen >= count) return;
    if (polls == kMostPolls) __trap();
  }
}

#else

#define RNNKERN_KERNEL
#define RNNKERN_KERNEL_CALLED

template <class T>
using Lanes = std::array<T, kLanes>;
template <class T>
using Warps = std::array<T, kWarps>;
template <class T>
using PerThread = std::array<T, kThreads>;

template <class F>
void each_lane(F f) {
  for (int lane = 0; lane < kLanes; ++lane) f(lane);
}

// A copy to shared memory that was begun.
struct PendingCopy {
  void* to;
  const void* from;
  std::size_t bytes;
};

class Block {
 public:
  // Descending: within a phase, higher threads run first.
  Block(Index index, Index count, std::byte* shared, std::vector<PendingCopy>& pending,
        bool descending)
      : index_(index),
        count_(count),
        shared_(shared),
        pending_(&pending),
        descending_(descending) {}

  Index index() const { return index_; }
  Index count() const { return count_; }
  std::byte* shared() const { return shared_; }

  template <class F>
  void each(F f) const {
    for (int i = 0; i < kThreads; ++i) f(descending_ ? kThreads - 1 - i : i);
  }
  template <class F>
  void each_warp(F f) const {
    for (int i = 0; i < kWarps; ++i) f(descending_ ? kWarps - 1 - i : i);
  }
  template <class F>
  void each_alone(F f) const {
    each(f);
  }

  template <class T>
  void copy(T* shared, const T* global) const {
    pending_->push_back({shared, global, sizeof(T)});
  }
  void copies_done() const {
    for (const auto& copy : *pending_) std::memcpy(copy.to, copy.from, copy.bytes);
    pending_->clear();
  }

 private:
  Index index_, count_;
  std::byte* shared_;
  std::vector<PendingCopy>* pending_;
  bool descending_;
};

inline void publish(std::uint32_t* flag, std::uint32_t count) {
  std::atomic_ref(*flag).store(count, std::memory_order_release);
}
inline std::atomic<std::uint32_t> most_polls = kMostPolls;  // fewer in tests
inline void await(std::uint32_t* flag, std::uint32_t count) {
  for (std::uint32_t polls = 0;; ++polls) {
    if (std::atomic_ref(*flag).load(std::memory_order_acquire) >= count) return;
    if (polls == most_polls) throw std::runtime_error("a block waited in vain for another's flag");
    std::this_thread::yield();
  }
}

#endif

}  // namespace rnnkern::cuda
