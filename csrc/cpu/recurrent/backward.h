// SPDX-License-Identifier: Apache-2.0
// The backward time loop. Step by step from the end: ∂L/∂h_t from the recurrent product of step
// t+1's gate gradients, with the cell's derivatives as its epilogue. After each chunk of steps, the
// gradients of the input and of all weights as products over the whole chunk.
#pragma once

#include <algorithm>

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/backward_panels.h"
#include "cpu/recurrent/backward_scratch.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/equations.h"
#include "cpu/recurrent/weight_gradients.h"
#include "cpu/recurrent/zoneout.h"
#include "cpu/team/team.h"

namespace rnnkern {

template <class V, class Product>
class Backward {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Matrix = PanelMatrix<V, Product>;
  using Panels = BackwardPanels<V, Product>;
  using Scratch = BackwardScratch<V, Product>;
  using Gradients = WeightGradients<V, Product>;

 public:
  static Index packed_bytes(const CellFacts& cell, const Parameters<T>& parameters,
                            bool with_input) {
    Arena measure(nullptr);
    Panels(cell, parameters.inputs, parameters.units, parameters.outputs, with_input, measure);
    return measure.used();
  }

  static void pack(const CellFacts& cell, const Parameters<T>& parameters, bool with_input,
                   const Worker& worker, std::byte* packed) {
    Arena arena(packed);
    Panels(cell, parameters.inputs, parameters.units, parameters.outputs, with_input, arena)
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
                    Panels(cell.facts, problem.inputs, problem.units, problem.outputs,
                           problem.dx.data != nullptr, packed_arena),
                    Scratch(cell.facts, problem, worker.count, worker.id, scratch_arena))
        .run(from);
  }

 private:
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
        outputs_(problem.outputs),
        delta_size_(delta_size(cell_, units_, outputs_)),
        worker_(worker),
        panels_(panels),
        scratch_(scratch),
        gradients_(cell_, problem, tall, worker, panels.input, panels.norm, scratch.gradients,
                   scratch.own, scratch.delta),
        cut_(schedule_.batch, tile_height(), worker.row_groups) {}

  bool projects() const { return outputs_ != units_; }
  // Whether equations need ∂L/∂h_t of other units than their own.
  bool needs_whole_dh() const { return projects() || cell_.norms_c(); }

  // The same for all products of a step, so that a row of the batch stays with its thread.
  Index tile_height() const {
    const int height = tiles_for(panels_.recurrent[0]).height();
    return projects() ? std::min(height, tiles_for(panels_.projection).height()) : height;
  }

  // For the product of a step.
  typename Product::Tiles tiles_for(const Matrix& matrix) const {
    return {matrix.width, schedule_.batch, tall_};
  }

  // Steps are counted from the end.
  Progress run(Progress at) const {
    [[maybe_unused]] const typename Product::Session session(tall_);
    if (at.steps == 0) {
      gradients_.clear();
      if (projects()) {
        const auto share = worker_.share(schedule_.batch * units_);
        for (Index j = share.begin; j < share.end; ++j) scratch_.direct[j] = T(0);
        worker_.wait_team();
      }
    }
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
    const Index weights =
        (gates_ * units_ + (projects() ? units_ : 0)) * cell_.recurrent_columns(outputs_);
    return static_cast<double>(2 * weights * schedule_.live(s)) / worker_.count;
  }

  // Numbers of state_gradients that the equations write.
  Index told() const { return ((cell_.cell_state ? 2 : 1) + gates_) * units_; }

  Index packed_row(Index s, Index i) const { return schedule_.offset[schedule_.time(s)] + i; }

  T* delta_row(const Chunk& chunk, Index s, Index i) const {
    return s < chunk.end && s >= chunk.begin
               ? scratch_.delta + (packed_row(s, i) - chunk.first_row) * delta_size_
               : scratch_.boundary + i * delta_size_;
  }

  // Rows alive at s take the gradients that step s + 1 sends; rows whose first step was s + 1 end
  // here with ∂L/∂h_0. Step -1 has only such rows. Whether the team shall break up after it.
  bool run_step(const Chunk& chunk, Index s) const {
    fill_rows(chunk, s);
    bool breaks_up = false;
    if (needs_whole_dh()) {
      find_dh(s);
      breaks_up = worker_.wait_group();
    }
    for (int phase = 0; phase < phases_; ++phase) {
      if (cell_.norms_c()) {
        run_behind_output(s);
      } else {
        run_phase(phase, s);
      }
      if (cell_.layer_norm) pass_sums(phase, s);
      // Without a product nobody reads another thread's units.
      breaks_up = cell_.recurrent_product && worker_.wait_group();
    }
    return breaks_up;
  }

