// SPDX-License-Identifier: Apache-2.0
// The backward time loop. Step by step from the end: ∂L/∂h_t from the recurrent product of step
// t+1's gate gradients, with the cell's derivatives as its epilogue. After each chunk of steps, the
// gradients of the input and of all weights as products over the whole chunk.
#pragma once

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/equations.h"
#include "cpu/recurrent/recurrent_panels.h"
#include "cpu/recurrent/weight_gradients.h"
#include "cpu/team/team.h"

namespace rnnkern {

// The panels that a backward pass reads, packed when the forward pass ran: they are its snapshot of
// the weights, which may have changed since.
template <class V, class Product>
struct BackwardPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;

  Matrix recurrent[kMostPhases];  // phase p: its gates' rows of W_hh, (count·H, H)
  Matrix input;                   // W_ih, (G·H, I)
  T* unit_weights;

  BackwardPanels(const CellFacts& cell, Index inputs, Index units, bool with_input, Arena& arena) {
    for (int p = 0; p < cell.phase_count(); ++p) {
      recurrent[p] = Matrix(cell.phases[p].count * cell.recurrent_columns(units), units, 1);
      recurrent[p].data = arena.take<T>(recurrent[p].size());
    }
    unit_weights = take_unit_weights<T>(cell, units, arena);
    // Last, so that panels packed with it serve where no ∂L/∂x is wanted.
    if (with_input) {
      input = Matrix(cell.gates * units, inputs, 1);
      input.data = arena.take<T>(input.size());
    }
  }

  void pack(const CellFacts& cell, const Parameters<T>& parameters, const Worker& worker) const {
    const Index units = parameters.units;
    for (int p = 0; p < cell.phase_count() && cell.recurrent_product; ++p) {
      const T* rows = parameters.w_hh + cell.phases[p].first * units * units;
      pack_share(recurrent[p], rows, units, worker);
    }
    if (input.data) pack_share(input, parameters.w_ih, parameters.inputs, worker);
    const auto copied = worker.share(cell.unit_weights * units);
    copy_unit_weights(parameters, unit_weights, copied.begin, copied.end);
  }

 private:
  static void pack_share(const Matrix& matrix, const T* rows, Index row_size,
                         const Worker& worker) {
    const auto share = worker.share(matrix.count());
    pack_start(matrix, share.begin, share.end, [](int) -> const T* { return nullptr; });
    pack_rows(matrix, share.begin, share.end, [&](Index k, Index column, Index n) {
      return load_some<V>(rows + k * row_size + column, n);
    });
  }
};

template <class V, class Product>
class Backward {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Matrix = PanelMatrix<V, Product>;
  using Panels = BackwardPanels<V, Product>;
  using Gradients = WeightGradients<V, Product>;

 public:
  static Index packed_bytes(const CellFacts& cell, const Parameters<T>& parameters,
                            bool with_input) {
    Arena measure(nullptr);
    Panels(cell, parameters.inputs, parameters.units, with_input, measure);
    return measure.used();
  }

  static void pack(const CellFacts& cell, const Parameters<T>& parameters, bool with_input,
                   const Worker& worker, std::byte* packed) {
    Arena arena(packed);
    Panels(cell, parameters.inputs, parameters.units, with_input, arena)
        .pack(cell, parameters, worker);
  }

  static Index scratch_bytes(const CellFacts& cell, const BackwardProblem<T>& problem,
                             int threads) {
    Arena measure(nullptr);
    Scratch(cell, problem, threads, 0, measure);
    return measure.used();
  }

  static Progress run(const LoopCell<T>& cell, const BackwardProblem<T>& problem,
                      const TallTiles* tall, const Worker& worker, Progress from, std::byte* packed,
                      std::byte* scratch) {
    Arena packed_arena(packed), scratch_arena(scratch);
    return Backward(cell, problem, tall, worker,
                    Panels(cell.facts, problem.inputs, problem.units, problem.dx.data != nullptr,
                           packed_arena),
                    Scratch(cell.facts, problem, worker.count, worker.id, scratch_arena))
        .run(from);
  }

