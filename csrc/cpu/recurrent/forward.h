// SPDX-License-Identifier: Apache-2.0
// The forward time loop: W_ih x for a chunk of steps as one product, then step by step the
// recurrent product with the cell's equations as its epilogue.
#pragma once

#include "core/cell.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/cell_io.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/recurrent_panels.h"
#include "cpu/team/team.h"

namespace rnnkern {

// The panels that a forward pass reads. A frozen layer keeps them from call to call.
template <class V, class Cell, class Product>
struct ForwardPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;

  Matrix input;
  Matrix recurrent[phase_count<Cell>];

  ForwardPanels(const Parameters<T>& parameters, bool with_input, Arena& arena) {
    const Index units = parameters.units;
    for (int p = 0; p < phase_count<Cell>; ++p) {
      recurrent[p] = Matrix(units, units, Cell::phases[p].count);
      recurrent[p].data = arena.take<T>(recurrent[p].size());
    }
    // Last, so that panels packed with it serve tokens as well.
    if (with_input) {
      input = Matrix(parameters.inputs, Cell::gates * units, 1);
      input.data = arena.take<T>(input.size());
    }
  }

  // Each thread packs the units that it will multiply with, so that they are in its own cache.
  void pack(const Parameters<T>& parameters, const Worker& worker) const {
    if (input.data) {
      const auto share = worker.share(input.count());
      pack_start(input, share.begin, share.end, [&](int) { return parameters.bias; });
      pack_columns(input, share.begin, share.end,
                   [&](int, Index column) { return parameters.w_ih + column * parameters.inputs; });
    }
    for (int p = 0; p < phase_count<Cell>; ++p) {
      const auto share = worker.share(recurrent[p].groups());
      pack_recurrent<Cell>(recurrent[p], parameters, p, share.begin, share.end);
    }
  }
};

template <class V, class Cell, class Product>
class Forward {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Panels = ForwardPanels<V, Cell, Product>;
  static constexpr int kPhases = phase_count<Cell>;
  static constexpr int kGates = Cell::gates;
  static constexpr Index kPackedColumns = 64;  // of W_ih, at a time

 public:
  static Index packed_bytes(const Parameters<T>& parameters, bool with_input) {
    Arena measure(nullptr);
    Panels(parameters, with_input, measure);
    return measure.used();
  }

  static void pack(const Parameters<T>& parameters, bool with_input, const Worker& worker,
                   std::byte* packed) {
    Arena arena(packed);
    Panels(parameters, with_input, arena).pack(parameters, worker);
  }

  static Index scratch_bytes(const ForwardProblem<T>& problem, int threads) {
    Arena measure(nullptr);
    Scratch(problem, threads, 0, measure);
    return measure.used();
  }

  static Progress run(const ForwardProblem<T>& problem, const TallTiles* tall, const Worker& worker,
                      Progress from, std::byte* packed, std::byte* scratch) {
    return Forward(problem, tall, worker, packed, scratch).run(from);
  }

 private:
  struct Scratch {
    // Shared by the team.
    T* x_part;          // (rows of a chunk, G·H): W_ih x + b; with tokens (distinct tokens, G·H)
    T* operand;         // (B, H): what a later phase's product takes
    T* saved;           // (B, saved, H): one step's, where no backward pass wants them
    Operand* x_copies;  // (rows of a chunk, I), where operands are rounded
    // This thread's.
    T* tile;
    T* input_panels;      // some of W_ih's, where they are packed as they are needed
    const Operand** a;    // (rows of a chunk): rows of the product W_ih x, in and
    T** c;                // out
    const Operand** h_a;  // (B): rows of a step's product, where operands are rounded: those of
    Operand* h_copies;    // (B, H)
    // This thread's, one entry a batch row, filled anew for each step.
    const T** h;
    const T** operand_rows;
    const T** x;
    const T** c_previous;
    T** cell;
    T** y;
    T** saved_rows;

