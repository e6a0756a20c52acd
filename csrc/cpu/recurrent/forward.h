// SPDX-License-Identifier: Apache-2.0
// The forward time loop: W_ih x for a chunk of steps as one product, then step by step the
// recurrent product with the cell's equations as its epilogue. Compiled once for a product: a cell is
// facts here, and equations that are called.
#pragma once

#include <algorithm>

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/equations.h"
#include "cpu/recurrent/forward_panels.h"
#include "cpu/recurrent/row_factors.h"
#include "cpu/recurrent/zoneout.h"
#include "cpu/team/team.h"

namespace rnnkern {

template <class V, class Product>
class Forward {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Panels = ForwardPanels<V, Product>;
  static constexpr Index kPackedColumns = 64;  // of W_ih, at a time

 public:
  static Index packed_bytes(const CellFacts& cell, const Parameters<T>& parameters,
                            bool with_input) {
    Arena measure(nullptr);
    Panels(cell, parameters, with_input, measure);
    return measure.used();
  }

  static void pack(const CellFacts& cell, const Parameters<T>& parameters, bool with_input,
                   const Worker& worker, std::byte* packed) {
    Arena arena(packed);
    Panels(cell, parameters, with_input, arena).pack(cell, parameters, worker);
  }

  static Index scratch_bytes(const CellFacts& cell, const ForwardProblem<T>& problem, int threads) {
    Arena measure(nullptr);
    Scratch(cell, problem, threads, 0, measure);
    return measure.used();
  }

  static Progress run(const LoopCell<T>& cell, const ForwardProblem<T>& problem,
                      const TallTiles* tall, const Worker& worker, Progress from, std::byte* packed,
                      std::byte* scratch) {
    return Forward(cell, problem, tall, worker, packed, scratch).run(from);
  }

 private:
  struct Scratch {
    // Shared by the team.
    T* x_part;          // (rows of a chunk, G·H): W_ih x + b; with tokens (distinct tokens, G·H)
    T* operand;         // (B, H): what a later phase's product takes
    T* saved;           // (B, saved, H): one step's, where no backward pass wants them
    T* inner;           // (B, H): likewise, what a projection takes
    T* fresh_c;         // (B, H): likewise, c before its zoneout
    Operand* x_copies;  // (rows of a chunk, I), where operands are rounded
    // This thread's.
    T* tile;
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

    Scratch(const CellFacts& cell, const ForwardProblem<T>& problem, int threads, int id,
            Arena& arena) {
      const Index units = problem.parameters.units, outputs = problem.parameters.outputs;
      const Index batch = problem.schedule.batch;
      const Index chunk = largest_chunk(problem.schedule, chunk_rows(cell, problem));
      const bool one_phase = cell.phase_count() == 1;
      x_part =
          arena.take<T>((problem.tokens.slot ? problem.tokens.count : chunk) * cell.gates * units);
      operand = arena.take<T>(one_phase ? 0 : batch * units);
      saved = arena.take<T>(one_phase || problem.saved ? 0 : batch * cell.saved * units);
      inner = arena.take<T>(outputs == units || problem.inner ? 0 : batch * units);
      fresh_c = arena.take<T>(problem.zone_c.on() && !problem.fresh_c ? batch * units : 0);
      const Index x_row = problem.tokens.slot ? 0 : problem.parameters.inputs;
      x_copies = take_copies<Product>(arena, chunk, x_row);
      for (int i = 0; i < threads; ++i) {
        T* tile_i = arena.take<T>(tile_scratch<V>());
        T* input_panels_i = arena.take<T>(packs_inputs(problem) ? input_panels_size(problem) : 0);
        const Operand** a_i = arena.take<const Operand*>(chunk);
        T** c_i = arena.take<T*>(chunk);
        const Operand** h_a_i = arena.take<const Operand*>(Product::kRounds ? batch : 0);
        Operand* h_copies_i = take_copies<Product>(arena, batch, units > outputs ? units : outputs);
        const Index factored = problem.h_factors ? batch : 0;
        T* dropped_i = arena.take<T>(factored * outputs);
        const T** dropped_rows_i = arena.take<const T*>(factored);
        const T** in = arena.take<const T*>(4 * batch);
        T** out = arena.take<T*>(5 * batch);
        if (i != id) continue;
        tile = tile_i, input_panels = input_panels_i, a = a_i, c = c_i, h_a = h_a_i,
        h_copies = h_copies_i, dropped = dropped_i, dropped_rows = dropped_rows_i;
        h = in, operand_rows = in + batch, x = in + 2 * batch, c_previous = in + 3 * batch;
        new_c = out, y = out + batch, saved_rows = out + 2 * batch;
        new_h = outputs == units ? y : out + 3 * batch;
        cell_c = problem.zone_c.on() ? out + 4 * batch : new_c;
      }
    }
  };