 private:
  struct Scratch {
    // Shared by the team, and before what is not: threads may come and go between two steps.
    typename Gradients::Shared gradients;
    T* delta;     // (rows of a chunk, deltas, H)
    T* boundary;  // (B, deltas, H): the step after the chunk
    T* dh;        // (B, H): ∂L/∂h_t, from the phase that finds it to the next
    // This thread's.
    typename Gradients::Own own;
    Operand* step_copies;  // (B, G·H): rows of a step's product, where operands are rounded
    // This thread's, one entry a batch row, filled anew for each step.
    const T** delta_after;    // of the step processed next, rows of its product
    const Operand** segment;  // the same as the product takes them, moved to one gate
    T** delta_now;
    T** state_gradients;
    const T** h_previous;
    const T** h;
    const T** c_previous;
    const T** c;
    const T** saved;
    const T** dy;

    Scratch(const CellFacts& cell, const BackwardProblem<T>& problem, int threads, int id,
            Arena& arena)
        : gradients(cell, problem, arena) {
      const Index units = problem.units, batch = problem.schedule.batch;
      const Index chunk = largest_chunk(problem.schedule, kChunkRows);
      delta = arena.take<T>(chunk * cell.deltas * units);
      boundary = arena.take<T>(batch * cell.deltas * units);
      dh = arena.take<T>(cell.phase_count() > 1 ? batch * units : 0);
      for (int i = 0; i < threads; ++i) {
        const typename Gradients::Own own_i(problem, arena);
        const Operand** segment_i = arena.take<const Operand*>(batch);
        // A row's last gate may be filled up beyond the row: the next one is copied after it.
        Operand* step_copies_i = take_copies<Product>(arena, batch + 1, cell.gates * units);
        const T** in = arena.take<const T*>(7 * batch);
        T** out = arena.take<T*>(2 * batch);
        if (i != id) continue;
        own = own_i, segment = segment_i, step_copies = step_copies_i;
        delta_after = in, h_previous = in + batch, h = in + 2 * batch;
        c_previous = in + 3 * batch, c = in + 4 * batch, saved = in + 5 * batch,
        dy = in + 6 * batch;
        delta_now = out, state_gradients = out + batch;
      }
    }
  };

  Backward(const LoopCell<T>& cell, const BackwardProblem<T>& problem, const TallTiles* tall,
           const Worker& worker, const Panels& panels, const Scratch& scratch)
      : cell_(cell.facts),
        equations_(cell.equations),
        phases_(cell_.phase_count()),
        gates_(cell_.gates),
        deltas_(cell_.deltas),
        problem_(problem),
        schedule_(problem.schedule),
        tall_(tall),
        units_(problem.units),
        worker_(worker),
        panels_(panels),
        scratch_(scratch),
        gradients_(cell_, problem, tall, worker, panels.input, scratch.gradients, scratch.own,
                   scratch.delta),
        cut_(schedule_.batch, tiles_for(panels.recurrent[0]).height(), worker.row_groups) {}

  // For the product of a step.
  typename Product::Tiles tiles_for(const Matrix& matrix) const {
    return {matrix.width, schedule_.batch, tall_};
  }

  // Steps are counted from the end.
  Progress run(Progress at) const {
    [[maybe_unused]] const typename Product::Session session(tall_);
    if (at.steps == 0) gradients_.clear();
    while (at.chunks < schedule_.steps) {
      const Chunk chunk = chunk_until(schedule_, schedule_.steps - at.chunks);
      const Index steps = schedule_.steps - chunk.begin;
      while (at.steps < steps) {
        const Index s = schedule_.steps - ++at.steps;
        const bool breaks_up = run_step(chunk, s);
        worker_.progress(step_flops(s));
        if (breaks_up && at.steps < steps) return at;
      }
      worker_.wait_team();
      keep_boundary(chunk);
      const bool breaks_up = gradients_.add(chunk);
      at.chunks = at.steps;
      if (breaks_up) return at;
    }
    run_step({-1, -1, 0, 0}, -1);
    at.done = true;
    return at;
  }

  // Of a step's work, what is this thread's.
  double step_flops(Index s) const {
    const Index columns = cell_.recurrent_columns(units_);
    return static_cast<double>(2 * gates_ * units_ * columns * schedule_.live(s)) / worker_.count;
  }

  Index packed_row(Index s, Index i) const { return schedule_.offset[schedule_.time(s)] + i; }

  T* delta_row(const Chunk& chunk, Index s, Index i) const {
    return s < chunk.end && s >= chunk.begin
               ? scratch_.delta + (packed_row(s, i) - chunk.first_row) * deltas_ * units_
               : scratch_.boundary + i * deltas_ * units_;
  }

