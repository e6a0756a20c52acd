// SPDX-License-Identifier: Apache-2.0
// The plan of a call: who does what.
#pragma once

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
  bool barriers;  // whether units wait for each other between steps, for a product reads them all
  double step_flops, total_flops;
  Index weight_bytes;
  // Whether a row's units must stay with one thread, which takes sums over them.
  bool whole_rows = false;
};

// What waking a thread of the team costs, in flops that a core could do meanwhile: measured with two
// threads, where calls of less work were slower than on one (docs/speed.md).
inline constexpr double kWakeFlops = 4e5;

Plan make_plan(const Work& work, int threads);

}  // namespace rnnkern
