// SPDX-License-Identifier: Apache-2.0
#include "core/team.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "core/forks.h"

#ifdef __linux__
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rnnkern {
namespace {

using Nanoseconds = std::int64_t;
constexpr Nanoseconds kMicrosecond = 1000, kMillisecond = 1000 * kMicrosecond;

Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Spinning beats sleeping while every thread has a core; who has waited longer probably waits for one
// that has none. To be woken takes up to 150 us on a virtual machine: with less spinning than that, who is
// woken late would make the others sleep, step after step.
constexpr Nanoseconds kWake = 150 * kMicrosecond, kSpin = 200 * kMicrosecond;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether it came to be within that time.
template <class Ready>
bool spin_until(Nanoseconds limit, Ready ready) {
  Nanoseconds end = 0;
  for (unsigned turn = 1;; ++turn) {
    if (ready()) return true;
    pause_briefly();
    if (turn % 32 != 0) continue;
    const Nanoseconds time = now();
    if (end == 0) end = time + limit;
    if (time >= end) return false;
  }
}

// May return early.
void sleep_while(std::atomic<int>& word, int value) {
#ifdef __linux__
  static_assert(sizeof word == sizeof(int));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  word.wait(value);
#endif
}

void wake_all(std::atomic<int>& word) {
#ifdef __linux__
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#else
  word.notify_all();
#endif
}

// A thread of ours, for life. Who takes it from those that are free says what it does:
//   parked -> offered -> taken -> working -> parked
// An offer that it has not taken, or a place that it has and that is not needed, may be withdrawn.
struct Member {
  enum State : int { parked, offered, taken, working };

  alignas(64) std::atomic<int> state{parked};
  std::atomic<int> sleepers{0};
  // Set before it begins to work:
  Team* team = nullptr;
  int id = 0;

  Member* next = nullptr;  // among those that are free
  CoreMask mask{};
#ifdef __linux__
  pthread_t thread{};
#endif

  void set(State s) {
    state.store(s);
    if (sleepers.load() > 0) wake_all(state);
  }
  bool change(int from, State to) { return state.compare_exchange_strong(from, to); }
  void wait_while(State s) {
    while (!spin_until(kSpin, [&] { return state.load(std::memory_order_acquire) != s; })) {
      sleepers.fetch_add(1);
      if (state.load() == s) sleep_while(state, s);
      sleepers.fetch_sub(1);
    }
  }

  void live();
};

// Where threads have to wait for one that has no core more than what teams do in between is worth, calls go
// on with fewer for a while; longer and longer while that is so.
struct Retreat {
  static constexpr Nanoseconds kShortest = 10 * kMillisecond, kLongest = 1000 * kMillisecond;
  // Who shares a core is left alone for some time after it has slept: only after a longer one without
  // a wait, and one as long as the retreat before it, the next retreat is short again.
  static constexpr Nanoseconds kForgetting = 100 * kMillisecond;
  // The time that teams worked is their credit, up to so much; a wait costs so many times its length.
  static constexpr Nanoseconds kMostCredit = 12 * kMillisecond, kPrice = 3;

  std::atomic<Nanoseconds> until{0};
  std::atomic<int> threads{0};
  std::atomic<Nanoseconds> credit{0};
  Nanoseconds interval = 0, last_wait = 0;  // under the lock
};

// All that the calls of the process share.
struct Shared {
  std::mutex mutex;
  Member* free = nullptr;
  int members = 0;
  Retreat retreat;
  std::atomic<int> callers{0};
  std::atomic<int> forks{0};  // that this process was the child of
  std::atomic<bool (*)()> interrupt_check{nullptr};
  std::vector<int>* pretended_teams = nullptr;  // under the lock
  std::size_t pretended_turn = 0;
  std::atomic<bool> pretends_teams{false};
};
constinit Shared shared;
static_assert(std::is_trivially_destructible_v<Shared>);

// No thread but the one that forked is in a child: its teams are new ones.
[[maybe_unused]] const bool registered = at_fork({.before = [] { shared.mutex.lock(); },
                                                  .in_parent = [] { shared.mutex.unlock(); },
                                                  .in_child =
                                                      [] {
                                                        shared.free = nullptr;
                                                        shared.members = 0;
                                                        shared.retreat.until = 0;
                                                        shared.callers = 0;
                                                        ++shared.forks;
                                                        shared.mutex.unlock();
                                                      }});

constexpr int kMostMembers = 4096;

// A wait that is long in itself, and against what was done before it: somebody has no core.
bool is_stall(Nanoseconds waited, Nanoseconds since) {
  return waited > 400 * kMicrosecond && 3 * waited > since;
}

// A team of so many `threads` worked, then had to wait. Whether calls shall do with fewer.
bool note_stall(int threads, Nanoseconds worked, Nanoseconds waited) {
  const std::lock_guard lock(shared.mutex);
  auto& retreat = shared.retreat;
  const Nanoseconds time = now(), until = retreat.until.load(std::memory_order_relaxed);
  if (time < until && retreat.threads.load(std::memory_order_relaxed) < threads) return true;
  Nanoseconds credit = std::min(retreat.credit.exchange(0) + worked, Retreat::kMostCredit);
  const Nanoseconds calm = time - waited - std::max(until, retreat.last_wait);
  retreat.last_wait = time;
  if (calm > std::max(retreat.interval, Retreat::kForgetting)) {
    retreat.interval = 0;
    credit = Retreat::kMostCredit;
  }
  credit -= Retreat::kPrice * waited;
  if (credit > 0) {
    retreat.credit.fetch_add(credit);
    return false;
  }
  retreat.interval = std::clamp(8 * retreat.interval, Retreat::kShortest, Retreat::kLongest);
  retreat.threads.store(std::max(std::min(threads - 1, threads * 3 / 4), 1),
                        std::memory_order_relaxed);
  retreat.until.store(time + retreat.interval, std::memory_order_relaxed);
  return true;
}

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

// Those who run one segment of a call.
class Team {
 public:
  Team(Call& call, int wanted, const Plan& plan, const std::function<void(const Worker&)>& body)
      : wanted(wanted),
        plan(plan),
        formed_at(now()),
        breaks_up(shared.pretends_teams.load(std::memory_order_relaxed)),
        all(*this, plan.threads(), true),
        pieces(static_cast<std::size_t>(plan.threads() * Worker::kQueues)),
        call_(call),
        body_(body) {
    for (int g = 0; g < plan.row_groups; ++g)
      groups.emplace_back(*this, plan.unit_groups, plan.row_groups == 1);
  }

  const int wanted;
  const Plan plan;
  const Nanoseconds formed_at;
  std::atomic<Nanoseconds> uncounted_since{formed_at};  // its work, among that of teams
  std::atomic<bool> breaks_up;                          // at the next place where it can
  std::atomic<bool> stopped{false};
  Barrier all;
  std::deque<Barrier> groups;
  std::vector<Pieces> pieces;

  void work(int id) { body_(Worker(id, plan, *this)); }

  void stop() {
    stopped.store(true);
    all.release_all();
    for (auto& group : groups) group.release_all();
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
    if (shared.forks.load(std::memory_order_relaxed) != call.forks_)
      throw std::runtime_error(
          "a signal handler forked in the middle of a call: the child cannot finish it");
  }

  static constexpr Nanoseconds kCheckEvery = 50 * kMillisecond;

 private:
  Call& call_;
  const std::function<void(const Worker&)>& body_;
};

bool Barrier::wait() {
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
      group_(team.groups[static_cast<std::size_t>(row_group)]),
      pieces_(team.pieces.data()),
      left_(kLookEvery) {}

bool Worker::wait_team() const {
  return count > 1 ? team_.all.wait() : team_.breaks_up.load(std::memory_order_relaxed);
}

bool Worker::wait_group() const {
  if (unit_groups > 1) return group_.wait();
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

void Member::live() {
  for (;;) {
    wait_while(parked);
    if (!change(offered, taken)) continue;
    wait_while(taken);
    if (state.load(std::memory_order_acquire) != working) continue;
    try {
      team->work(id);
    } catch (const Interrupted&) {  // the thread that made the call tells of it
    }
    set(parked);
  }
}

// Null where the system gives no more threads.
Member* new_member() {
  if (shared.members == kMostMembers) return nullptr;
  auto* member = new Member;
  member->state.store(Member::offered);
#ifdef __linux__
  // Signals are for the threads of the program, which has handlers for them.
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
#endif
  bool started = true;
  try {
    std::thread thread([member] { member->live(); });
#ifdef __linux__
    member->thread = thread.native_handle();
#endif
    thread.detach();
  } catch (const std::system_error&) {
    started = false;
  }
#ifdef __linux__
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
  if (!started) {
    delete member;
    return nullptr;
  }
  ++shared.members;
  return member;
}

// Threads that were offered a place in a team, back among the free ones in the end.
class Recruits {
 public:
  Recruits(int count, const CoreMask& mask) {
    members_.reserve(static_cast<std::size_t>(count));
    const std::lock_guard lock(shared.mutex);
    for (int i = 0; i < count; ++i) {
      Member* member = shared.free;
      const bool known = member != nullptr;
      if (known) {
        shared.free = member->next;
      } else {
        member = new_member();
        any_new_ = true;
        if (!member) break;
      }
      follow(*member, mask);
      any_asleep_ = any_asleep_ || member->sleepers.load() > 0;
      members_.push_back(member);
      if (known) member->set(Member::offered);
    }
  }
  ~Recruits() {
    const std::lock_guard lock(shared.mutex);
    if (forgotten_) return;
    for (Member* member : members_) {
      member->next = shared.free;
      shared.free = member;
    }
  }
  Recruits(const Recruits&) = delete;
  Recruits& operator=(const Recruits&) = delete;

  // Leaves out those that have not turned up by then; returns how many have.
  int turned_up(Nanoseconds patience) {
    // A new thread takes its time.
    if (any_new_) patience = std::max(patience, 5 * kMillisecond);
    if (hurried(patience)) patience = 0;
    const auto all = [&] {
      return std::all_of(members_.begin(), members_.end(), [](Member* member) {
        return member->state.load(std::memory_order_acquire) == Member::taken;
      });
    };
    while (!spin_until(patience, all) && pretends_cores()) std::this_thread::yield();
    const auto late = std::stable_partition(members_.begin(), members_.end(), [](Member* member) {
      return !member->change(Member::offered, Member::parked);
    });
    present_ = static_cast<int>(late - members_.begin());
    return present_;
  }

  // Whether the work is done sooner than one that sleeps is there. It is woken all the same: another call
  // may follow.
  bool hurried(Nanoseconds patience) const { return any_asleep_ && patience < kWake; }

  void start(Team& team) {
    working_ = team.plan.threads() - 1;
    for (int i = 0; i < present_; ++i) {
      Member& member = at(i);
      member.team = &team;
      member.id = i + 1;
      member.set(i < working_ ? Member::working : Member::parked);
    }
  }

  void join(Team& team) {
    const Nanoseconds since = now();
    for (int i = 0; i < working_; ++i) at(i).wait_while(Member::working);
    if (working_ == 0) return;
    const Nanoseconds time = now();
    team.note_wait(team.formed_at, time - since);
    shared.retreat.credit.fetch_add(time - team.uncounted_since, std::memory_order_relaxed);
  }

  // They are the threads of another process, which this one was forked from.
  void forget() { forgotten_ = true; }

 private:
  Member& at(int i) const { return *members_[static_cast<std::size_t>(i)]; }

  // A thread runs where the one may that it works for.
  static void follow([[maybe_unused]] Member& member, [[maybe_unused]] const CoreMask& mask) {
#ifdef __linux__
    if (member.mask == mask) return;
    member.mask = mask;
    pthread_setaffinity_np(member.thread, sizeof mask.bits, &mask.bits);
#endif
  }

  std::vector<Member*> members_;
  int present_ = 0, working_ = 0;
  bool any_new_ = false, any_asleep_ = false, forgotten_ = false;
};

}  // namespace

Call::Call(double flops)
    : cores_(cores_now()),
      most_(thread_limit(cores_)),
      shared_(std::max(most_, process_limit(cores_))),
      patience_(std::min(50 * kMicrosecond + static_cast<Nanoseconds>(flops / 400), kMillisecond)),
      forks_(shared.forks.load(std::memory_order_relaxed)),
      next_check_(now() + Team::kCheckEvery) {
  shared.callers.fetch_add(1, std::memory_order_relaxed);
}

Call::~Call() {
  if (forks_ == shared.forks.load(std::memory_order_relaxed))
    shared.callers.fetch_sub(1, std::memory_order_relaxed);
}

int Call::wanted() const {
  const int callers = std::max(shared.callers.load(std::memory_order_relaxed), 1);
  const int threads = std::min(most_, std::max(shared_ / callers, 1));
  const auto& retreat = shared.retreat;
  const Nanoseconds until = retreat.until.load(std::memory_order_relaxed);
  if (until == 0 || now() >= until) return threads;
  return std::min(threads, retreat.threads.load(std::memory_order_relaxed));
}

void Call::run(const std::function<Plan(int)>& plan_for,
               const std::function<void(const Worker&)>& body) {
  Team::check_interrupt(*this, now());
  int threads = wanted();
  if (shared.pretends_teams.load(std::memory_order_relaxed)) {
    const std::lock_guard lock(shared.mutex);
    const auto& sizes = *shared.pretended_teams;
    threads = std::min(most_, sizes[shared.pretended_turn++ % sizes.size()]);
  }
  Plan plan = plan_for(threads);
  Recruits recruits(plan.threads() - 1, cores_.mask);
  if (plan.threads() > 1) {
    const int present = recruits.turned_up(patience_) + 1;
    if (present < plan.threads()) {
      if (!recruits.hurried(patience_)) note_stall(plan.threads(), 0, patience_);
      plan = plan_for(present);
    }
  }
  Team team(*this, threads, plan, body);
  recruits.start(team);
  try {
    team.work(0);
  } catch (...) {
    if (forks_ != shared.forks.load(std::memory_order_relaxed)) {
      recruits.forget();
      throw;
    }
    team.stop();
    recruits.join(team);
    throw;
  }
  recruits.join(team);
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
