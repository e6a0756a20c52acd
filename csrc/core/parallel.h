// Threads: one team for a whole call, barriers that spin, and the plan of who does what.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <utility>

#include "core/lane.h"

namespace rnnkern {

// Threads form a grid: row groups share no state of the recurrence, the unit groups within one
// row group exchange h once a step.
struct Plan {
  int row_groups = 1, unit_groups = 1;
  const char* reason = "";

  int threads() const { return row_groups * unit_groups; }
};

// The sizes a plan depends on. `weight_bytes` is the packed recurrent matrix.
struct Work {
  Index steps, batch, units;
  double step_flops, total_flops;
  Index weight_bytes;
};

Plan make_plan(const Work& work, int threads);

// All threads that pass through wait() continue once the last has arrived; what any wrote before it,
// all may read after it.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait();

 private:
  const int count_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

class Pieces;

// One thread's place in the team of a call.
class Worker {
 public:
  static constexpr int kQueues = 2;

  // `pieces` are the team's: kQueues for every thread.
  Worker(int id, const Plan& plan, Barrier& team, Barrier& group, Pieces* pieces)
      : id(id),
        count(plan.threads()),
        row_group(id / plan.unit_groups),
        row_groups(plan.row_groups),
        unit_group(id % plan.unit_groups),
        unit_groups(plan.unit_groups),
        team_(team),
        group_(group),
        pieces_(pieces) {}

  const int id, count;
  const int row_group, row_groups, unit_group, unit_groups;

  void wait_team() const;
  void wait_group() const;

  // This thread's share [begin, end) of n equal pieces of work.
  struct Share {
    Index begin, end;
  };
  [[gnu::always_inline]] Share share(Index n) const {
    return {n * id / count, n * (id + 1) / count};
  }

  // Puts this thread's share of n parts of work up, cut into pieces of about `size`; wait_team() must
  // follow before for_pieces().
  void offer(int queue, Index n, Index size) const;
  // Calls visit(begin, end) for each of this thread's pieces that nobody has taken, then for those that
  // others have not come to: where a core is slower, or busy with something else, the rest does not wait
  // for it.
  template <class Visit>
  [[gnu::always_inline]] void for_pieces(int queue, Visit visit) const {
    for (;;) {
      const Share piece = take_piece(queue);
      if (piece.begin == piece.end) return;
      visit(piece.begin, piece.end);
    }
  }

 private:
  Share take_piece(int queue) const;

  Barrier& team_;
  Barrier& group_;
  Pieces* const pieces_;
};

int max_threads();
void set_max_threads(int n);

// Runs body(worker) on every thread of the plan.
void run_team(const Plan& plan, const std::function<void(const Worker&)>& body);

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