  Forward(const LoopCell<T>& cell, const ForwardProblem<T>& problem, const TallTiles* tall,
          const Worker& worker, std::byte* packed, std::byte* scratch)
      : cell_(cell.facts),
        equations_(cell.equations),
        phases_(cell_.phase_count()),
        gates_(cell_.gates),
        problem_(problem),
        schedule_(problem.schedule),
        tall_(tall),
        units_(problem.parameters.units),
        outputs_(problem.parameters.outputs),
        worker_(worker),
        panels_(make_panels(cell_, problem, packed)),
        scratch_(make_scratch(cell_, problem, worker, scratch)),
        cut_(schedule_.batch, tile_height(), worker.row_groups) {}

  // Half as many where W_ih x then stays in the L2 cache or nearly does; where it would not, the
  // panels of W_ih are read for twice as many rows at once.
  static Index chunk_rows(const CellFacts& cell, const ForwardProblem<T>& problem) {
    constexpr Index kShortRow = 5 << 10;  // bytes of W_ih x
    const Index row = cell.gates * problem.parameters.units * static_cast<Index>(sizeof(T));
    return problem.input_packed && row <= kShortRow ? kChunkRows / 2 : kChunkRows;
  }

  static Panels make_panels(const CellFacts& cell, const ForwardProblem<T>& problem,
                            std::byte* packed) {
    Arena arena(packed);
    return Panels(cell, problem.parameters, problem.input_packed, arena);
  }
  static Scratch make_scratch(const CellFacts& cell, const ForwardProblem<T>& problem,
                              const Worker& worker, std::byte* base) {
    Arena arena(base);
    return Scratch(cell, problem, worker.count, worker.id, arena);
  }

  typename Product::Tiles tiles_for(const PanelMatrix<V, Product>& matrix) const {
    return {matrix.width, schedule_.batch, tall_};
  }

  // The same for all phases, so that a row of the batch stays with its thread and its cache.
  int tile_height() const {
    int height = kMaxTileRows;
    for (int p = 0; p < phases_; ++p) {
      const int rows = tiles_for(panels_.recurrent[p]).height();
      if (rows < height) height = rows;
    }
    if (projects()) height = std::min(height, tiles_for(panels_.projection).height());
    return height;
  }

  Progress run(Progress at) const {
    [[maybe_unused]] const typename Product::Session session(tall_);
    if (problem_.tokens.slot && at.steps == 0 && !at.inside) gather_tokens();
    while (at.chunks < schedule_.steps) {
      const Chunk chunk = chunk_from(schedule_, at.chunks, chunk_rows(cell_, problem_));
      if (!at.inside) {
        if (packs_inputs(problem_)) {
          pack_and_multiply_inputs(chunk);
        } else if (!problem_.tokens.slot) {
          multiply_inputs(chunk);
        }
        at.inside = true;
        if (worker_.wait_team()) return at;
      }
      while (at.steps < chunk.end) {
        const Index s = at.steps++;
        fill_rows(chunk, s);
        const bool breaks_up = run_phases(s);
        finish_rows(s);
        worker_.progress(step_flops(s));
        if (breaks_up && at.steps < chunk.end) return at;
      }
      at.chunks = at.steps, at.inside = false;
      if (at.chunks < schedule_.steps && worker_.wait_team()) return at;
    }
    at.done = true;
    return at;
  }

  // Of a step's work, what is this thread's.
  double step_flops(Index s) const {
    const Index weights =
        (gates_ * units_ + (projects() ? units_ : 0)) * cell_.recurrent_columns(outputs_);
    return static_cast<double>(2 * weights * schedule_.live(s)) / worker_.count;
  }

  bool projects() const { return outputs_ != units_; }