    Scratch(const ForwardProblem<T>& problem, int threads, int id, Arena& arena) {
      const Index units = problem.parameters.units, batch = problem.schedule.batch;
      const Index chunk = largest_chunk(problem.schedule, chunk_rows(problem));
      x_part = arena.take<T>((problem.tokens.slot ? problem.tokens.count : chunk) * kGates * units);
      operand = arena.take<T>(kPhases > 1 ? batch * units : 0);
      saved = arena.take<T>(kPhases > 1 && !problem.saved ? batch * Cell::saved * units : 0);
      const Index x_row = problem.tokens.slot ? 0 : problem.parameters.inputs;
      x_copies = take_copies<Product>(arena, chunk, x_row);
      for (int i = 0; i < threads; ++i) {
        T* tile_i = arena.take<T>(tile_scratch<V>());
        T* input_panels_i = arena.take<T>(packs_inputs(problem) ? input_panels_size(problem) : 0);
        const Operand** a_i = arena.take<const Operand*>(chunk);
        T** c_i = arena.take<T*>(chunk);
        const Operand** h_a_i = arena.take<const Operand*>(Product::kRounds ? batch : 0);
        Operand* h_copies_i = take_copies<Product>(arena, batch, units);
        const T** in = arena.take<const T*>(4 * batch);
        T** out = arena.take<T*>(3 * batch);
        if (i != id) continue;
        tile = tile_i, input_panels = input_panels_i, a = a_i, c = c_i, h_a = h_a_i,
        h_copies = h_copies_i;
        h = in, operand_rows = in + batch, x = in + 2 * batch, c_previous = in + 3 * batch;
        cell = out, y = out + batch, saved_rows = out + 2 * batch;
      }
    }
  };

  Forward(const ForwardProblem<T>& problem, const TallTiles* tall, const Worker& worker,
          std::byte* packed, std::byte* scratch)
      : problem_(problem),
        schedule_(problem.schedule),
        tall_(tall),
        units_(problem.parameters.units),
        worker_(worker),
        panels_(make_panels(problem, packed)),
        scratch_(make_scratch(problem, worker, scratch)),
        cut_(schedule_.batch, tile_height(), worker.row_groups) {}

  // Half as many where W_ih x then stays in the L2 cache or nearly does; where it would not, the
  // panels of W_ih are read for twice as many rows at once.
  static Index chunk_rows(const ForwardProblem<T>& problem) {
    constexpr Index kShortRow = 5 << 10;  // bytes of W_ih x
    const Index row = kGates * problem.parameters.units * static_cast<Index>(sizeof(T));
    return problem.input_packed && row <= kShortRow ? kChunkRows / 2 : kChunkRows;
  }

  static Panels make_panels(const ForwardProblem<T>& problem, std::byte* packed) {
    Arena arena(packed);
    return Panels(problem.parameters, problem.input_packed, arena);
  }
  static Scratch make_scratch(const ForwardProblem<T>& problem, const Worker& worker,
                              std::byte* base) {
    Arena arena(base);
    return Scratch(problem, worker.count, worker.id, arena);
  }

  typename Product::Tiles tiles_for(const PanelMatrix<V, Product>& matrix) const {
    return {matrix.width, schedule_.batch, tall_};
  }

  // The same for all phases, so that a row of the batch stays with its thread and its cache.
  int tile_height() const {
    int height = kMaxTileRows;
    for (const auto& matrix : panels_.recurrent) {
      const int rows = tiles_for(matrix).height();
      if (rows < height) height = rows;
    }
    return height;
  }

