// SPDX-License-Identifier: Apache-2.0
#include "cpu/team/team.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <type_traits>

#include "core/forks.h"
#include "cpu/team/retreat.h"

namespace rnnkern {
namespace {

// When a call began that is too brief to look at the clock: its checks never come due.
constexpr Nanoseconds kBrief = std::numeric_limits<Nanoseconds>::max();

// All that the calls of the process share.
struct Shared {
  std::mutex mutex;
  std::atomic<int> callers{0};
  std::atomic<Nanoseconds> last_call_ended{0};
  std::atomic<bool (*)()> interrupt_check{nullptr};
  std::vector<int>* pretended_teams = nullptr;  // under the lock
  std::size_t pretended_turn = 0;
  std::atomic<bool> pretends_teams{false};
};
constinit Shared shared;
static_assert(std::is_trivially_destructible_v<Shared>);

// No call but the one that forked goes on in a child.
[[maybe_unused]] const bool shared_forks = at_fork({.before = [] { shared.mutex.lock(); },
                                                    .in_parent = [] { shared.mutex.unlock(); },
                                                    .in_child =
                                                        [] {
                                                          shared.callers = 0;
                                                          shared.mutex.unlock();
                                                        }});

}  // namespace

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

// A processor that a thread was seen on, or -1.
struct Core : std::atomic<int> {
  Core() : std::atomic<int>(-1) {}
  using std::atomic<int>::operator=;
};

// Those who run one segment of a call.
class Team {
 public:
  Team(Call& call, int wanted, const Plan& plan, const std::function<void(const Worker&)>& body)
      : wanted(wanted),
        plan(plan),
        formed_at(call.began_ == kBrief ? 0 : now()),
        breaks_up(shared.pretends_teams.load(std::memory_order_relaxed)),
        all(*this, plan.threads(), true),
        call_(call),
        body_(body) {
    if (plan.threads() == 1) return;  // a small call has no time to ask for memory
    pieces_of_many_ =
        std::vector<Pieces>(static_cast<std::size_t>(plan.threads() * Worker::kQueues));
    core_of_ = std::vector<Core>(static_cast<std::size_t>(plan.threads()));
    for (int g = 0; g < plan.row_groups && plan.unit_groups > 1; ++g)
      groups.push_back(std::make_unique<Barrier>(*this, plan.unit_groups, plan.row_groups == 1));
  }

  const int wanted;
  const Plan plan;
  const Nanoseconds formed_at;
  std::atomic<Nanoseconds> uncounted_since{formed_at};  // its work, among that of teams
  std::atomic<bool> breaks_up;                          // at the next place where it can
  std::atomic<bool> stopped{false};
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> groups;  // none where their threads are alone

  // By thread, then by queue.
  Pieces* pieces() { return plan.threads() == 1 ? pieces_of_one_.data() : pieces_of_many_.data(); }

  void work(int id) {
    settle(id);
    body_(Worker(id, plan, *this));
  }

  // For a thread that may have been put elsewhere: the kernel often wakes one where another of the team
  // runs, though a core is idle, for threads that spin look like much load to it; and they would stay together,
  // one asleep while the other runs, barrier after barrier. Whoever comes later goes elsewhere.
  void settle(int id) {
    if (plan.threads() == 1) return;
    const int core = this_core();
    const auto mine = core_of_.begin() + id;
    *mine = -1;
    if (core >= 0 && std::find(core_of_.begin(), mine, core) != mine) {
      CoreMask free = call_.cores_.mask;
      for (const int taken : core_of_) leave_out(free, taken);
      if (run_on(free)) run_on(call_.cores_.mask);
    }
    *mine = this_core();
  }

  // By the thread that made the call, when its own part is done.
  void join(Recruits& recruits) {
    if (plan.threads() == 1) return;
    const Nanoseconds since = now();
    recruits.join();
    const Nanoseconds time = now();
    note_wait(formed_at, time - since);
    note_work(time - uncounted_since);
  }

  void stop() {
    stopped.store(true);
    all.release_all();
    for (auto& group : groups) group->release_all();
  }

