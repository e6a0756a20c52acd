// SPDX-License-Identifier: Apache-2.0
#include "cpu/team/retreat.h"

#include <algorithm>
#include <mutex>

#include "core/forks.h"

namespace rnnkern {
namespace {

struct Retreat {
  static constexpr Nanoseconds kShortest = 10 * kMillisecond, kLongest = 1000 * kMillisecond;
  // Who shares a core is left alone for some time after it has slept: only after a longer one without
  // a wait, and one as long as the retreat before it, the next retreat is short again.
  static constexpr Nanoseconds kForgetting = 100 * kMillisecond;
  // The time that teams worked is their credit, up to so much; a wait costs so many times its length.
  static constexpr Nanoseconds kMostCredit = 48 * kMillisecond, kPrice = 3;

  std::atomic<Nanoseconds> until{0};
  std::atomic<int> threads{0};
  std::atomic<Nanoseconds> credit{0};
  Nanoseconds interval = 0, last_wait = 0;  // under the lock
};

constinit std::mutex retreat_mutex;
constinit Retreat retreat;
// The threads that were waited for are not in a child.
[[maybe_unused]] const bool retreat_forks = at_fork({.before = [] { retreat_mutex.lock(); },
                                                     .in_parent = [] { retreat_mutex.unlock(); },
                                                     .in_child =
                                                         [] {
                                                           retreat.until = 0;
                                                           retreat_mutex.unlock();
                                                         }});

}  // namespace

bool note_stall(int threads, Nanoseconds worked, Nanoseconds waited) {
  const std::lock_guard lock(retreat_mutex);
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

void note_work(Nanoseconds worked) { retreat.credit.fetch_add(worked, std::memory_order_relaxed); }

int after_retreat(int threads) {
  const Nanoseconds until = retreat.until.load(std::memory_order_relaxed);
  if (until == 0 || now() >= until) return threads;
  return std::min(threads, retreat.threads.load(std::memory_order_relaxed));
}

}  // namespace rnnkern
