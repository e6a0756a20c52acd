// SPDX-License-Identifier: Apache-2.0
// Passes of one direction over rows that may be cut into stretches: their states.
#pragma once

#include "core/cells.h"
#include "core/memory.h"
#include "core/schedule.h"

namespace rnnkern {

// run(problem) of one direction, whose states are those of batch rows: where these are cut into
// stretches, of each part of them, with their states.
template <class T, class Run>
void run_stretches(const CellFacts& cell, const ScheduleStorage& rows,
                   const ForwardProblem<T>& problem, Run run) {
  const Stretches* const stretches = rows.stretches();
  if (!stretches) return run(problem);
  const bool reverse = problem.schedule.reverse;
  const Index units = problem.parameters.units, size = stretches->rows() * units;
  const AlignedBytes memory((problem.c ? 2 : 1) * size * static_cast<Index>(sizeof(T)));
  ForwardProblem<T> own = problem;
  own.h = reinterpret_cast<T*>(memory.get());
  if (problem.c) own.c = own.h + size;
  stretches->begin(reverse, problem.h, units, own.h);
  if (problem.c) stretches->begin(reverse, problem.c, units, own.c);
  for (const auto& part : stretches->parts()) {
    if (part.rows == 0) break;
    ForwardProblem<T> some = own;
    const Index states = part.first_row * units, before = part.first_live;
    some.schedule = stretches->schedule(reverse, part);
    some.h += states;
    if (own.c) some.c += states;
    if (own.tokens.slot) some.tokens.slot += before;
    if (own.saved) some.saved += before * cell.saved * units;
    if (own.cells) some.cells += before * units;
    run(some);
  }
  stretches->end(reverse, own.h, units, problem.h);
  if (problem.c) stretches->end(reverse, own.c, units, problem.c);
}

template <class T, class Run>
void run_stretches(const CellFacts& cell, const ScheduleStorage& rows,
                   const BackwardProblem<T>& problem, Run run) {
  const Stretches* const stretches = rows.stretches();
  if (!stretches) return run(problem);
  const bool reverse = problem.schedule.reverse;
  const Index units = problem.units, size = stretches->rows() * units;
  const AlignedBytes memory((problem.dc ? 4 : 2) * size * static_cast<Index>(sizeof(T)));
  BackwardProblem<T> own = problem;
  auto* const h_0 = reinterpret_cast<T*>(memory.get());
  own.h_0 = h_0, own.dh = h_0 + size;
  stretches->begin(reverse, problem.h_0, units, h_0);
  stretches->begin_backward(reverse, problem.dh, units, own.dh);
  if (problem.dc) {
    auto* const c_0 = h_0 + 2 * size;
    own.c_0 = c_0, own.dc = h_0 + 3 * size;
    stretches->begin(reverse, problem.c_0, units, c_0);
    stretches->begin_backward(reverse, problem.dc, units, own.dc);
  }
  for (const auto& part : stretches->parts()) {
    if (part.rows == 0) break;
    BackwardProblem<T> some = own;
    const Index states = part.first_row * units, before = part.first_live;
    some.schedule = stretches->schedule(reverse, part);
    some.h_0 += states, some.dh += states;
    if (own.dc) some.c_0 += states, some.dc += states;
    if (own.tokens.slot) some.tokens.slot += before;
    if (own.saved) some.saved += before * cell.saved * units;
    if (own.cells) some.cells += before * units;
    if (own.state_gradients) {
      const Index kept = static_cast<Index>(cell.states.size()) + cell.gates;
      some.state_gradients += before * kept * units;
    }
    run(some);
  }
  stretches->end_backward(reverse, own.dh, units, problem.dh);
  if (problem.dc) stretches->end_backward(reverse, own.dc, units, problem.dc);
}

}  // namespace rnnkern