  // One row of W_ih's columns, bias added, for each distinct token.
  void gather_tokens() const {
    const auto& parameters = problem_.parameters;
    const Index size = gates_ * units_;
    const auto share = worker_.share(problem_.tokens.count);
    for (Index slot = share.begin; slot < share.end; ++slot) {
      const T* column = parameters.w_ih + problem_.tokens.token[slot];
      T* row = scratch_.x_part + slot * size;
      for (Index j = 0; j < size; ++j) {
        row[j] = Product::rounded(column[j * parameters.inputs]) +
                 (parameters.bias ? parameters.bias[j] : T(0));
      }
    }
  }

  void multiply_inputs(const Chunk& chunk) const {
    const auto share = worker_.share(chunk.rows());
    const Index first = chunk.first_row + share.begin;
    for_packed_rows<V>(
        schedule_, first, chunk.first_row + share.end, [&](Index p, Index t, Index i) {
          scratch_.a[p - first] = input_row(chunk, p, t, i, true);
          scratch_.c[p - first] = scratch_.x_part + (p - chunk.first_row) * gates_ * units_;
        });
    multiply(panels_.input, typename Product::Tiles(panels_.input.width, chunk.rows(), tall_),
             scratch_.a, scratch_.c, gates_ * units_, share.end - share.begin, false, scratch_.tile,
             worker_);
  }

  // x_t of packed row p as the product takes it; of those that are copied, `copies` makes the copy.
  const Operand* input_row(const Chunk& chunk, Index p, Index t, Index i, bool copies) const {
    const Index inputs = problem_.parameters.inputs;
    Operand* copy = scratch_.x_copies + (p - chunk.first_row) * copy_size<Product>(inputs);
    if (Product::kRounds && !copies) return copy;
    return Product::copy_row(problem_.x.at(schedule_.at(t, i)), inputs, copy);
  }

  static bool packs_inputs(const ForwardProblem<T>& problem) {
    return !problem.tokens.slot && !problem.input_packed;
  }
  static Index input_panels_size(const ForwardProblem<T>& problem) {
    return PanelMatrix<V, Product>(problem.parameters.inputs, kPackedColumns, 1).size();
  }

  // Every thread has columns of its own, which it packs some at a time for all rows.
  void pack_and_multiply_inputs(const Chunk& chunk) const {
    const auto& parameters = problem_.parameters;
    const Index columns = gates_ * units_, rows = chunk.rows();
    const auto copied = worker_.share(rows);
    for_packed_rows<V>(schedule_, chunk.first_row, chunk.last_row, [&](Index p, Index t, Index i) {
      const Index row = p - chunk.first_row;
      scratch_.a[row] = input_row(chunk, p, t, i, row >= copied.begin && row < copied.end);
      scratch_.c[row] = scratch_.x_part + row * columns;
    });
    if (Product::kRounds) worker_.wait_team();
    const auto share = worker_.share((columns + kPackedColumns - 1) / kPackedColumns);
    Index moved = 0;
    for (Index first = share.begin * kPackedColumns;
         first < share.end * kPackedColumns && first < columns; first += kPackedColumns) {
      const Index left = columns - first;
      PanelMatrix<V, Product> some(parameters.inputs, left < kPackedColumns ? left : kPackedColumns,
                                   1);
      some.data = scratch_.input_panels;
      pack_start(some, 0, some.count(),
                 [&](int) { return parameters.bias ? parameters.bias + first : nullptr; });
      pack_columns(some, 0, some.count(), [&](int, Index column) {
        return parameters.w_ih + (first + column) * parameters.inputs;
      });
      for (Index row = 0; row < rows; ++row) scratch_.c[row] += first - moved;
      moved = first;
      multiply(some, typename Product::Tiles(some.width, rows, tall_), scratch_.a, scratch_.c,
               columns, rows, false, scratch_.tile, worker_);
    }
  }

