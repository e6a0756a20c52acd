// SPDX-License-Identifier: Apache-2.0
// Passes of one direction over rows that may be cut into stretches: their states.
#pragma once

#include "core/cells.h"
#include "core/memory.h"
#include "core/schedule.h"

namespace rnnkern {

// To what a pass, forward or backward, has of the live rows behind the first so many.
template <class Problem>
void skip_rows(Problem& problem, const CellFacts& cell, Index rows, Index units) {
  if (problem.saved) problem.saved += rows * cell.saved * units;
  if (problem.cells) problem.cells += rows * units;
  if (problem.inner) problem.inner += rows * units;
  if (problem.fresh_c) problem.fresh_c += rows * units;
  auto& norm = problem.norm;
  if (norm.hh) norm.hh += rows * cell.gates * units, norm.scales_hh += rows * kNormScales;
  if (problem.tokens.slot) {
    problem.tokens.slot += rows;
  } else if (norm.hh) {  // there are as many parts from x
    norm.ih += rows * cell.gates * units, norm.scales_ih += rows * kNormScales;
  }
}

// run(problem) of one direction, whose states are those of batch rows: where these are cut into
// stretches, of each part of them, with their states.
template <class T, class Run>
void run_stretches(const CellFacts& cell, const ScheduleStorage& rows,
                   const ForwardProblem<T>& problem, Run run) {
  const Stretches* const stretches = rows.stretches();
  if (!stretches) return run(problem);
  const bool reverse = problem.schedule.reverse;
  const Index units = problem.parameters.units, outputs = problem.parameters.outputs;
  const Index of_h = stretches->rows() * outputs, of_c = problem.c ? stretches->rows() * units : 0;
  const AlignedBytes memory((of_h + of_c) * static_cast<Index>(sizeof(T)));
  ForwardProblem<T> own = problem;
  own.h = reinterpret_cast<T*>(memory.get());
  if (problem.c) own.c = own.h + of_h;
  stretches->begin(reverse, problem.h, outputs, own.h);
  if (problem.c) stretches->begin(reverse, problem.c, units, own.c);
  for (const auto& part : stretches->parts()) {
    if (part.rows == 0) break;
    ForwardProblem<T> some = own;
    some.schedule = stretches->schedule(reverse, part);
    some.h += part.first_row * outputs;
    if (own.c) some.c += part.first_row * units;
    skip_rows(some, cell, part.first_live, units);
    run(some);
  }
  stretches->end(reverse, own.h, outputs, problem.h);
  if (problem.c) stretches->end(reverse, own.c, units, problem.c);
}

template <class T, class Run>
void run_stretches(const CellFacts& cell, const ScheduleStorage& rows,
                   const BackwardProblem<T>& problem, Run run) {
  const Stretches* const stretches = rows.stretches();
  if (!stretches) return run(problem);
  const bool reverse = problem.schedule.reverse;
  const Index units = problem.units, outputs = problem.outputs;
  const Index of_h = stretches->rows() * outputs, of_c = problem.dc ? stretches->rows() * units : 0;
  const AlignedBytes memory(2 * (of_h + of_c) * static_cast<Index>(sizeof(T)));
  BackwardProblem<T> own = problem;
  auto* const h_0 = reinterpret_cast<T*>(memory.get());
  own.h_0 = h_0, own.dh = h_0 + of_h;
  stretches->begin(reverse, problem.h_0, outputs, h_0);
  stretches->begin_backward(reverse, problem.dh, outputs, own.dh);
  if (problem.dc) {
    auto* const c_0 = h_0 + 2 * of_h;
    own.c_0 = c_0, own.dc = c_0 + of_c;
    stretches->begin(reverse, problem.c_0, units, c_0);
    stretches->begin_backward(reverse, problem.dc, units, own.dc);
  }
  for (const auto& part : stretches->parts()) {
    if (part.rows == 0) break;
    BackwardProblem<T> some = own;
    const Index of_part = part.first_row * outputs;
    some.schedule = stretches->schedule(reverse, part);
    some.h_0 += of_part, some.dh += of_part;
    if (own.dc) some.c_0 += part.first_row * units, some.dc += part.first_row * units;
    skip_rows(some, cell, part.first_live, units);
    if (own.state_gradients) {
      const Index kept = static_cast<Index>(cell.states.size()) + cell.gates;
      some.state_gradients += part.first_live * (kept * units + (outputs != units ? outputs : 0));
    }
    run(some);
  }
  stretches->end_backward(reverse, own.dh, outputs, problem.dh);
  if (problem.dc) stretches->end_backward(reverse, own.dc, units, problem.dc);
}

}  // namespace rnnkern