  Progress run(Progress at) const {
    [[maybe_unused]] const typename Product::Session session(tall_);
    if (problem_.tokens.slot && at.steps == 0 && !at.inside) gather_tokens();
    while (at.chunks < schedule_.steps) {
      const Chunk chunk = chunk_from(schedule_, at.chunks, chunk_rows(problem_));
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
        const bool breaks_up = run_phases<0>(s);
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
    return static_cast<double>(2 * kGates * units_ * units_ * schedule_.live(s)) / worker_.count;
  }

  // One row of W_ih's columns, bias added, for each distinct token.
  void gather_tokens() const {
    const auto& parameters = problem_.parameters;
    const Index size = kGates * units_;
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
          scratch_.c[p - first] = scratch_.x_part + (p - chunk.first_row) * kGates * units_;
        });
    multiply(panels_.input, typename Product::Tiles(panels_.input.width, chunk.rows(), tall_),
             scratch_.a, scratch_.c, kGates * units_, share.end - share.begin, false, scratch_.tile,
             worker_);
  }

  // x_t of packed row p as the product takes it; of those that are copied, `copies` makes the copy.
  const Operand* input_row(const Chunk& chunk, Index p, Index t, Index i, bool copies) const {
    const Index inputs = problem_.parameters.inputs;
    Operand* copy = scratch_.x_copies + (p - chunk.first_row) * copy_size<Product>(inputs);
    if (Product::kRounds && !copies) return copy;
    return Product::copy_row(problem_.x.at(t, schedule_.order[i]), inputs, copy);
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
    const Index columns = kGates * units_, rows = chunk.rows();
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
        scratch_.x[i] = scratch_.x_part + x_row * kGates * units_;
        scratch_.h[i] = first ? problem_.h + b * units_ : problem_.y.at(schedule_.time(s - 1), b);
        scratch_.y[i] = problem_.y.at(t, b);
        if constexpr (has_c<Cell>) {
          scratch_.cell[i] = problem_.cells ? problem_.cells + p * units_ : problem_.c + b * units_;
          scratch_.c_previous[i] =
              first || !problem_.cells
                  ? problem_.c + b * units_
                  : problem_.cells + (schedule_.offset[schedule_.time(s - 1)] + i) * units_;
        }
        if constexpr (Cell::saved > 0) {
          scratch_.saved_rows[i] = problem_.saved ? problem_.saved + p * Cell::saved * units_
                                   : kPhases > 1  ? scratch_.saved + i * Cell::saved * units_
                                                  : nullptr;
        }
        if constexpr (kPhases > 1) scratch_.operand_rows[i] = scratch_.operand + i * units_;
      }
    });
  }

  // Whether the team shall break up after this step.
  template <int P>
  bool run_phases(Index s) const {
    run_phase<P>(s);
    const bool breaks_up = worker_.wait_group();
    if constexpr (P + 1 < kPhases) {
      return run_phases<P + 1>(s);
    } else {
      return breaks_up;
    }
  }

  // This thread's groups of a phase.
  Worker::Share group_share(const PanelMatrix<V, Product>& matrix) const {
    const Index count = matrix.groups();
    return {count * worker_.unit_group / worker_.unit_groups,
            count * (worker_.unit_group + 1) / worker_.unit_groups};
  }

  // The rows of A of a phase's product.
  template <int P>
  const Operand* const* operand_rows(Index s) const {
    const T* const* rows = P == 0 ? scratch_.h : scratch_.operand_rows;
    if constexpr (Product::kRounds) {
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i) {
          scratch_.h_a[i] = Product::copy_row(rows[i], units_,
                                              scratch_.h_copies + i * copy_size<Product>(units_));
        }
      });
      return scratch_.h_a;
    } else {
      return rows;
    }
  }

  template <int P>
  void run_phase(Index s) const {
    const auto& matrix = panels_.recurrent[P];
    const auto tiles = tiles_for(matrix);
    const Operand* const* a = operand_rows<P>(s);
    const auto share = group_share(matrix);
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    const Index most = groups_together(matrix, tiles, highest, share.end - share.begin);
    sweep(share.begin, share.end, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index panels = side * matrix.panels(), sums_row = panels * matrix.row_size();
      Ahead ahead = matrix.ahead(next * matrix.panels(), panels);
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        const int rows = static_cast<int>(end - begin);
        prefetch_rows<P>(begin, end, p * matrix.group_units(), side * matrix.group_units());
        multiply_panels(matrix, tiles, a + begin, rows, p * matrix.panels(), panels, ahead,
                        scratch_.tile);
        for (Index block = 0; block < side * matrix.blocks; ++block) {
          const Index unit = p * matrix.group_units() + block * V::size;
          const T* sums = scratch_.tile + block_sums(matrix, block);
          if (unit + V::size <= units_) {
            apply_cell<P>(WholeLane<V>{}, sums, sums_row, matrix.blocks, begin, rows, unit);
          } else if (unit < units_) {
            apply_cell<P>(PartLane<V>{units_ - unit}, sums, sums_row, matrix.blocks, begin, rows,
                          unit);
          }
        }
      });
    });
  }

  // What apply_cell will read of these units and is in no near cache.
  template <int P>
  void prefetch_rows(Index begin, Index end, Index unit, Index units) const {
    constexpr Range phase = Cell::phases[P];
    for (Index i = begin; i < end; ++i) {
      for (int g = phase.first; g < phase.first + phase.count; ++g)
        prefetch(scratch_.x[i] + g * units_ + unit, units);
      if constexpr (has_c<Cell>) prefetch(scratch_.c_previous[i] + unit, units);
    }
  }

  // The cell's equations on `rows` rows of one lane of units; gate g's sums stand g·blocks lanes
  // on.
  template <int P, class Lane>
  void apply_cell(Lane lane, const T* sums, Index sums_row, int blocks, Index begin, int rows,
                  Index unit) const {
    constexpr int first = Cell::phases[P].first;
    for (int r = 0; r < rows; ++r, sums += sums_row) {
      const Index i = begin + r;
      T* saved =
          Cell::saved > 0 && scratch_.saved_rows[i] ? scratch_.saved_rows[i] + unit : nullptr;
      ForwardPlace<T> at{.x = scratch_.x[i] + first * units_ + unit,
                         .x_gate = units_,
                         .sums = sums,
                         .sums_gate = Index{blocks} * V::size,
                         .h = scratch_.h[i] + unit,
                         .c = nullptr,
                         .saved_before = saved,
                         .saved = saved,
                         .units = units_,
                         .operand = nullptr,
                         .new_h = scratch_.y[i] + unit,
                         .new_c = nullptr};
      if constexpr (P + 1 < kPhases) at.operand = scratch_.operand + i * units_ + unit;
      if constexpr (has_c<Cell>)
        at.c = scratch_.c_previous[i] + unit, at.new_c = scratch_.cell[i] + unit;
      forward_cell<P, V, Cell>(lane, at);
    }
  }

  // Rows that end with this step leave their last state behind: the units that this thread wrote.
  void finish_rows(Index s) const {
    const auto& matrix = panels_.recurrent[kPhases - 1];
    const auto share = group_share(matrix);
    const Index begin_unit = share.begin * matrix.group_units();
    const Index last = share.end * matrix.group_units(), end_unit = last < units_ ? last : units_;
    const Index going_on = schedule_.live(s + 1), live = schedule_.live(s);
    if (going_on >= live) return;
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      for (Index i = begin > going_on ? begin : going_on; i < end; ++i) {
        const Index b = schedule_.order[i];
        for (Index u = begin_unit; u < end_unit; ++u) problem_.h[b * units_ + u] = scratch_.y[i][u];
        if constexpr (has_c<Cell>) {
          if (!problem_.cells) continue;
          for (Index u = begin_unit; u < end_unit; ++u)
            problem_.c[b * units_ + u] = scratch_.cell[i][u];
        }
      }
    });
  }

  const ForwardProblem<T>& problem_;
  const Schedule& schedule_;
  const TallTiles* const tall_;
  const Index units_;
  const Worker& worker_;
  const Panels panels_;
  const Scratch scratch_;
  const TileCut cut_;
};

}  // namespace rnnkern
