// SPDX-License-Identifier: Apache-2.0
// The memory of a forward pass beside its panels.
#pragma once

#include "core/cells.h"
#include "core/memory.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/chunk.h"

namespace rnnkern {

template <class V, class Product>
struct ForwardScratch {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  static constexpr Index kPackedColumns = 64;  // of W_ih, at a time

  // Shared by the team.
  T* x_part;          // (rows of a chunk, G·H): W_ih x + b; with tokens (distinct tokens, G·H)
  T* operand;         // (B, H): what a later phase's product takes
  T* saved;           // (B, saved, H): one step's, where no backward pass wants them
  T* inner;           // (B, H): likewise, what a projection takes
  T* fresh_c;         // (B, H): likewise, c before its zoneout
  T* sums;            // (B, G·H): likewise, a recurrent product that is normalised
  Operand* x_copies;  // (rows of a chunk, I), where operands are rounded
  // This thread's.
  T* tile;
  T* normed_tile;       // sums of a tile as equations read them, once they are normalised
  T* input_panels;      // some of W_ih's, where they are packed as they are needed
  const Operand** a;    // (rows of a chunk): rows of the product W_ih x, in and
  T** c;                // out
  const Operand** h_a;  // (B): rows of a step's product, where operands are rounded: those of
  Operand* h_copies;    // (B, H or P)
  T* dropped;           // (B, P): what a product takes of h where it has factors
  const T** dropped_rows;
  // This thread's, one entry a batch row, filled anew for each step.
  const T** h;
  const T** operand_rows;
  const T** x;
  const T** c_previous;
  T** new_c;
  T** cell_c;  // what the last phase leaves: new_c, or c before its zoneout
  T** y;
  T** new_h;  // what the last phase leaves: y, or what a projection takes
  T** saved_rows;
  T** sum_rows;

  ForwardScratch(const CellFacts& cell, const ForwardProblem<T>& problem, int threads, int id,
                 Arena& arena) {
    const Index units = problem.parameters.units, outputs = problem.parameters.outputs;
    const Index batch = problem.schedule.batch;
    const Index chunk = largest_chunk(problem.schedule, chunk_rows(cell, problem));
    const bool one_phase = cell.phase_count() == 1;
    const Index norm_rows = cell.layer_norm && !problem.norm.hh ? batch : 0;
    const Index norm_tile = cell.layer_norm ? kMaxTileRows : 0;
    x_part =
        arena.take<T>((problem.tokens.slot ? problem.tokens.count : chunk) * cell.gates * units);
    operand = arena.take<T>(one_phase ? 0 : batch * units);
    saved = arena.take<T>(keeps_saved(cell, problem) ? 0 : batch * cell.saved * units);
    inner = arena.take<T>(outputs == units || problem.inner ? 0 : batch * units);
    fresh_c = arena.take<T>(problem.zone_c.on() && !problem.fresh_c ? batch * units : 0);
    sums = arena.take<T>(norm_rows * cell.gates * units);
    const Index x_row = problem.tokens.slot ? 0 : problem.parameters.inputs;
    x_copies = take_copies<Product>(arena, chunk, x_row);
    for (int i = 0; i < threads; ++i) {
      T* tile_i = arena.take<T>(tile_scratch<V>());
      T* normed_tile_i = arena.take<T>(norm_tile * cell.gates * round_up(units, Index{V::size}));
      T* input_panels_i = arena.take<T>(packs_inputs(problem) ? input_panels_size(problem) : 0);
      const Operand** a_i = arena.take<const Operand*>(chunk);
      T** c_i = arena.take<T*>(chunk);
      const Operand** h_a_i = arena.take<const Operand*>(Product::kRounds ? batch : 0);
      Operand* h_copies_i = take_copies<Product>(arena, batch, units > outputs ? units : outputs);
      const Index factored = problem.h_factors ? batch : 0;
      T* dropped_i = arena.take<T>(factored * outputs);
      const T** dropped_rows_i = arena.take<const T*>(factored);
      const T** in = arena.take<const T*>(4 * batch);
      T** out = arena.take<T*>(6 * batch);
      if (i != id) continue;
      tile = tile_i, normed_tile = normed_tile_i, input_panels = input_panels_i, a = a_i, c = c_i,
      h_a = h_a_i, h_copies = h_copies_i, dropped = dropped_i, dropped_rows = dropped_rows_i;
      h = in, operand_rows = in + batch, x = in + 2 * batch, c_previous = in + 3 * batch;
      new_c = out, y = out + batch, saved_rows = out + 2 * batch;
      new_h = outputs == units ? y : out + 3 * batch;
      sum_rows = out + 4 * batch;
      cell_c = problem.zone_c.on() ? out + 5 * batch : new_c;
    }
  }

  // Whether there is memory for what is saved, or no need of it.
  static bool keeps_saved(const CellFacts& cell, const ForwardProblem<T>& problem) {
    return problem.saved || (cell.phase_count() == 1 && !cell.norms_c());
  }

  // Half as many where W_ih x then stays in the L2 cache or nearly does; where it would not, the
  // panels of W_ih are read for twice as many rows at once.
  static Index chunk_rows(const CellFacts& cell, const ForwardProblem<T>& problem) {
    constexpr Index kShortRow = 5 << 10;  // bytes of W_ih x
    const Index row = cell.gates * problem.parameters.units * static_cast<Index>(sizeof(T));
    return problem.input_packed && row <= kShortRow ? kChunkRows / 2 : kChunkRows;
  }

  static bool packs_inputs(const ForwardProblem<T>& problem) {
    return !problem.tokens.slot && !problem.input_packed;
  }
  static Index input_panels_size(const ForwardProblem<T>& problem) {
    return PanelMatrix<V, Product>(problem.parameters.inputs, kPackedColumns, 1).size();
  }
};

}  // namespace rnnkern
