// SPDX-License-Identifier: Apache-2.0
// The backward time loop. Step by step from the end: ∂L/∂h_t from the recurrent product of step
// t+1's gate gradients, with the cell's derivatives as its epilogue. After each chunk of steps, the
// gradients of the input and of all weights as products over the whole chunk.
#pragma once

#include "core/cell.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/cell_io.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/weight_gradients.h"
#include "cpu/team/team.h"

namespace rnnkern {

// The panels that a backward pass reads, packed when the forward pass ran: they are its snapshot of
// the weights, which may have changed since.
template <class V, class Cell, class Product>
struct BackwardPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;

  Matrix recurrent[phase_count<Cell>];  // phase p: its gates' rows of W_hh, (count·H, H)
  Matrix input;                         // W_ih, (G·H, I)

  BackwardPanels(Index inputs, Index units, bool with_input, Arena& arena) {
    for (int p = 0; p < phase_count<Cell>; ++p) {
      recurrent[p] = Matrix(Cell::phases[p].count * units, units, 1);
      recurrent[p].data = arena.take<T>(recurrent[p].size());
    }
    // Last, so that panels packed with it serve where no ∂L/∂x is wanted.
    if (with_input) {
      input = Matrix(Cell::gates * units, inputs, 1);
      input.data = arena.take<T>(input.size());
    }
  }