  [[gnu::always_inline]] void fill_rows(const Chunk& chunk, Index s) const {
    const Index live = schedule_.live(s), after = schedule_.live(s + 1);
    for_tiles<V>(cut_, worker_, after, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        scratch_.delta_after[i] =
            s < 0 ? scratch_.boundary + i * delta_size_ : delta_row(chunk, s + 1, i);
      }
    });
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      const Index t = schedule_.time(s);
      for (Index i = begin; i < end; ++i) {
        const Place place = schedule_.at(t, i);
        const Index p = packed_row(s, i);
        scratch_.delta_now[i] = delta_row(chunk, s, i);
        scratch_.dh_now[i] =
            cell_.norms_c() ? scratch_.dh + i * units_ : scratch_.delta_now[i] + deltas_ * units_;
        scratch_.h_previous[i] = previous_h(problem_, s, i);
        scratch_.h[i] = problem_.y.at(place);
        if (problem_.dy.data) scratch_.dy[i] = problem_.dy.at(place);
        if (problem_.state_gradients) {
          scratch_.state_gradients[i] =
              problem_.state_gradients + p * (told() + (projects() ? outputs_ : 0));
        }
        if (cell_.saved > 0) scratch_.saved[i] = problem_.saved + p * cell_.saved * units_;
        if (cell_.cell_state) {
          scratch_.c_previous[i] = previous_c(problem_, s, i);
          scratch_.c[i] = (problem_.fresh_c ? problem_.fresh_c : problem_.cells) + p * units_;
        }
      }
    });
  }

  // What a product of a step multiplies: `gates` stretches of `size` numbers in each row, and how many
  // rows there are; of a recurrent one the step whose operand had factors.
  struct Multiplied {
    const T* const* rows;
    Range gates;
    Index size, count;
    Index factored = -1;
  };

  // The equations of a phase. Where h is a projection, ∂L/∂h_t is there already, and the first of
  // them takes ∂L/∂h' = ∂L/∂h_t W_hr.
  void run_phase(int phase, Index s) const {
    const Index live = schedule_.live(s);
    const auto apply = equations_.backward[phase];
    BackwardTile<T> tile = tile_of(live);
    const bool of_h = projects() && phase == 0;
    multiply_step(
        of_h ? panels_.projection : panels_.recurrent[phase],
        of_h ? Multiplied{const_cast<const T* const*>(scratch_.dh_now), {0, 1}, outputs_, live}
             : multiplied_by_gates(phase, s),
        s,
        [&](Index unit, Index units, Index begin, Index end)
            __attribute__((always_inline)) { prefetch_rows(phase, begin, end, unit, units); },
        [&](Index unit, Index blocks, Index sums_row, Index begin,
            Index end) __attribute__((always_inline)) {
          tile.first_unit = unit, tile.blocks = blocks, tile.sums_row = sums_row;
          tile.begin = begin, tile.end = end;
          const Index n = std::min(sums_row, units_ - unit), ended = std::min(end, live);
          if (phase == 0) {
            scratch_.zoned.before(problem_, s, {begin, ended}, unit, n, scratch_.own.tile,
                                  cell_.recurrent_product ? sums_row : 0,
                                  problem_.dy.data ? scratch_.dy : nullptr);
          }
          apply(tile);
          if (phase + 1 == phases_)
            scratch_.zoned.after(problem_, s, {begin, ended}, unit, n, scratch_.state_gradients);
        });
  }

  // ∂L/∂h_t, whole.
  void find_dh(Index s) const {
    const Index live = schedule_.live(s);
    const auto add = [&](const T* sums, Index i, Index j) __attribute__((always_inline)) {
      const Index n = outputs_ - j;
      T* dh = problem_.dh + schedule_.order[i] * outputs_ + j;
      V sum = V::load(sums) + load_some<V>(dh, n);
      if (i < live) {
        if (problem_.dy.data) sum = sum + load_some<V>(scratch_.dy[i] + j, n);
        store_some(scratch_.dh_now[i] + j, sum, n);
        if (problem_.state_gradients && projects())
          store_some(scratch_.state_gradients[i] + told() + j, sum, n);
        sum = V(T(0));
      }
      store_some(dh, sum, n);
    };
    multiply_step(
        panels_.recurrent[0], multiplied_by_gates(0, s), s, [](Index, Index, Index, Index) {},
        [&](Index first, Index blocks, Index sums_row, Index begin, Index end) {
          for (Index i = begin; i < end; ++i) {
            const T* sums = scratch_.own.tile + (i - begin) * sums_row;
            for (Index j = 0; j < blocks * V::size && first + j < outputs_; j += V::size)
              add(sums + j, i, first + j);
            if (i >= live || !problem_.zone_h.on()) continue;
            const Place place = schedule_.at(schedule_.time(s), i);
            put_aside<V>(drawn_at(problem_.zone_h, place, first), scratch_.dh_now[i] + first,
                         problem_.dh + schedule_.order[i] * outputs_ + first,
                         std::min(blocks * V::size, outputs_ - first));
          }
        });
  }

  // The equations where c is normalised: once ∂L/∂h_t has gone through the output gate into c, what is left of
  // it is 0.
  void run_behind_output(Index s) const {
    const Index live = schedule_.live(s), row = round_up(units_, Index{V::size});
    T* const zeros = scratch_.norm_rows;
    for (Index j = 0; j < row; ++j) zeros[j] = T(0);
    BackwardTile<T> tile = tile_of(live);
    tile.sums = zeros, tile.sums_row = 0, tile.blocks = row / V::size;
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      T* const dgates = scratch_.norm_rows + 2 * row;
      for (Index i = begin; i < end; ++i) pass_output(s, i, dgates + (i - begin) * row);
      tile.begin = begin, tile.end = end;
      equations_.backward[0](tile);
      for (Index i = begin; i < end; ++i) {
        const T* const dgate = dgates + (i - begin) * row;
        std::copy_n(dgate, units_, scratch_.delta_now[i] + cell_.output_gate * units_);
        if (!problem_.state_gradients) continue;
        T* const told = scratch_.state_gradients[i];
        std::copy_n(scratch_.dh_now[i], units_, told);
        std::copy_n(dgate, units_, told + (2 + cell_.output_gate) * units_);
      }
    });
  }

  // ∂L/∂c_t by way of h_t, added to what is there.
  void pass_output(Index s, Index i, T* dgate) const {
    const T* const by = problem_.norm.scales_hh + packed_row(s, i) * kNormScales + kNormScaleOfC;
    T* const normed = scratch_.norm_rows + round_up(units_, Index{V::size});
    T* const d = scratch_.delta_now[i] + (cell_.own_deltas + gates_) * units_;
    equations_.output_backward({.units = units_,
                                .gate = scratch_.saved[i] + cell_.output_gate * units_,
                                .c = scratch_.c[i],
                                .mean = by[0],
                                .scale = by[1],
                                .gain = panels_.norm.gain_c,
                                .shift = panels_.norm.shift_c,
                                .options = problem_.options,
                                .dh = scratch_.dh_now[i],
                                .dgate = dgate,
                                .d = d,
                                .normed = normed});
    T* const dc = problem_.dc + schedule_.order[i] * units_;
    denormalize_row<V>(d, normed, panels_.norm.gain_c, units_, by[1],
                       [&](V v, Index j, Index left) __attribute__((always_inline)) {
                         store_some(dc + j, load_some<V>(dc + j, left) + v, left);
                       });
  }

  // ∂L/∂(recurrent sums) of the blocks whose gates a phase has found the last of: those of the next phase, or
  // in the last one those of the first.
  void pass_sums(int phase, Index s) const {
    const Range gates = cell_.phases[static_cast<std::size_t>((phase + 1) % phases_)];
    for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        const Index p = packed_row(s, i);
        denormalize_deltas<V>(cell_, gates, units_, problem_.norm.hh + p * gates_ * units_,
                              problem_.norm.scales_hh + p * kNormScales, panels_.norm.gain_hh,
                              scratch_.delta_now[i]);
      }
    });
  }

  // The recurrent product of a phase: of the gradients that step s + 1 left, or in a later phase of
  // those that the one before found.
  Multiplied multiplied_by_gates(int phase, Index s) const {
    if (phase == 0) {
      const Index count = cell_.recurrent_product ? schedule_.live(s + 1) : 0;
      return {scratch_.delta_after, cell_.phases[0], units_, count, s + 1};
    }
    return {const_cast<const T* const*>(scratch_.delta_now), cell_.phases[phase], units_,
            schedule_.live(s), s};
  }

  // This thread's part of a product of step s: calls before(first column, columns, begin, end) for the
  // live rows of each tile of sums, and then use(first column, lanes of columns, from one row of the
  // sums to the next, begin, end). Rows that are not multiplied have sums of 0.
  template <class Before, class Use>
  [[gnu::always_inline]] void multiply_step(const Matrix matrix, const Multiplied& a, Index s,
                                            Before before, Use use) const {
    const auto tiles = tiles_for(matrix);
    const Index begin_panel = matrix.count() * worker_.unit_group / worker_.unit_groups;
    const Index end_panel = matrix.count() * (worker_.unit_group + 1) / worker_.unit_groups;
    const Index live = schedule_.live(s), multiplied = a.count;
    const Index rows_here = multiplied > live ? multiplied : live;
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    if constexpr (Product::kRounds) copy_step_rows(a);
    const Index most = tiles.panels(highest, end_panel - begin_panel);
    sweep(begin_panel, end_panel, most, s % 2 != 0, [&](Index p, Index side, Index next) {
      const Index out_row = side * matrix.row_size(), first = p * matrix.row_size();
      Ahead ahead = matrix.ahead(next, side);
      for_tiles<V>(cut_, worker_, rows_here, [&](Index begin, Index end) {
        const Index with_product = multiplied < end ? multiplied : end;
        before(first, out_row, begin, live < end ? live : end);
        sum_tile(a, matrix, tiles, p, side, begin, with_product, ahead);
        for (Index i = with_product > begin ? with_product : begin;
             i < end && cell_.recurrent_product; ++i) {
          T* sums = scratch_.own.tile + (i - begin) * out_row;
          for (Index j = 0; j < out_row; j += V::size) V(0).store(sums + j);
        }
        if (problem_.h_factors && a.factored >= 0)
          factor_sums<V>(problem_, outputs_, a.factored, first, out_row, begin, with_product,
                         scratch_.own.tile);
        use(first, side * matrix.blocks, out_row, begin, end);
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
            .dy = problem_.dy.data && !needs_whole_dh() && !scratch_.zoned.of_h() ? scratch_.dy
                                                                                  : nullptr,
            .dh = projects() ? scratch_.direct : problem_.dh,
            .dc = problem_.dc,
            .dh_now = scratch_.dh,
            .delta = scratch_.delta_now,
            .state_gradients = problem_.state_gradients ? scratch_.state_gradients : nullptr,
            .unit_weights = panels_.unit_weights,
            .options = problem_.options};
  }

  // What the equations will read of these units and is in no near cache.
  void prefetch_rows(int phase, Index begin, Index end, Index unit, Index units) const {
    for (Index i = begin; i < end; ++i) {
      for (int k = 0; k < cell_.saved; ++k) prefetch(scratch_.saved[i] + k * units_ + unit, units);
      if (!projects()) prefetch(scratch_.h_previous[i] + unit, units);
      if (phase == 0 && !projects()) {
        prefetch(scratch_.h[i] + unit, units);
        if (problem_.dy.data) prefetch(scratch_.dy[i] + unit, units);
      }
      if (cell_.cell_state) {
        prefetch(scratch_.c_previous[i] + unit, units);
        prefetch(scratch_.c[i] + unit, units);
      }
    }
  }

  // Rounded, the phase's gates side by side, and zeros up to the next row.
  void copy_step_rows(const Multiplied& a) const {
    const Range gates = a.gates;
    const Index size = copy_size<Product>(std::max(gates_ * units_, outputs_));
    const Index used = gates.count * a.size;
    for_tiles<V>(cut_, worker_, a.count, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {
        Operand* copy = scratch_.step_copies + i * size;
        scratch_.segment[i] = copy;
        for (int g = 0; g < gates.count; ++g) {
          Product::copy_row(a.rows[i] + cell_.recurrent_delta(gates.first + g) * a.size, a.size,
                            copy + g * a.size);
        }
        for (Index j = used; j < size; ++j) copy[j] = {};
      }
    });
  }

  // Σ over the phase's gates of delta · W_hh for rows [begin, end): where the gates do not lie side
  // by side, one stretch after another onto the same sums.
  [[gnu::always_inline]] void sum_tile(const Multiplied& a, const Matrix& matrix,
                                       const typename Product::Tiles& tiles, Index panel,
                                       Index side, Index begin, Index end, Ahead& ahead) const {
    if (begin >= end) return;
    const Range gates = a.gates;
    for (int g = 0, run; g < gates.count; g += run) {
      if constexpr (Product::kRounds) {
        run = gates.count;
      } else {
        const int first = cell_.recurrent_delta(gates.first + g);
        for (run = 1;
             g + run < gates.count && cell_.recurrent_delta(gates.first + g + run) == first + run;)
          ++run;
        for (Index i = begin; i < end; ++i) scratch_.segment[i] = a.rows[i] + first * a.size;
      }
      typename Product::Tile tile{.a = scratch_.segment + begin,
                                  .a_begin = 0,
                                  .a_step = 1,
                                  .b = matrix.row(panel, g * a.size),
                                  .b_panel = matrix.panel_stride(),
                                  .depth = run * a.size,
                                  .ahead = ahead.take(run * a.size / Product::kDepthStep),
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
      std::copy_n(delta_row(chunk, chunk.begin, i), deltas_ * units_,
                  scratch_.boundary + i * delta_size_);
    }
  }

  const CellFacts& cell_;
  const CellEquations<T>& equations_;
  const int phases_, gates_, deltas_;
  const BackwardProblem<T>& problem_;
  const Schedule& schedule_;
  const TallTiles* const tall_;
  const Index units_, outputs_;
  const Index delta_size_;  // of a row of deltas
  const Worker& worker_;
  const Panels panels_;
  const Scratch scratch_;
  const Gradients gradients_;
  const TileCut cut_;
};

}  // namespace rnnkern
