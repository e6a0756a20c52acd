// SPDX-License-Identifier: Apache-2.0
// Where threads have to wait for one that has no core more than what teams do in between is worth, calls go
// on with fewer for a while; longer and longer while that is so.
#pragma once

#include "cpu/team/waiting.h"

namespace rnnkern {

// A wait that is long in itself, and against what was done before it: somebody has no core.
inline bool is_stall(Nanoseconds waited, Nanoseconds since) {
  return waited > 400 * kMicrosecond && 3 * waited > since;
}

// A team of so many `threads` worked, then had to wait. Whether calls shall do with fewer.
bool note_stall(int threads, Nanoseconds worked, Nanoseconds waited);

// A team worked for so long without waiting.
void note_work(Nanoseconds worked);

// As many of the threads as there shall be now.
int after_retreat(int threads);

}  // namespace rnnkern
