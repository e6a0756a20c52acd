// SPDX-License-Identifier: Apache-2.0
// How many threads a call may use: what was asked for, and what the machine lets this process have.
#pragma once

#include <string>

#ifdef __linux__
#include <sched.h>
#endif

namespace rnnkern {

// The processors that a thread may run on.
struct CoreMask {
#ifdef __linux__
  cpu_set_t bits;

  bool operator==(const CoreMask& other) const { return CPU_EQUAL(&bits, &other.bits); }
#else
  bool operator==(const CoreMask&) const { return true; }
#endif
};

// The processor that this thread runs on, or -1 where that is not known.
int this_core();
void leave_out(CoreMask& mask, int core);
// Lets the calling thread run there alone from now on; false where that is nowhere.
bool run_on(const CoreMask& mask);

struct Cores {
  CoreMask mask;  // of the calling thread
  int count;      // how many it has, or as many as the quota is worth where that is less
  bool by_quota;
};
Cores cores_now();

// CPUs' worth of time that the control groups (v1 and v2) of this process allow it, the smallest on
// the way up from its own; infinite where none sets a limit. `root` stands before every path.
double cpu_quota(const std::string& root);

// What was asked for: of the process, and of the calling thread alone, which goes before it. 0 asks for
// as many as there are. The process begins with RNNKERN_NUM_THREADS or else OMP_NUM_THREADS.
int process_threads();
void set_process_threads(int count, const char* asked_by);
int own_threads();
void set_own_threads(int count);

// The threads that a call from this thread may use, at least 1, and why in words; and without what this
// thread alone asks for.
int thread_limit(const Cores& cores);
int process_limit(const Cores& cores);
std::string thread_limit_reason();

// For tests: as if this process had `count` cores (0: those it has), and files below `root`.
void pretend_cores(int count, const std::string& root);
bool pretends_cores();

}  // namespace rnnkern
