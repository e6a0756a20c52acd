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

// An address sanitizer knows the ends of what it gave out itself, and not those of a block that is used again.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kKeeps = false;
#else
constexpr bool kKeeps = true;
#endif

// Blocks of so many bytes that were given back, for the next that ask for as much or a little less.
template <std::size_t kBlocks, std::size_t kSmallest, std::size_t kLargest>
class Pool {
 public:
  // A kept block of at least `size` bytes, whose true size is then in `size`; or null.
  std::byte* take(std::size_t& size) {
    if (size < kSmallest / 2 || size > kLargest) return nullptr;
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
  struct Block {
    std::byte* data = nullptr;
    std::size_t size = 0;
  };

  std::mutex mutex_;
  std::array<Block, kBlocks> blocks_;
  std::size_t next_ = 0;
};

// Apart, so that a call's many small blocks drive out no large one. The smallest of all are as quickly had
// from the system.
constexpr std::size_t kSmall = std::size_t{1} << 10, kLarge = std::size_t{1} << 16;
constinit Pool<8, kSmall, kLarge - 1> small_blocks;
constinit Pool<4, kLarge, std::size_t{1} << 26> large_blocks;
// So that a thread may still give back while the process ends.
static_assert(std::is_trivially_destructible_v<decltype(small_blocks)>);
static_assert(std::is_trivially_destructible_v<decltype(large_blocks)>);

void lock() { small_blocks.lock(), large_blocks.lock(); }
void unlock() { small_blocks.unlock(), large_blocks.unlock(); }
[[maybe_unused]] const bool memory_forks =
    at_fork({.before = lock, .in_parent = unlock, .in_child = unlock});

bool give(std::byte* data, std::size_t size) {
  return kKeeps && (small_blocks.give(data, size) || large_blocks.give(data, size));
}

}  // namespace

AlignedBytes::AlignedBytes(Index bytes) : size_(static_cast<std::size_t>(bytes > 0 ? bytes : 1)) {
  if (kKeeps) data_ = size_ < kLarge ? small_blocks.take(size_) : large_blocks.take(size_);
  if (!data_) data_ = static_cast<std::byte*>(::operator new[](size_, kCacheLine));
}

AlignedBytes::~AlignedBytes() {
  if (data_ && !give(data_, size_)) ::operator delete[](data_, kCacheLine);
}

}  // namespace rnnkern
