// SPDX-License-Identifier: Apache-2.0
#include "core/memory.h"

#include <array>
#include <mutex>
#include <new>
#include <type_traits>

#include "core/forks.h"

namespace rnnkern {
namespace {

constexpr std::align_val_t kCacheLine{64};

// Blocks given back, for the next that ask for as much or a little less.
class Pool {
 public:
  // A kept block of at least `size` bytes, whose true size is then in `size`; or null.
  std::byte* take(std::size_t& size) {
    const std::lock_guard lock(mutex_);
    for (auto& block : blocks_) {
      if (block.data && block.size >= size && block.size / 2 <= size) {
        size = block.size;
        return std::exchange(block, {}).data;
      }
    }
    return nullptr;
  }

  // False when the block is not worth keeping; it is still the caller's then.
  bool give(std::byte* data, std::size_t size) {
    if (size < kSmallest || size > kLargest) return false;
    const std::lock_guard lock(mutex_);
    auto& slot = blocks_[next_];
    next_ = (next_ + 1) % kBlocks;
    const Block evicted = std::exchange(slot, {data, size});
    ::operator delete[](evicted.data, kCacheLine);
    return true;
  }

  // Around a fork, for a child must not find the lock held by a thread that it does not have.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr std::size_t kBlocks = 4, kSmallest = std::size_t{1} << 16,
                               kLargest = std::size_t{1} << 26;
  struct Block {
    std::byte* data = nullptr;
    std::size_t size = 0;
  };

  std::mutex mutex_;
  std::array<Block, kBlocks> blocks_;
  std::size_t next_ = 0;
};

constinit Pool pool;
// So that a thread may still give back while the process ends.
static_assert(std::is_trivially_destructible_v<Pool>);
[[maybe_unused]] const bool registered = at_fork({.before = [] { pool.lock(); },
                                                  .in_parent = [] { pool.unlock(); },
                                                  .in_child = [] { pool.unlock(); }});

}  // namespace

AlignedBytes::AlignedBytes(Index bytes) : size_(static_cast<std::size_t>(bytes > 0 ? bytes : 1)) {
  data_ = pool.take(size_);
  if (!data_) data_ = static_cast<std::byte*>(::operator new[](size_, kCacheLine));
}

AlignedBytes::~AlignedBytes() {
  if (data_ && !pool.give(data_, size_)) ::operator delete[](data_, kCacheLine);
}

}  // namespace rnnkern
