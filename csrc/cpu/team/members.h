// SPDX-License-Identifier: Apache-2.0
// The threads that teams are made of. They are started when a call first needs them, and kept.
#pragma once

#include <vector>

#include "cpu/team/cores.h"
#include "cpu/team/waiting.h"

namespace rnnkern {

class Team;
struct Member;

// What a thread with a place in a team does; it may throw Interrupted.
void work_in(Team& team, int id);

// Thrown in every thread of a team when a signal handler wants the call to end.
struct Interrupted {};

// How many forks this process is the child of: none of its parent's threads is in it.
int forks();

// Threads that were offered a place in a team, back among the free ones in the end.
class Recruits {
 public:
  // Up to `count` that may run on the mask; without `wakes` only of those that are awake.
  Recruits(int count, const CoreMask& mask, bool wakes);
  ~Recruits();
  Recruits(const Recruits&) = delete;
  Recruits& operator=(const Recruits&) = delete;

  int size() const { return static_cast<int>(members_.size()); }

  // Leaves out those that have not turned up by then; returns how many have.
  int turned_up(Nanoseconds patience);

  // Gives the first of those `working` a place, from 1 on; then waits until they are done.
  void start(Team& team, int working);
  void join();

  // They are the threads of another process, which this one was forked from.
  void forget() { forgotten_ = true; }

 private:
  bool missing(int count) const { return size() < count; }
  Member& at(int i) const { return *members_[static_cast<std::size_t>(i)]; }

  const CoreMask& mask_;
  std::vector<Member*> members_;
  int present_ = 0, working_ = 0;
  bool any_new_ = false, any_asleep_ = false, forgotten_ = false;
};

}  // namespace rnnkern
