#include "core/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rnnkern {
namespace {

// Spinning beats sleeping while every thread has a core; past this many turns one probably has not.
constexpr int kSpins = 2000;

void pause_briefly(int turn) {
  if (turn >= kSpins) {
    sched_yield();
    return;
  }
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

void Barrier::wait() {
  const int generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int turn = 0; generation_.load(std::memory_order_acquire) == generation; ++turn) {
    pause_briefly(turn);
  }
}

// What one thread has yet to do of its share: it takes from the front, and others from the back.
class alignas(64) Pieces {
 public:
  void set(Worker::Share share, Index size) {
    size_ = size;
    left_.store(pack(share.begin, share.end), std::memory_order_relaxed);
  }

  // The next piece; an empty one when nothing is left.
  Worker::Share take(bool front) {
    std::uint64_t left = left_.load(std::memory_order_relaxed);
    for (;;) {
      const auto begin = static_cast<Index>(left >> 32),
                 end = static_cast<Index>(left & 0xFFFFFFFFu);
      const Index count = std::min(size_, end - begin);
      const std::uint64_t rest = front ? pack(begin + count, end) : pack(begin, end - count);
      if (count == 0 || left_.compare_exchange_weak(left, rest, std::memory_order_relaxed))
        return front ? Worker::Share{begin, begin + count} : Worker::Share{end - count, end};
    }
  }

 private:
  static std::uint64_t pack(Index begin, Index end) {
    return static_cast<std::uint64_t>(begin) << 32 | static_cast<std::uint64_t>(end);
  }

  std::atomic<std::uint64_t> left_{0};
  Index size_ = 0;
};

void Worker::offer(int queue, Index n, Index size) const {
  const Share own = share(n);
  // Nobody else could take a piece of one thread's work; what is less than two pieces stays whole.
  const Index length = own.end - own.begin;
  const Index pieces = std::max<Index>(count > 1 ? length / size : 1, 1);
  pieces_[id * kQueues + queue].set(own, (length + pieces - 1) / pieces);
}

Worker::Share Worker::take_piece(int queue) const {
  for (int k = 0; k < count; ++k) {
    const Share piece = pieces_[(id + k) % count * kQueues + queue].take(k == 0);
    if (piece.begin < piece.end) return piece;
  }
  return {0, 0};
}

void Worker::wait_team() const {
  if (count > 1) team_.wait();
}

void Worker::wait_group() const {
  if (unit_groups > 1) group_.wait();
}

namespace {

// GNU OpenMP's threads do not survive a fork, and a child that asks for them again hangs. So a child
// of a process that has had a team computes alone.
std::atomic<bool> had_team{false}, orphaned{false};

void note_team() {
  static const int registered = pthread_atfork(
      nullptr, nullptr, [] { orphaned.store(had_team.load(std::memory_order_relaxed)); });
  (void)registered;
  had_team.store(true, std::memory_order_relaxed);
}

}  // namespace

int max_threads() { return orphaned.load(std::memory_order_relaxed) ? 1 : omp_get_max_threads(); }

void set_max_threads(int n) { omp_set_num_threads(n); }

namespace {

// False when OpenMP gave fewer threads than asked for (inside another parallel region, or at a
// limit) and so nothing was run.
bool fork_join(int threads, const std::function<void(int)>* body) {
  bool complete = true;
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_num_threads() == threads) {
      (*body)(omp_get_thread_num());
    } else {
#pragma omp single
      complete = false;
    }
  }
  return complete;
}

}  // namespace

void run_team(const Plan& plan, const std::function<void(const Worker&)>& body) {
  Barrier team(plan.threads());
  std::deque<Barrier> groups;
  for (int g = 0; g < plan.row_groups; ++g) groups.emplace_back(plan.unit_groups);
  std::vector<Pieces> pieces(static_cast<std::size_t>(plan.threads() * Worker::kQueues));
  const std::function<void(int)> run = [&](int id) {
    body(Worker(id, plan, team, groups[static_cast<std::size_t>(id / plan.unit_groups)],
                pieces.data()));
  };
  if (plan.threads() > 1) {
    note_team();
    if (fork_join(plan.threads(), &run)) return;
  }
  const Plan alone;
  Barrier nobody(1);
  body(Worker(0, alone, nobody, nobody, pieces.data()));
}

namespace {

// The second-level cache of a core, which the recurrent weights of all steps had better not exceed.
Index own_cache_bytes() {
  static const Index bytes = [] {
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return found > 0 ? static_cast<Index>(found) : Index{1} << 20;
  }();
  return bytes;
}

}  // namespace

Plan make_plan(const Work& work, int threads) {
  // What waking the team and one meeting at a barrier cost, in flops that a core could do meanwhile:
  // measured with two threads, where calls of less work were slower than on one (docs/speed.md).
  constexpr double kWakeFlops = 4e5, kBarrierFlops = 1e4;
  if (threads <= 1) return {1, 1, "one thread was asked for, or there is one core"};
  if (work.total_flops < kWakeFlops * threads)
    return {1, 1, "too little work to wake a second thread"};
  const bool fits = work.weight_bytes <= own_cache_bytes();
  if (work.batch >= 4 * threads && (fits || work.batch >= 64 * threads)) {
    return {threads, 1, "each thread owns rows of the batch: no barrier between steps"};
  }
  if (work.step_flops >= kBarrierFlops * threads) {
    return {1, threads,
            "each thread owns units: its weights stay in its cache, one barrier a phase"};
  }
  if (work.batch >= threads && fits) {
    return {threads, 1, "each thread owns rows of the batch: a step is too short for barriers"};
  }
  return {1, 1, "a step is too short to be shared"};
}

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

// Never destroyed: a thread may still give back while the process ends.
Pool& pool() {
  static Pool& kept = *new Pool;
  return kept;
}

}  // namespace

AlignedBytes::AlignedBytes(Index bytes) : size_(static_cast<std::size_t>(bytes > 0 ? bytes : 1)) {
  data_ = pool().take(size_);
  if (!data_) data_ = static_cast<std::byte*>(::operator new[](size_, kCacheLine));
}

AlignedBytes::~AlignedBytes() {
  if (data_ && !pool().give(data_, size_)) ::operator delete[](data_, kCacheLine);
}

}  // namespace rnnkern
