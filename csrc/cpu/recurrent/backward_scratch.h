// SPDX-License-Identifier: Apache-2.0
// The memory of a backward pass beside its panels.
#pragma once

#include <algorithm>

#include "core/cells.h"
#include "core/memory.h"
#include "core/problem.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/weight_gradients.h"
#include "cpu/recurrent/zoneout.h"

namespace rnnkern {

template <class V, class Product>
struct BackwardScratch {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Gradients = WeightGradients<V, Product>;

  // Shared by the team, and before what is not: threads may come and go between two steps.
  typename Gradients::Shared gradients;
  T* delta;     // (rows of a chunk): of each its deltas (deltas, H), and ∂L/∂h_t of a projection
  T* boundary;  // (B): likewise, the step after the chunk
  T* dh;        // (B, H): ∂L/∂h_t, from where it is found to what needs it whole
  ZonedGradients<V> zoned;
  T* direct;  // (B, H): zeros, for a projection's h' has no other gradient than by h
  // This thread's.
  typename Gradients::Own own;
  Operand* step_copies;  // (B, G·H or P): rows of a step's product, where operands are rounded
  T* norm_rows;  // of a c that is normalised: a row of zeros, n of a row, ∂L/∂(output gate) of a tile
  // This thread's, one entry a batch row, filled anew for each step.
  const T** delta_after;    // of the step processed next, rows of its product
  const Operand** segment;  // the same as the product takes them, moved to one gate
  T** dh_now;  // ∂L/∂h_t, where it is found first: of a projection it stands behind delta_now
  T** delta_now;
  T** state_gradients;
  const T** h_previous;
  const T** h;
  const T** c_previous;
  const T** c;
  const T** saved;
  const T** dy;

  BackwardScratch(const CellFacts& cell, const BackwardProblem<T>& problem, int threads, int id,
                  Arena& arena)
      : gradients(cell, problem, arena) {
    const Index units = problem.units, batch = problem.schedule.batch;
    const Index chunk = largest_chunk(problem.schedule, kChunkRows);
    const Index outputs = problem.outputs;
    delta = arena.take<T>(chunk * delta_size(cell, units, outputs));
    boundary = arena.take<T>(batch * delta_size(cell, units, outputs));
    direct = arena.take<T>(outputs == units ? 0 : batch * units);
    dh = arena.take<T>(cell.phase_count() > 1 || cell.norms_c() ? batch * units : 0);
    zoned = ZonedGradients<V>(problem, arena);
    const Index lanes = round_up(units, Index{V::size});
    for (int i = 0; i < threads; ++i) {
      const typename Gradients::Own own_i(problem, arena);
      const Operand** segment_i = arena.take<const Operand*>(batch);
      // A row's last gate may be filled up beyond the row: the next one is copied after it.
      Operand* step_copies_i =
          take_copies<Product>(arena, batch + 1, std::max(cell.gates * units, outputs));
      T* norm_rows_i = arena.take<T>(cell.norms_c() ? (kMaxTileRows + 2) * lanes : 0);
      const T** in = arena.take<const T*>(7 * batch);
      T** out = arena.take<T*>(3 * batch);
      if (i != id) continue;
      own = own_i, segment = segment_i, step_copies = step_copies_i, norm_rows = norm_rows_i;
      delta_after = in, h_previous = in + batch, h = in + 2 * batch;
      c_previous = in + 3 * batch, c = in + 4 * batch, saved = in + 5 * batch, dy = in + 6 * batch;
      delta_now = out, state_gradients = out + batch, dh_now = out + 2 * batch;
    }
  }
};

}  // namespace rnnkern