  // What row i held before processed step s.
  const T* previous_c(Index s, Index i) const {
    if (s == 0 || i >= schedule_.live(s - 1)) return problem_.c_0 + schedule_.order[i] * units_;
    return problem_.cells + packed_row(s - 1, i) * units_;
  }

  // Rows alive at s take the gradients that step s + 1 sends; rows whose first step was s + 1 end
  // here with ∂L/∂h_0. Step -1 has only such rows. Whether the team shall break up after it.
  bool run_step(const Chunk& chunk, Index s) const {
    fill_rows(chunk, s);
    bool breaks_up = false;
    for (int phase = 0; phase < phases_; ++phase) {
      run_phase(phase, s);
      // Without a product nobody reads another thread's units.
      breaks_up = cell_.recurrent_product && worker_.wait_group();
    }
    return breaks_up;
  }

  void fill_rows(const Chunk& chunk, Index s) const {
    const Index live = schedule_.live(s), after = schedule_.live(s + 1);
    for_tiles<V>(cut_, worker_, after, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        scratch_.delta_after[i] =
            s < 0 ? scratch_.boundary + i * deltas_ * units_ : delta_row(chunk, s + 1, i);
      }
    });
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      const Index t = schedule_.time(s);
      for (Index i = begin; i < end; ++i) {
        const Place place = schedule_.at(t, i);
        const Index p = packed_row(s, i);
        scratch_.delta_now[i] = delta_row(chunk, s, i);
        scratch_.h_previous[i] = previous_h(problem_, s, i);
        scratch_.h[i] = problem_.y.at(place);
        if (problem_.dy.data) scratch_.dy[i] = problem_.dy.at(place);
        if (problem_.state_gradients) {
          const int kept = (cell_.cell_state ? 2 : 1) + gates_;
          scratch_.state_gradients[i] = problem_.state_gradients + p * kept * units_;
        }
        if (cell_.saved > 0) scratch_.saved[i] = problem_.saved + p * cell_.saved * units_;
        if (cell_.cell_state) {
          scratch_.c_previous[i] = previous_c(s, i);
          scratch_.c[i] = problem_.cells + p * units_;
        }
      }
    });
  }

  void run_phase(int phase, Index s) const {
    const auto matrix = panels_.recurrent[phase];
    const auto tiles = tiles_for(matrix);
    const Index begin_panel = matrix.count() * worker_.unit_group / worker_.unit_groups;
    const Index end_panel = matrix.count() * (worker_.unit_group + 1) / worker_.unit_groups;
    const Index live = schedule_.live(s);
    const Index multiplied = !cell_.recurrent_product ? 0
                             : phase == 0             ? schedule_.live(s + 1)
                                                      : live;
    const Index rows_here = phase == 0 && multiplied > live ? multiplied : live;
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    if constexpr (Product::kRounds) copy_step_rows(phase, multiplied);
    const Index most = tiles.panels(highest, end_panel - begin_panel);
    const auto apply = equations_.backward[phase];
    BackwardTile<T> tile = tile_of(live);
    sweep(begin_panel, end_panel, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index out_row = side * matrix.row_size();
      Ahead ahead = matrix.ahead(next, side);
      tile.first_unit = p * matrix.row_size(), tile.blocks = side * matrix.blocks;
      tile.sums_row = out_row;
      for_tiles<V>(cut_, worker_, rows_here, [&](Index begin, Index end) {
        const Index with_product = multiplied < end ? multiplied : end;
        prefetch_rows(phase, begin, live < end ? live : end, tile.first_unit, out_row);
        sum_tile(phase, matrix, tiles, p, side, begin, with_product, ahead);
        for (Index i = with_product > begin ? with_product : begin;
             i < end && cell_.recurrent_product; ++i) {
          T* sums = scratch_.own.tile + (i - begin) * out_row;
          for (Index j = 0; j < out_row; j += V::size) V(0).store(sums + j);
        }
        tile.begin = begin, tile.end = end;
        apply(tile);
      });
    });
  }

  // What is the same for all tiles of a phase.
  BackwardTile<T> tile_of(Index live) const {
    return {.units = units_,
            .live = live,
            .sums = scratch_.own.tile,
            .order = schedule_.order,
            .saved = scratch_.saved,
            .h_previous = scratch_.h_previous,
            .h = scratch_.h,
            .c_previous = scratch_.c_previous,
            .c = scratch_.c,
            .dy = problem_.dy.data ? scratch_.dy : nullptr,
            .dh = problem_.dh,
            .dc = problem_.dc,
            .dh_now = scratch_.dh,
            .delta = scratch_.delta_now,
            .state_gradients = problem_.state_gradients ? scratch_.state_gradients : nullptr,
            .unit_weights = panels_.unit_weights};
  }

  // What the equations will read of these units and is in no near cache.
  void prefetch_rows(int phase, Index begin, Index end, Index unit, Index units) const {
    for (Index i = begin; i < end; ++i) {
      for (int k = 0; k < cell_.saved; ++k) prefetch(scratch_.saved[i] + k * units_ + unit, units);
      prefetch(scratch_.h_previous[i] + unit, units);
      if (phase == 0) {
        prefetch(scratch_.h[i] + unit, units);
        if (problem_.dy.data) prefetch(scratch_.dy[i] + unit, units);
      }
      if (cell_.cell_state) {
        prefetch(scratch_.c_previous[i] + unit, units);
        prefetch(scratch_.c[i] + unit, units);
      }
    }
  }

  // The gate gradients that are rows of a phase's product.
  const T* const* delta_rows(int phase) const {
    return phase == 0 ? scratch_.delta_after : const_cast<const T* const*>(scratch_.delta_now);
  }

  // Rounded, the phase's gates side by side, and zeros up to the next row.
  void copy_step_rows(int phase, Index live) const {
    const Range gates = cell_.phases[phase];
    const T* const* source = delta_rows(phase);
    const Index size = copy_size<Product>(gates_ * units_), used = gates.count * units_;
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        Operand* copy = scratch_.step_copies + i * size;
        scratch_.segment[i] = copy;
        for (int g = 0; g < gates.count; ++g) {
          Product::copy_row(source[i] + cell_.recurrent_delta(gates.first + g) * units_, units_,
                            copy + g * units_);
        }
        for (Index j = used; j < size; ++j) copy[j] = {};
      }
    });
  }

  // Σ over the phase's gates of delta · W_hh for rows [begin, end): where the gates do not lie side
  // by side, one stretch after another onto the same sums.
  void sum_tile(int phase, const Matrix& matrix, const typename Product::Tiles& tiles, Index panel,
                Index side, Index begin, Index end, Ahead& ahead) const {
    if (begin >= end) return;
    const Range gates = cell_.phases[phase];
    for (int g = 0, run; g < gates.count; g += run) {
      if constexpr (Product::kRounds) {
        run = gates.count;
      } else {
        const int first = cell_.recurrent_delta(gates.first + g);
        for (run = 1;
             g + run < gates.count && cell_.recurrent_delta(gates.first + g + run) == first + run;)
          ++run;
        for (Index i = begin; i < end; ++i)
          scratch_.segment[i] = delta_rows(phase)[i] + first * units_;
      }
      typename Product::Tile tile{.a = scratch_.segment + begin,
                                  .a_begin = 0,
                                  .a_step = 1,
                                  .b = matrix.row(panel, g * units_),
                                  .b_panel = matrix.panel_stride(),
                                  .depth = run * units_,
                                  .ahead = ahead.take(run * units_ / Product::kDepthStep),
                                  .start = matrix.start(panel),
                                  .start_row = 0,
                                  .start_panel = matrix.stride(),
                                  .add = g > 0,
                                  .out = scratch_.own.tile,
                                  .out_row = side * matrix.row_size(),
                                  .out_panel = matrix.row_size()};
      if (g > 0)
        tile.start = tile.out, tile.start_row = tile.out_row, tile.start_panel = tile.out_panel;
      tiles.multiply(static_cast<int>(end - begin), static_cast<int>(side), tile);
    }
  }

  // The chunk's first step is what the next chunk's last one needs; the rest is overwritten.
  void keep_boundary(const Chunk& chunk) const {
    const auto share = worker_.share(schedule_.live(chunk.begin));
    for (Index i = share.begin; i < share.end; ++i) {
      const T* from = delta_row(chunk, chunk.begin, i);
      T* to = scratch_.boundary + i * deltas_ * units_;
      for (Index j = 0; j < deltas_ * units_; ++j) to[j] = from[j];
    }
  }

  const CellFacts& cell_;
  const CellEquations<T>& equations_;
  const int phases_, gates_, deltas_;
  const BackwardProblem<T>& problem_;
  const Schedule& schedule_;
  const TallTiles* const tall_;
  const Index units_;
  const Worker& worker_;
  const Panels panels_;
  const Scratch scratch_;
  const Gradients gradients_;
  const TileCut cut_;
};

}  // namespace rnnkern