  void pack(const Parameters<T>& parameters, const Worker& worker) const {
    const Index units = parameters.units;
    for (int p = 0; p < phase_count<Cell>; ++p) {
      const T* rows = parameters.w_hh + Cell::phases[p].first * units * units;
      pack_share(recurrent[p], rows, units, worker);
    }
    if (input.data) pack_share(input, parameters.w_ih, parameters.inputs, worker);
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

template <class V, class Cell, class Product>
class Backward {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Matrix = PanelMatrix<V, Product>;
  using Panels = BackwardPanels<V, Cell, Product>;
  using Gradients = WeightGradients<V, Cell, Product>;
  static constexpr int kPhases = phase_count<Cell>;
  static constexpr int kGates = Cell::gates;
  static constexpr int kDeltas = delta_count<Cell>;

 public:
  static Index packed_bytes(const Parameters<T>& parameters, bool with_input) {
    Arena measure(nullptr);
    Panels(parameters.inputs, parameters.units, with_input, measure);
    return measure.used();
  }

  static void pack(const Parameters<T>& parameters, bool with_input, const Worker& worker,
                   std::byte* packed) {
    Arena arena(packed);
    Panels(parameters.inputs, parameters.units, with_input, arena).pack(parameters, worker);
  }

  static Index scratch_bytes(const BackwardProblem<T>& problem, int threads) {
    Arena measure(nullptr);
    Scratch(problem, threads, 0, measure);
    return measure.used();
  }

  static Progress run(const BackwardProblem<T>& problem, const TallTiles* tall,
                      const Worker& worker, Progress from, std::byte* packed, std::byte* scratch) {
    Arena packed_arena(packed), scratch_arena(scratch);
    return Backward(problem, tall, worker,
                    Panels(problem.inputs, problem.units, problem.dx.data != nullptr, packed_arena),
                    Scratch(problem, worker.count, worker.id, scratch_arena))
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
    const T** cell;
    const T** saved;
    const T** dy;

    Scratch(const BackwardProblem<T>& problem, int threads, int id, Arena& arena)
        : gradients(problem, arena) {
      const Index units = problem.units, batch = problem.schedule.batch;
      const Index chunk = largest_chunk(problem.schedule, kChunkRows);
      delta = arena.take<T>(chunk * kDeltas * units);
      boundary = arena.take<T>(batch * kDeltas * units);
      dh = arena.take<T>(kPhases > 1 ? batch * units : 0);
      for (int i = 0; i < threads; ++i) {
        const typename Gradients::Own own_i(problem, arena);
        const Operand** segment_i = arena.take<const Operand*>(batch);
        // A row's last gate may be filled up beyond the row: the next one is copied after it.
        Operand* step_copies_i = take_copies<Product>(arena, batch + 1, kGates * units);
        const T** in = arena.take<const T*>(7 * batch);
        T** out = arena.take<T*>(2 * batch);
        if (i != id) continue;
        own = own_i, segment = segment_i, step_copies = step_copies_i;
        delta_after = in, h_previous = in + batch, h = in + 2 * batch;
        c_previous = in + 3 * batch, cell = in + 4 * batch, saved = in + 5 * batch,
        dy = in + 6 * batch;
        delta_now = out, state_gradients = out + batch;
      }
    }
  };

  Backward(const BackwardProblem<T>& problem, const TallTiles* tall, const Worker& worker,
           const Panels& panels, const Scratch& scratch)
      : problem_(problem),
        schedule_(problem.schedule),
        tall_(tall),
        units_(problem.units),
        worker_(worker),
        panels_(panels),
        scratch_(scratch),
        gradients_(problem, tall, worker, panels.input, scratch.gradients, scratch.own,
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
      gradients_.add(chunk);
      at.chunks = at.steps;
      const bool breaks_up = worker_.wait_team();
      gradients_.collect(chunk);
      if (breaks_up) return at;
    }
    run_step({-1, -1, 0, 0}, -1);
    at.done = true;
    return at;
  }

  // Of a step's work, what is this thread's.
  double step_flops(Index s) const {
    return static_cast<double>(2 * kGates * units_ * units_ * schedule_.live(s)) / worker_.count;
  }

  Index packed_row(Index s, Index i) const { return schedule_.offset[schedule_.time(s)] + i; }

  T* delta_row(const Chunk& chunk, Index s, Index i) const {
    return s < chunk.end && s >= chunk.begin
               ? scratch_.delta + (packed_row(s, i) - chunk.first_row) * kDeltas * units_
               : scratch_.boundary + i * kDeltas * units_;
  }

  // What row i held before processed step s.
  const T* previous_c(Index s, Index i) const {
    if (s == 0 || i >= schedule_.live(s - 1)) return problem_.c_0 + schedule_.order[i] * units_;
    return problem_.cells + packed_row(s - 1, i) * units_;
  }

  // Rows alive at s take the gradients that step s + 1 sends; rows whose first step was s + 1 end
  // here with ∂L/∂h_0. Step -1 has only such rows. Whether the team shall break up after it.
  bool run_step(const Chunk& chunk, Index s) const {
    static_assert(kPhases <= 2);
    fill_rows(chunk, s);
    run_phase<0>(s);
    const bool breaks_up = worker_.wait_group();
    if constexpr (kPhases == 1) {
      return breaks_up;
    } else {
      run_phase<1>(s);
      return worker_.wait_group();
    }
  }

  void fill_rows(const Chunk& chunk, Index s) const {
    const Index live = schedule_.live(s), after = schedule_.live(s + 1);
    for_tiles<V>(cut_, worker_, after, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        scratch_.delta_after[i] =
            s < 0 ? scratch_.boundary + i * kDeltas * units_ : delta_row(chunk, s + 1, i);
      }
    });
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      const Index t = schedule_.time(s);
      for (Index i = begin; i < end; ++i) {
        const Index b = schedule_.order[i], p = packed_row(s, i);
        scratch_.delta_now[i] = delta_row(chunk, s, i);
        scratch_.h_previous[i] = previous_h(problem_, s, i);
        scratch_.h[i] = problem_.y.at(t, b);
        scratch_.dy[i] = problem_.dy.data ? problem_.dy.at(t, b) : nullptr;
        if (problem_.state_gradients) {
          constexpr int kept = (has_c<Cell> ? 2 : 1) + kGates;
          scratch_.state_gradients[i] = problem_.state_gradients + p * kept * units_;
        }
        if constexpr (Cell::saved > 0)
          scratch_.saved[i] = problem_.saved + p * Cell::saved * units_;
        if constexpr (has_c<Cell>) {
          scratch_.c_previous[i] = previous_c(s, i);
          scratch_.cell[i] = problem_.cells + p * units_;
        }
      }
    });
  }

  template <int P>
  void run_phase(Index s) const {
    const auto& matrix = panels_.recurrent[P];
    const auto tiles = tiles_for(matrix);
    const Index begin_panel = matrix.count() * worker_.unit_group / worker_.unit_groups;
    const Index end_panel = matrix.count() * (worker_.unit_group + 1) / worker_.unit_groups;
    const Index live = schedule_.live(s);
    const Index multiplied = P == 0 ? schedule_.live(s + 1) : live;
    const Index rows_here = P == 0 && multiplied > live ? multiplied : live;
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    if constexpr (Product::kRounds) copy_step_rows<P>(multiplied);
    const Index most = tiles.panels(highest, end_panel - begin_panel);
    sweep(begin_panel, end_panel, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index out_row = side * matrix.row_size();
      Ahead ahead = matrix.ahead(next, side);
      for_tiles<V>(cut_, worker_, rows_here, [&](Index begin, Index end) {
        const Index with_product = multiplied < end ? multiplied : end;
        prefetch_rows<P>(begin, live < end ? live : end, p * matrix.row_size(), out_row);
        sum_tile<P>(matrix, tiles, p, side, begin, with_product, ahead);
        for (Index i = with_product > begin ? with_product : begin; i < end; ++i) {
          T* sums = scratch_.own.tile + (i - begin) * out_row;
          for (Index j = 0; j < out_row; j += V::size) V(0).store(sums + j);
        }
        for (Index block = 0; block < side * matrix.blocks; ++block) {
          const Index unit = p * matrix.row_size() + block * V::size;
          const T* sums = scratch_.own.tile + block * V::size;
          if (unit + V::size <= units_) {
            apply_cell<P>(WholeLane<V>{}, sums, out_row, begin, end, live, unit);
          } else if (unit < units_) {
            apply_cell<P>(PartLane<V>{units_ - unit}, sums, out_row, begin, end, live, unit);
          }
        }
      });
    });
  }

  // What apply_cell will read of these units and is in no near cache.
  template <int P>
  void prefetch_rows(Index begin, Index end, Index unit, Index units) const {
    for (Index i = begin; i < end; ++i) {
      for (int k = 0; k < Cell::saved; ++k) prefetch(scratch_.saved[i] + k * units_ + unit, units);
      prefetch(scratch_.h_previous[i] + unit, units);
      if constexpr (P == 0) {
        prefetch(scratch_.h[i] + unit, units);
        if (scratch_.dy[i]) prefetch(scratch_.dy[i] + unit, units);
      }
      if constexpr (has_c<Cell>) {
        prefetch(scratch_.c_previous[i] + unit, units);
        prefetch(scratch_.cell[i] + unit, units);
      }
    }
  }

  // The gate gradients that are rows of a phase's product.
  template <int P>
  const T* const* delta_rows() const {
    return P == 0 ? scratch_.delta_after : const_cast<const T* const*>(scratch_.delta_now);
  }

  // Rounded, the phase's gates side by side, and zeros up to the next row.
  template <int P>
  void copy_step_rows(Index live) const {
    constexpr Range phase = Cell::phases[P];
    const T* const* source = delta_rows<P>();
    const Index size = copy_size<Product>(kGates * units_), used = phase.count * units_;
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        Operand* copy = scratch_.step_copies + i * size;
        scratch_.segment[i] = copy;
        for (int g = 0; g < phase.count; ++g) {
          Product::copy_row(source[i] + recurrent_delta<Cell>(phase.first + g) * units_, units_,
                            copy + g * units_);
        }
        for (Index j = used; j < size; ++j) copy[j] = {};
      }
    });
  }

  // Σ over the phase's gates of delta · W_hh for rows [begin, end): where the gates do not lie side
  // by side, one stretch after another onto the same sums.
  template <int P>
  void sum_tile(const Matrix& matrix, const typename Product::Tiles& tiles, Index panel, Index side,
                Index begin, Index end, Ahead& ahead) const {
    if (begin >= end) return;
    constexpr Range phase = Cell::phases[P];
    for (int g = 0, run; g < phase.count; g += run) {
      if constexpr (Product::kRounds) {
        run = phase.count;
      } else {
        const int first = recurrent_delta<Cell>(phase.first + g);
        for (run = 1;
             g + run < phase.count && recurrent_delta<Cell>(phase.first + g + run) == first + run;)
          ++run;
        for (Index i = begin; i < end; ++i)
          scratch_.segment[i] = delta_rows<P>()[i] + first * units_;
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

  template <int P, class Lane>
  void apply_cell(Lane lane, const T* sums, Index sums_row, Index begin, Index end, Index live,
                  Index unit) const {
    for (Index i = begin; i < end; ++i, sums += sums_row) {
      const Index state = schedule_.order[i] * units_ + unit;
      T* dh = problem_.dh + state;
      const V product = V::load(sums);
      if (i >= live) {
        lane.store(dh, lane.load(dh) + product);
        continue;
      }
      BackwardPlace<T> at{.units = units_,
                          .saved = nullptr,
                          .h_previous = scratch_.h_previous[i] + unit,
                          .h = scratch_.h[i] + unit,
                          .c_previous = nullptr,
                          .c = nullptr,
                          .dy = scratch_.dy[i] ? scratch_.dy[i] + unit : nullptr,
                          .dh = dh,
                          .dc = nullptr,
                          .dh_now = nullptr,
                          .delta = scratch_.delta_now[i] + unit,
                          .state_gradients = problem_.state_gradients
                                                 ? scratch_.state_gradients[i] + unit
                                                 : nullptr};
      if constexpr (Cell::saved > 0) at.saved = scratch_.saved[i] + unit;
      if constexpr (kPhases > 1) at.dh_now = scratch_.dh + i * units_ + unit;
      if constexpr (has_c<Cell>) {
        at.c_previous = scratch_.c_previous[i] + unit, at.c = scratch_.cell[i] + unit;
        at.dc = problem_.dc + state;
      }
      backward_cell<P, V, Cell>(lane, product, at);
    }
  }

  // The chunk's first step is what the next chunk's last one needs; the rest is overwritten.
  void keep_boundary(const Chunk& chunk) const {
    const auto share = worker_.share(schedule_.live(chunk.begin));
    for (Index i = share.begin; i < share.end; ++i) {
      const T* from = delta_row(chunk, chunk.begin, i);
      T* to = scratch_.boundary + i * kDeltas * units_;
      for (Index j = 0; j < kDeltas * units_; ++j) to[j] = from[j];
    }
  }

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
