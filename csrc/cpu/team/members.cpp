// SPDX-License-Identifier: Apache-2.0
#include "cpu/team/members.h"

#include <algorithm>
#include <csignal>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/forks.h"

#ifdef __linux__
#include <pthread.h>
#endif

namespace rnnkern {

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

namespace {

constexpr int kMostMembers = 4096;

struct Members {
  std::mutex mutex;
  Member* free = nullptr;
  int count = 0;
  std::atomic<int> forks{0};
};
constinit Members all;
// No thread but the one that forked is in a child.
[[maybe_unused]] const bool members_fork = at_fork({.before = [] { all.mutex.lock(); },
                                                    .in_parent = [] { all.mutex.unlock(); },
                                                    .in_child =
                                                        [] {
                                                          all.free = nullptr;
                                                          all.count = 0;
                                                          ++all.forks;
                                                          all.mutex.unlock();
                                                        }});

// Null where the system gives no more threads.
Member* new_member() {
  if (all.count == kMostMembers) return nullptr;
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
  ++all.count;
  return member;
}

// A thread runs where the one may that it works for; it is woken on another core than that one's.
void follow([[maybe_unused]] Member& member, [[maybe_unused]] const CoreMask& mask) {
#ifdef __linux__
  if (member.mask == mask || CPU_COUNT(&mask.bits) == 0) return;
  member.mask = mask;
  pthread_setaffinity_np(member.thread, sizeof mask.bits, &mask.bits);
#endif
}

}  // namespace

void Member::live() {
  for (;;) {
    wait_while(parked);
    if (!change(offered, taken)) continue;
    wait_while(taken);
    if (state.load(std::memory_order_acquire) != working) continue;
    try {
      work_in(*team, id);
    } catch (const Interrupted&) {  // the thread that made the call tells of it
    }
    set(parked);
  }
}

int forks() { return all.forks.load(std::memory_order_relaxed); }

Recruits::Recruits(int count, const CoreMask& mask, bool wakes) : mask_(mask) {
  if (count == 0) return;
  members_.reserve(static_cast<std::size_t>(count));
  CoreMask elsewhere = mask;
  leave_out(elsewhere, this_core());
  const std::lock_guard lock(all.mutex);
  for (Member** next = &all.free; *next && missing(count);) {
    Member* const member = *next;
    const bool asleep = member->sleepers.load() > 0;
    if (asleep && !wakes) {
      next = &member->next;
      continue;
    }
    *next = member->next;
    any_asleep_ = any_asleep_ || asleep;
    follow(*member, asleep ? elsewhere : mask);
    members_.push_back(member);
    member->set(Member::offered);
  }
  while (wakes && missing(count)) {
    Member* const member = new_member();
    if (!member) break;
    any_new_ = true;
    follow(*member, mask);
    members_.push_back(member);
  }
}

Recruits::~Recruits() {
  if (members_.empty()) return;
  const std::lock_guard lock(all.mutex);
  if (forgotten_) return;
  for (Member* member : members_) {
    member->next = all.free;
    all.free = member;
  }
}

int Recruits::turned_up(Nanoseconds patience) {
  if (any_asleep_) patience = std::max(patience, kWake);
  // A new thread takes its time.
  if (any_new_) patience = std::max(patience, 5 * kMillisecond);
  const auto all_here = [&] {
    return std::all_of(members_.begin(), members_.end(), [](const Member* member) {
      return member->state.load(std::memory_order_acquire) == Member::taken;
    });
  };
  while (!spin_until(patience, all_here) && pretends_cores()) std::this_thread::yield();
  const auto late = std::stable_partition(members_.begin(), members_.end(), [](Member* member) {
    return !member->change(Member::offered, Member::parked);
  });
  for (Member* member : members_) follow(*member, mask_);
  present_ = static_cast<int>(late - members_.begin());
  return present_;
}

void Recruits::start(Team& team, int working) {
  working_ = working;
  for (int i = 0; i < present_; ++i) {
    Member& member = at(i);
    member.team = &team;
    member.id = i + 1;
    member.set(i < working_ ? Member::working : Member::parked);
  }
}

void Recruits::join() {
  for (int i = 0; i < working_; ++i) at(i).wait_while(Member::working);
}

}  // namespace rnnkern
