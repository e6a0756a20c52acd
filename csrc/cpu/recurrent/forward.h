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
#include "cpu/recurrent/forward_scratch.h"
#include "cpu/recurrent/row_factors.h"
#include "cpu/recurrent/zoneout.h"
#include "cpu/team/team.h"

namespace rnnkern {

template <class V, class Product>
class Forward {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Panels = ForwardPanels<V, Product>;
  using Scratch = ForwardScratch<V, Product>;
  static constexpr Index kPackedColumns = Scratch::kPackedColumns;

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
      const Chunk chunk = chunk_from(schedule_, at.chunks, Scratch::chunk_rows(cell_, problem_));
      if (!at.inside) {
        if (Scratch::packs_inputs(problem_)) {
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

  // Layer normalisation goes with no int8 weights, whose products are compiled without it.
  bool normalises() const { return !Product::kScaled && cell_.layer_norm; }

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
                 (parameters.bias && !cell_.layer_norm ? parameters.bias[j] : T(0));
      }
      normalize_part(row, slot);
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
    for (Index p = first; normalises() && p < chunk.first_row + share.end; ++p)
      normalize_part(scratch_.c[p - first], p);
  }

  // W_ih x of one row, which has its place `kept` among those that are kept.
  void normalize_part(T* row, Index kept) const {
    if (!normalises()) return;
    const auto& norm = problem_.norm;
    normalize_input<V>(cell_, {0, gates_}, units_, panels_.norm, row,
                       norm.ih ? norm.ih + kept * gates_ * units_ : nullptr,
                       norm.ih ? norm.scales_ih + kept * kNormScales : nullptr);
  }

  // x_t of packed row p as the product takes it; of those that are copied, `copies` makes the copy.
  const Operand* input_row(const Chunk& chunk, Index p, Index t, Index i, bool copies) const {
    const Index inputs = problem_.parameters.inputs;
    Operand* copy = scratch_.x_copies + (p - chunk.first_row) * copy_size<Product>(inputs);
    if (Product::kRounds && !copies) return copy;
    return Product::copy_row(problem_.x.at(schedule_.at(t, i)), inputs, copy);
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
      const T* start = parameters.bias && !cell_.layer_norm ? parameters.bias + first : nullptr;
      pack_start(some, 0, some.count(), &start);
      pack_columns(some, 0, some.count(),
                   {parameters.w_ih + first * parameters.inputs, parameters.inputs});
      for (Index row = 0; row < rows; ++row) scratch_.c[row] += first - moved;
      moved = first;
      multiply(some, typename Product::Tiles(some.width, rows, tall_), scratch_.a, scratch_.c,
               columns, rows, false, scratch_.tile, worker_);
    }
    if (!normalises()) return;
    worker_.wait_team();
    for (Index row = copied.begin; row < copied.end; ++row)
      normalize_part(scratch_.x_part + row * columns, chunk.first_row + row);
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
        if (cell_.layer_norm) {
          const Index sums = gates_ * units_;
          scratch_.sum_rows[i] =
              problem_.norm.hh ? problem_.norm.hh + p * sums : scratch_.sums + i * sums;
        }
        if (phases_ > 1) scratch_.operand_rows[i] = scratch_.operand + i * units_;
      }
    });
  }

  // Whether the team shall break up after this step.
  bool run_phases(Index s) const {
    bool breaks_up = false;
    for (int phase = 0; phase < phases_; ++phase) {
      if (normalises()) {
        run_normed_phase(phase, s);
      } else {
        run_phase(phase, s);
      }
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
    sweep(share.begin, share.end, most, s % 2 != 0,
          [&](Index p, Index side, Index next) __attribute__((always_inline)) {
            const Index panels = side * matrix.panels();
            Ahead ahead = matrix.ahead(next * matrix.panels(), panels);
            tile.first_unit = p * matrix.group_units(), tile.groups = side;
            tile.sums_row = panels * matrix.row_size();
            for_tiles<V>(
                cut_, worker_, schedule_.live(s),
                [&](Index begin, Index end) __attribute__((always_inline)) {
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
    multiply_rows(panels_.projection, scratch_.new_h, scratch_.y, 0, s,
                  [&](Index begin, Index end, Index first, Index n) {
                    zone_rows<V>(problem_.zone_h, schedule_, s, {begin, end}, first, n, scratch_.y,
                                 scratch_.h, scratch_.y);
                  });
  }

  // A product of a step as it is, to `to` from a column on; `stored` sees each tile when it is there.
  template <class Stored>
  void multiply_rows(const PanelMatrix<V, Product> matrix, const T* const* rows, T* const* to,
                     Index column, Index s, Stored stored) const {
    const auto tiles = tiles_for(matrix);
    const Operand* const* a = operand_rows(rows, matrix.depth, s);
    const auto share = group_share(matrix);
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    const Index most = tiles.panels(highest, share.end - share.begin);
    sweep(share.begin, share.end, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index columns = side * matrix.row_size(), first = p * matrix.row_size();
      Ahead ahead = matrix.ahead(next, side);
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        multiply_panels(matrix, tiles, a + begin, static_cast<int>(end - begin), p, side, ahead,
                        scratch_.tile);
        const Index n = std::min(columns, matrix.units - first);
        store_tile<V>(to + begin, column + first, end - begin, n, columns, scratch_.tile);
        stored(begin, end, first, n);
      });
    });
  }

  // The sums of whole rows first, and then the equations of what they come to when they are normalised.
  void run_normed_phase(int phase, Index s) const {
    const Range gates = cell_.phases[static_cast<std::size_t>(phase)];
    multiply_rows(panels_.recurrent[phase], phase == 0 ? scratch_.h : scratch_.operand_rows,
                  scratch_.sum_rows, gates.first * units_, s, [](Index, Index, Index, Index) {});
    const Index lanes = (units_ + V::size - 1) / V::size;
    ForwardTile<T> tile = tile_of(phase, panels_.recurrent[phase]);
    tile.sums = scratch_.normed_tile, tile.sums_row = lanes * gates.count * V::size;
    tile.group_lanes = gates.count, tile.group_blocks = 1, tile.groups = lanes;
    for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        normalize_sums<V>(cell_, gates, units_, panels_.norm, scratch_.sum_rows[i], scales_of(s, i),
                          scratch_.normed_tile + (i - begin) * tile.sums_row);
      }
      tile.begin = begin, tile.end = end;
      equations_.forward[phase](tile);
      for (Index i = begin; i < end && cell_.norms_c(); ++i) {
        finish_output<V>(cell_, equations_, panels_.norm, problem_.options, units_,
                         scratch_.saved_rows[i], scratch_.new_c[i], scales_of(s, i),
                         scratch_.new_h[i]);
      }
    });
  }

  // Where a row's scales of this step are kept, or null.
  T* scales_of(Index s, Index i) const {
    if (!problem_.norm.hh) return nullptr;
    return problem_.norm.scales_hh + (schedule_.offset[schedule_.time(s)] + i) * kNormScales;
  }

  // What is the same for all tiles of a phase.
  ForwardTile<T> tile_of(int phase, const PanelMatrix<V, Product>& matrix) const {
    const bool keeps = problem_.saved || phase + 1 < phases_ || cell_.norms_c();
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
  [[gnu::always_inline]] void finish_rows(Index s) const {
    const Index going_on = schedule_.live(s + 1), live = schedule_.live(s);
    if (going_on >= live) return;
    const auto of_c =
        cell_.layer_norm ? Worker::Share{0, units_} : unit_share(panels_.recurrent[phases_ - 1]);
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