  // By the thread that made the call.
  void look_around() {
    const Nanoseconds time = now();
    check_interrupt(call_, time);
    const int threads = call_.wanted();
    if (threads < wanted || (threads > wanted && time > formed_at + kMillisecond))
      breaks_up.store(true, std::memory_order_relaxed);
  }

  void note_wait(Nanoseconds since, Nanoseconds waited) {
    if (pretends_cores() || !is_stall(waited, now() - since)) return;
    const Nanoseconds time = now();
    const Nanoseconds worked = time - uncounted_since.exchange(time) - waited;
    if (note_stall(plan.threads(), std::max<Nanoseconds>(worked, 0), waited))
      breaks_up.store(true, std::memory_order_relaxed);
  }

  static void check_interrupt(Call& call, Nanoseconds time) {
    if (time < call.next_check_) return;
    call.next_check_ = time + kCheckEvery;
    const auto check = shared.interrupt_check.load(std::memory_order_relaxed);
    if (check && check()) throw Interrupted();
    if (forks() != call.forks_)
      throw std::runtime_error(
          "a signal handler forked in the middle of a call: the child cannot finish it");
  }

  static constexpr Nanoseconds kCheckEvery = 50 * kMillisecond;

 private:
  Call& call_;
  const std::function<void(const Worker&)>& body_;
  std::array<Pieces, Worker::kQueues> pieces_of_one_;
  std::vector<Pieces> pieces_of_many_;
  std::vector<Core> core_of_;  // each of its threads, as far as is known
};

void work_in(Team& team, int id) { team.work(id); }

bool Barrier::wait(int id) {
  const int generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_)
    return arrive_last(generation);
  const auto over = [&] {
    return generation_.load(std::memory_order_acquire) != generation ||
           team_.stopped.load(std::memory_order_acquire);
  };
  if (!spin_until(kSpin, over)) {
    Nanoseconds nobody = 0;
    asleep_since_.compare_exchange_strong(nobody, now());
    sleepers_.fetch_add(1);
    while (generation_.load() == generation && !team_.stopped.load())
      sleep_while(generation_, generation);
    sleepers_.fetch_sub(1);
    team_.settle(id);
  }
  if (team_.stopped.load(std::memory_order_acquire)) throw Interrupted();
  return breaks_up_;
}

bool Barrier::arrive_last(int generation) {
  if (const Nanoseconds since = asleep_since_.load()) {
    const Nanoseconds released = released_at_.load(std::memory_order_relaxed);
    team_.note_wait(std::max(released, team_.formed_at), now() - since);
    asleep_since_.store(0);
  }
  const bool breaks_up = whole_ && team_.breaks_up.load(std::memory_order_relaxed);
  breaks_up_ = breaks_up;
  arrived_.store(0, std::memory_order_relaxed);
  generation_.store(generation + 1);
  if (sleepers_.load() > 0) wake_all(generation_);
  // After the release, so that nobody waits for the clock.
  released_at_.store(now(), std::memory_order_relaxed);
  if (team_.stopped.load(std::memory_order_acquire)) throw Interrupted();
  return breaks_up;
}

void Barrier::release_all() {
  generation_.fetch_add(1);
  wake_all(generation_);
}

namespace {

// How many flops are done between two looks: some ten to some hundred microseconds' worth.
constexpr double kLookEvery = 5e6;

}  // namespace

Worker::Worker(int id, const Plan& plan, Team& team)
    : id(id),
      count(plan.threads()),
      row_group(id / plan.unit_groups),
      row_groups(plan.row_groups),
      unit_group(id % plan.unit_groups),
      unit_groups(plan.unit_groups),
      team_(team),
      group_(plan.unit_groups > 1 ? *team.groups[static_cast<std::size_t>(row_group)] : team.all),
      pieces_(team.pieces()),
      left_(kLookEvery) {}

bool Worker::wait_team() const {
  return count > 1 ? team_.all.wait(id) : team_.breaks_up.load(std::memory_order_relaxed);
}

