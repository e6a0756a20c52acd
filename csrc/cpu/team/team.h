// SPDX-License-Identifier: Apache-2.0
// Threads of our own: a call forms a team of those that are free, runs a segment of its work with it, and
// may go on with another. Results do not depend on how many there are.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/memory.h"
#include "cpu/plan.h"
#include "cpu/team/cores.h"
#include "cpu/team/members.h"

namespace rnnkern {

class Team;

// All threads that pass through wait() continue once the last has arrived; what any wrote before it,
// all may read after it. Who waits spins a moment, then sleeps.
class Barrier {
 public:
  // `whole`: of all threads of the team, so that it may break up here.
  Barrier(Team& team, int count, bool whole) : team_(team), count_(count), whole_(whole) {}

  // By thread `id` of the team. Whether that shall break up, the same for all. Throws Interrupted.
  bool wait(int id);
  // Wakes who waits, for the team has been stopped.
  void release_all();

 private:
  bool arrive_last(int generation);

  Team& team_;
  const int count_;
  const bool whole_;
  bool breaks_up_ = false;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
  std::atomic<int> sleepers_{0};
  // When the first of those who sleep lost patience, and when all went on last; nanoseconds.
  std::atomic<std::int64_t> asleep_since_{0}, released_at_{0};
};

class Pieces;

// One thread's place in a team.
class Worker {
 public:
  static constexpr int kQueues = 2;

  Worker(int id, const Plan& plan, Team& team);

  const int id, count;
  const int row_group, row_groups, unit_group, unit_groups;

  // Of all threads, and of those of one row group. True where the team shall break up: then all its
  // threads are to return, once they are where another team can take over.
  bool wait_team() const;
  bool wait_group() const;

  // Tells that about so many flops were done: every now and then a look is taken at what goes on around
  // the call. Called often enough, it lets long work be interrupted; it throws Interrupted.
  [[gnu::always_inline]] void progress(double flops) const {
    left_ -= flops;
    if (left_ <= 0) look_around();
  }

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
  void look_around() const;

  Team& team_;
  Barrier& group_;
  Pieces* const pieces_;
  mutable double left_;
};

// One call, which shares the cores with the calls of other threads for as long as it lives.
class Call {
 public:
  // `flops` are about what the whole of it takes.
  explicit Call(double flops);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // No team of this call has more threads.
  int most_threads() const { return most_; }

  // Runs body(worker) on every thread of a team, of a plan made for as many threads as may be had now.
  // Throws Interrupted once all of them have stopped.
  void run(const std::function<Plan(int)>& plan_for,
           const std::function<void(const Worker&)>& body);

 private:
  friend class Team;
  int wanted() const;

  const Cores cores_;
  const int most_, shared_;      // the second by all callers there are
  const std::int64_t patience_;  // for the threads of a team to turn up; nanoseconds
  const int forks_;
  const std::int64_t began_;  // the same clock
  const bool wakes_;          // threads that sleep
  std::int64_t next_check_;
};

// What tells whether a signal handler wants the call of this thread to end. It is asked every 50 ms or so
// by the thread that made the call, in the middle of it.
void set_interrupt_check(bool (*check)());

// For tests: the numbers of threads that segments are run with, in turns, each segment as short as it can
// be; empty: as needed.
void pretend_teams(const std::vector<int>& sizes);

}  // namespace rnnkern
