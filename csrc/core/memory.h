// SPDX-License-Identifier: Apache-2.0
// Scratch memory, and the blocks it is carved from.
#pragma once

#include <cstddef>
#include <utility>

#include "core/lane.h"

namespace rnnkern {

// Scratch memory handed out piece by piece, each on its own cache line. Built over a null base it
// only measures, so that one constructor both sizes and carves a kernel's buffers.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <class T>
  [[gnu::always_inline]] T* take(Index count) {
    const Index begin = used_;
    used_ += (count * static_cast<Index>(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }
  Index used() const { return used_; }

 private:
  std::byte* base_;
  Index used_ = 0;
};

// Memory on 64-byte boundaries, uninitialised; throws std::bad_alloc. Some of what is given back is
// kept for the next call, which saves the kernel clearing the same pages again and again.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(Index bytes);
  AlignedBytes(AlignedBytes&& other) noexcept { swap(other); }
  AlignedBytes& operator=(AlignedBytes&& other) noexcept {
    swap(other);
    return *this;
  }
  ~AlignedBytes();

  std::byte* get() const { return data_; }

 private:
  void swap(AlignedBytes& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace rnnkern