bool Worker::wait_group() const {
  if (unit_groups > 1) return group_.wait(id);
  return count == 1 && team_.breaks_up.load(std::memory_order_relaxed);
}

void Worker::look_around() const {
  left_ = kLookEvery;
  if (id == 0) team_.look_around();
  if (team_.stopped.load(std::memory_order_acquire)) throw Interrupted();
}

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

namespace {

// Whether threads that sleep shall be woken, and be waited for: where more is gained than a wake takes, or
// where one call follows the other, for then they are awake from the second on.
bool worth_waking(double flops, Nanoseconds time) {
  // Of one core: 10 for one row of a batch, 100 for many.
  constexpr double kFlopsPerNanosecond = 30;
  return flops / kFlopsPerNanosecond > 2 * kWake || pretends_cores() ||
         time - shared.last_call_ended.load(std::memory_order_relaxed) < kSpin;
}

// No plan shares it: to ask which cores there are, or what time it is, would take as long.
bool is_brief(double flops) {
  const bool pretends = shared.pretends_teams.load(std::memory_order_relaxed) || pretends_cores();
  return flops < kWakeFlops && !pretends;
}

Cores cores_for(double flops) {
  if (!is_brief(flops)) return cores_now();
  Cores one{};
  one.count = 1;
  return one;
}

}  // namespace

Call::Call(double flops)
    : cores_(cores_for(flops)),
      most_(thread_limit(cores_)),
      shared_(std::max(most_, process_limit(cores_))),
      patience_(std::min(50 * kMicrosecond + static_cast<Nanoseconds>(flops / 400), kMillisecond)),
      forks_(forks()),
      began_(is_brief(flops) ? kBrief : now()),
      wakes_(began_ != kBrief && worth_waking(flops, began_)),
      next_check_(began_ + (began_ == kBrief ? 0 : Team::kCheckEvery)) {
  shared.callers.fetch_add(1, std::memory_order_relaxed);
}

Call::~Call() {
  if (began_ != kBrief) shared.last_call_ended.store(now(), std::memory_order_relaxed);
  if (forks_ == forks()) shared.callers.fetch_sub(1, std::memory_order_relaxed);
}

int Call::wanted() const {
  const int callers = std::max(shared.callers.load(std::memory_order_relaxed), 1);
  const int threads = std::min(most_, std::max(shared_ / callers, 1));
  return after_retreat(threads);
}

void Call::run(const std::function<Plan(int)>& plan_for,
               const std::function<void(const Worker&)>& body) {
  if (began_ != kBrief) Team::check_interrupt(*this, now());
  int threads = wanted();
  if (shared.pretends_teams.load(std::memory_order_relaxed)) {
    const std::lock_guard lock(shared.mutex);
    const auto& sizes = *shared.pretended_teams;
    threads = std::min(most_, sizes[shared.pretended_turn++ % sizes.size()]);
  }
  Plan plan = plan_for(threads);
  Recruits recruits(plan.threads() - 1, cores_.mask, wakes_);
  if (plan.threads() > 1) {
    const int present = recruits.turned_up(patience_);
    if (present < recruits.size()) note_stall(plan.threads(), 0, patience_);
    if (present + 1 < plan.threads()) plan = plan_for(present + 1);
  }
  Team team(*this, threads, plan, body);
  recruits.start(team, plan.threads() - 1);
  try {
    team.work(0);
  } catch (...) {
    if (forks_ != forks()) {
      recruits.forget();
      throw;
    }
    team.stop();
    recruits.join();
    throw;
  }
  team.join(recruits);
}

void set_interrupt_check(bool (*check)()) { shared.interrupt_check.store(check); }

void pretend_teams(const std::vector<int>& sizes) {
  const std::lock_guard lock(shared.mutex);
  delete shared.pretended_teams;
  shared.pretended_teams = sizes.empty() ? nullptr : new std::vector<int>(sizes);
  shared.pretended_turn = 0;
  shared.pretends_teams.store(!sizes.empty());
}

}  // namespace rnnkern