  void fill_rows(const Chunk& chunk, Index s) const {
    const Index t = schedule_.time(s), live = schedule_.live(s);
    const Index continued = s > 0 ? schedule_.live(s - 1) : 0;  // rows i below it ran in step s - 1
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        const Index b = schedule_.order[i], p = schedule_.offset[t] + i;
        const bool first = i >= continued;
        const Index x_row = problem_.tokens.slot ? problem_.tokens.slot[p] : p - chunk.first_row;
        scratch_.x[i] = scratch_.x_part + x_row * gates_ * units_;
        scratch_.h[i] = first ? problem_.h + b * outputs_
                              : problem_.y.at(schedule_.at(schedule_.time(s - 1), i));
        scratch_.y[i] = problem_.y.at(schedule_.at(t, i));
        if (projects()) {
          scratch_.new_h[i] =
              problem_.inner ? problem_.inner + p * units_ : scratch_.inner + i * units_;
        }
        if (cell_.cell_state) {
          scratch_.new_c[i] =
              problem_.cells ? problem_.cells + p * units_ : problem_.c + b * units_;
          scratch_.c_previous[i] =
              first || !problem_.cells
                  ? problem_.c + b * units_
                  : problem_.cells + (schedule_.offset[schedule_.time(s - 1)] + i) * units_;
          if (problem_.zone_c.on()) {
            scratch_.cell_c[i] =
                problem_.fresh_c ? problem_.fresh_c + p * units_ : scratch_.fresh_c + i * units_;
          }
        }
        const Index saved = cell_.saved * units_;
        scratch_.saved_rows[i] =
            problem_.saved ? problem_.saved + p * saved : scratch_.saved + i * saved;
        if (phases_ > 1) scratch_.operand_rows[i] = scratch_.operand + i * units_;
      }
    });
  }

  // Whether the team shall break up after this step.
  bool run_phases(Index s) const {
    bool breaks_up = false;
    for (int phase = 0; phase < phases_; ++phase) {
      run_phase(phase, s);
      // Without a product nobody reads another thread's units.
      breaks_up = cell_.recurrent_product && worker_.wait_group();
    }
    if (projects()) {
      run_projection(s);
      breaks_up = worker_.wait_group();
    }
    return breaks_up;
  }

  // This thread's groups of a phase.
  Worker::Share group_share(const PanelMatrix<V, Product>& matrix) const {
    const Index count = matrix.groups();
    return {count * worker_.unit_group / worker_.unit_groups,
            count * (worker_.unit_group + 1) / worker_.unit_groups};
  }

  // The rows of A of a step's product, each `size` long.
  const Operand* const* operand_rows(const T* const* rows, Index size, Index s) const {
    if constexpr (Product::kRounds) {
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i) {
          scratch_.h_a[i] =
              Product::copy_row(rows[i], size, scratch_.h_copies + i * copy_size<Product>(size));
        }
      });
      return scratch_.h_a;
    } else {
      return rows;
    }
  }

  // What a step's recurrent product takes of these rows (P).
  const T* const* factored(const T* const* rows, Index s) const {
    if (!problem_.h_factors) return rows;
    for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        T* to = scratch_.dropped + i * outputs_;
        multiply_row<V>(rows[i], row_factors(problem_, outputs_, s, i), outputs_, to);
        scratch_.dropped_rows[i] = to;
      }
    });
    return scratch_.dropped_rows;
  }

  void run_phase(int phase, Index s) const {
    const auto matrix = panels_.recurrent[phase];
    const auto tiles = tiles_for(matrix);
    const bool product = cell_.recurrent_product;
    const T* const* rows = factored(phase == 0 ? scratch_.h : scratch_.operand_rows, s);
    const Operand* const* a = product ? operand_rows(rows, matrix.depth, s) : nullptr;
    const auto share = group_share(matrix);
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    const Index most = groups_together(matrix, tiles, highest, share.end - share.begin);
    const auto apply = equations_.forward[phase];
    ForwardTile<T> tile = tile_of(phase, matrix);
    sweep(share.begin, share.end, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index panels = side * matrix.panels();
      Ahead ahead = matrix.ahead(next * matrix.panels(), panels);
      tile.first_unit = p * matrix.group_units(), tile.groups = side;
      tile.sums_row = panels * matrix.row_size();
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        prefetch_rows(phase, begin, end, tile.first_unit, side * matrix.group_units());
        if (product)
          multiply_panels(matrix, tiles, a + begin, static_cast<int>(end - begin),
                          p * matrix.panels(), panels, ahead, scratch_.tile);
        tile.begin = begin, tile.end = end;
        apply(tile);
        if (phase + 1 == phases_)
          zone_units(s, begin, end, tile.first_unit, side * matrix.group_units());
      });
    });
  }

  // Zoneout of what the last phase left.
  void zone_units(Index s, Index begin, Index end, Index first, Index units) const {
    const Index n = std::min(units, units_ - first);
    if (!projects())
      zone_rows<V>(problem_.zone_h, schedule_, s, {begin, end}, first, n, scratch_.new_h,
                   scratch_.h, scratch_.new_h);
    zone_rows<V>(problem_.zone_c, schedule_, s, {begin, end}, first, n, scratch_.cell_c,
                 scratch_.c_previous, scratch_.new_c);
  }

  // h_t = W_hr h', of what the last phase left.
  void run_projection(Index s) const {
    const auto matrix = panels_.projection;
    const auto tiles = tiles_for(matrix);
    const Operand* const* a = operand_rows(scratch_.new_h, units_, s);
    const auto share = group_share(matrix);
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    const Index most = tiles.panels(highest, share.end - share.begin);
    sweep(share.begin, share.end, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index columns = side * matrix.row_size(), first = p * matrix.row_size();
      Ahead ahead = matrix.ahead(next, side);
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        multiply_panels(matrix, tiles, a + begin, static_cast<int>(end - begin), p, side, ahead,
                        scratch_.tile);
        const Index n = std::min(columns, outputs_ - first);
        store_tile<V>(scratch_.y + begin, first, end - begin, n, columns, scratch_.tile);
        zone_rows<V>(problem_.zone_h, schedule_, s, {begin, end}, first, n, scratch_.y, scratch_.h,
                     scratch_.y);
      });
    });
  }

  // What is the same for all tiles of a phase.
  ForwardTile<T> tile_of(int phase, const PanelMatrix<V, Product>& matrix) const {
    const bool keeps = problem_.saved || phase + 1 < phases_;
    return {.units = units_,
            .sums = scratch_.tile,
            .group_lanes = matrix.lanes(),
            .group_blocks = matrix.blocks,
            .x = scratch_.x,
            .h = scratch_.h,
            .c = scratch_.c_previous,
            .saved_before = scratch_.saved_rows,
            .saved = keeps ? scratch_.saved_rows : nullptr,
            .operand = scratch_.operand,
            .new_h = scratch_.new_h,
            .new_c = scratch_.cell_c,
            .unit_weights = panels_.unit_weights,
            .options = problem_.options};
  }

  // What the equations will read of these units and is in no near cache.
  void prefetch_rows(int phase, Index begin, Index end, Index unit, Index units) const {
    const Range gates = cell_.phases[phase];
    for (Index i = begin; i < end; ++i) {
      for (int g = gates.first; g < gates.first + gates.count; ++g)
        prefetch(scratch_.x[i] + g * units_ + unit, units);
      if (cell_.cell_state) prefetch(scratch_.c_previous[i] + unit, units);
    }
  }

  // Rows that end with this step leave their last state behind: what this thread wrote.
  void finish_rows(Index s) const {
    const Index going_on = schedule_.live(s + 1), live = schedule_.live(s);
    if (going_on >= live) return;
    const auto of_c = unit_share(panels_.recurrent[phases_ - 1]);
    const auto of_h = projects() ? unit_share(panels_.projection) : of_c;
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      for (Index i = begin > going_on ? begin : going_on; i < end; ++i) {
        const Index b = schedule_.order[i];
        for (Index u = of_h.begin; u < of_h.end; ++u)
          problem_.h[b * outputs_ + u] = scratch_.y[i][u];
        if (!cell_.cell_state || !problem_.cells) continue;
        for (Index u = of_c.begin; u < of_c.end; ++u)
          problem_.c[b * units_ + u] = scratch_.new_c[i][u];
      }
    });
  }

  // The columns of a matrix's groups that are this thread's.
  Worker::Share unit_share(const PanelMatrix<V, Product>& matrix) const {
    const auto share = group_share(matrix);
    return {std::min(share.begin * matrix.group_units(), matrix.units),
            std::min(share.end * matrix.group_units(), matrix.units)};
  }

  const CellFacts& cell_;
  const CellEquations<T>& equations_;
  const int phases_, gates_;
  const ForwardProblem<T>& problem_;
  const Schedule& schedule_;
  const TallTiles* const tall_;
  const Index units_, outputs_;
  const Worker& worker_;
  const Panels panels_;
  const Scratch scratch_;
  const TileCut cut_;
};

}  // namespace rnnkern
