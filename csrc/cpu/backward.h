// SPDX-License-Identifier: Apache-2.0
// The backward time loop. Step by step from the end: ∂L/∂h_t from the recurrent product of step
// t+1's gate gradients, with the cell's derivatives as its epilogue. After each run of steps, the
// gradients of the input and of all weights as products over the whole run.
#pragma once

#include "core/cell.h"
#include "core/problem.h"
#include "core/team.h"
#include "cpu/forward.h"
#include "cpu/panels.h"

namespace rnnkern {

// The panels that a backward pass reads, packed when the forward pass ran: they are its snapshot of the
// weights, which may have changed since.
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

  static Progress run(const BackwardProblem<T>& problem, const Worker& worker, Progress from,
                      std::byte* packed, std::byte* scratch) {
    Arena packed_arena(packed), scratch_arena(scratch);
    return Backward(problem, worker,
                    Panels(problem.inputs, problem.units, problem.dx.data != nullptr, packed_arena),
                    Scratch(problem, worker.count, worker.id, scratch_arena))
        .run(from);
  }

 private:
  struct Gradients {
    T *dw_ih, *dw_hh, *dbias, *dbias_hn;
  };

  // So many rows are summed by themselves: the shorter the sums, the fewer digits they lose. A token's
  // gradient has one addend a row; the others are sums of the products' sums.
  static constexpr Index kSumRows = 1 << 14, kTokenSumRows = 1 << 10;

  static bool many_rows(const Schedule& s) { return s.offset[s.steps] > kSumRows; }

  struct Scratch {
    // Shared by the team.
    Matrix inputs;             // x of a chunk, (rows, I)
    Matrix operands[kPhases];  // operand(p) of a chunk, (rows, H)
    T* delta;                  // (rows of a chunk, deltas, H)
    T* boundary;               // (B, deltas, H): the step after the chunk
    T* dh;                     // (B, H): ∂L/∂h_t, from the phase that finds it to the next
    T* token_gradient;         // (distinct tokens, G·H)
    Gradients recent;          // of the latest rows, where there are many
    Operand* packed_delta;     // the chunk's deltas transposed, by tiles of gate rows
    Operand* delta_copies;     // (rows of a chunk, G·H), where operands are rounded
    // This thread's.
    T* tile;
    const Operand** a;     // rows of a product over a chunk, in and
    T** c;                 // out
    const T** source;      // (rows of a chunk): rows that a chunk's panels are packed from
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

    Scratch(const BackwardProblem<T>& problem, int threads, int id, Arena& arena) {
      const Index units = problem.units, batch = problem.schedule.batch;
      const Index chunk = largest_chunk(problem.schedule, kChunkRows);
      const auto take = [&](Matrix matrix) {
        matrix.data = arena.take<T>(matrix.size());
        return matrix;
      };
      for (int p = 0; p < kPhases; ++p) operands[p] = take(Matrix(chunk, units, 1));
      if (!problem.tokens.slot) inputs = take(Matrix(chunk, problem.inputs, 1));
      delta = arena.take<T>(chunk * kDeltas * units);
      boundary = arena.take<T>(batch * kDeltas * units);
      dh = arena.take<T>(kPhases > 1 ? batch * units : 0);
      token_gradient =
          arena.take<T>(problem.tokens.slot ? problem.tokens.count * kGates * units : 0);
      const Index recent_rows = many_rows(problem.schedule) ? kGates * units : 0;
      recent.dw_ih = arena.take<T>(problem.tokens.slot ? 0 : recent_rows * problem.inputs);
      recent.dw_hh = arena.take<T>(recent_rows * units);
      recent.dbias = arena.take<T>(recent_rows);
      recent.dbias_hn = arena.take<T>(many_rows(problem.schedule) ? units : 0);
      packed_delta =
          arena.take<Operand>(kDeltas * units * round_up(chunk, Product::kDepthMultiple));
      delta_copies = take_copies<Product>(arena, problem.dx.data ? chunk : 0, kGates * units);
      const Index rows = chunk > kMaxTileRows ? chunk : kMaxTileRows;
      for (int i = 0; i < threads; ++i) {
        T* tile_i = arena.take<T>(tile_scratch<V>());
        const Operand** a_i = arena.take<const Operand*>(rows);
        T** c_i = arena.take<T*>(rows);
        const T** source_i = arena.take<const T*>(rows);
        const Operand** segment_i = arena.take<const Operand*>(batch);
        // A row's last gate may be filled up beyond the row: the next one is copied after it.
        Operand* step_copies_i = take_copies<Product>(arena, batch + 1, kGates * units);
        const T** in = arena.take<const T*>(7 * batch);
        T** out = arena.take<T*>(2 * batch);
        if (i != id) continue;
        tile = tile_i, a = a_i, c = c_i, source = source_i, segment = segment_i;
        step_copies = step_copies_i;
        delta_after = in, h_previous = in + batch, h = in + 2 * batch;
        c_previous = in + 3 * batch, cell = in + 4 * batch, saved = in + 5 * batch,
        dy = in + 6 * batch;
        delta_now = out, state_gradients = out + batch;
      }
    }
  };

  Backward(const BackwardProblem<T>& problem, const Worker& worker, const Panels& panels,
           const Scratch& scratch)
      : problem_(problem),
        schedule_(problem.schedule),
        units_(problem.units),
        worker_(worker),
        panels_(panels),
        scratch_(scratch),
        sums_(many_rows(schedule_)
                  ? scratch.recent
                  : Gradients{problem.dw_ih, problem.dw_hh, problem.dbias, problem.dbias_hn}),
        cut_(schedule_.batch, tiles_for(panels.recurrent[0]).height(), worker.row_groups) {}

  // Of a step's product.
  typename Product::Tiles tiles_for(const Matrix& matrix) const {
    return {matrix.width, schedule_.batch};
  }

  // Steps are counted from the end.
  Progress run(Progress at) const {
    [[maybe_unused]] const typename Product::Session session;
    if (at.steps == 0) clear_sums();
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
      pack_chunk(chunk);
      worker_.offer(kInputRows, problem_.dx.data ? chunk.rows() : 0, kPieceRows);
      worker_.offer(kWeightTiles, kDeltas * delta_tiles().tiles, kPieceTiles);
      worker_.wait_team();
      worker_.for_pieces(kInputRows,
                         [&](Index begin, Index end) { add_input_gradient(chunk, begin, end); });
      add_bias_gradients(chunk);
      worker_.for_pieces(kWeightTiles,
                         [&](Index begin, Index end) { add_weight_gradients(chunk, begin, end); });
      if (problem_.tokens.slot) add_token_gradients(chunk);
      at.chunks = at.steps;
      const bool breaks_up = worker_.wait_team();
      collect_sums(chunk);
      if (breaks_up) return at;
    }
    run_step({-1, -1, 0, 0}, -1);
    at.done = true;
    return at;
  }

  // This thread's.
  double step_flops(Index s) const {
    return static_cast<double>(2 * kGates * units_ * units_ * schedule_.live(s)) / worker_.count;
  }

  // Queues of pieces of a chunk's products, and how large one is: some hundred microseconds' worth.
  enum { kInputRows, kWeightTiles };
  static constexpr Index kPieceRows = 64, kPieceTiles = 8;

  // Calls visit(from, to, n) for each array of sums and what it is added to at last; `to` may be null.
  template <class Visit>
  [[gnu::always_inline]] void for_recent_sums(Visit visit) const {
    if (!many_rows(schedule_)) return;
    const Gradients& recent = scratch_.recent;
    const Index rows = kGates * units_;
    if (!problem_.tokens.slot) visit(recent.dw_ih, problem_.dw_ih, rows * problem_.inputs);
    visit(recent.dw_hh, problem_.dw_hh, rows * units_);
    visit(recent.dbias, problem_.dbias, rows);
    visit(recent.dbias_hn, problem_.dbias_hn, units_);
  }

  void clear_sums() const {
    for_recent_sums([&](T* from, T*, Index n) {
      const auto share = worker_.share(n);
      for (Index j = share.begin; j < share.end; ++j) from[j] = T(0);
    });
    if (!problem_.tokens.slot) return;
    const auto share = worker_.share(problem_.tokens.count * kGates * units_);
    for (Index j = share.begin; j < share.end; ++j) scratch_.token_gradient[j] = T(0);
  }

  // Whether so many rows end with this chunk, counted in the order in which chunks are worked on.
  bool ends_rows(const Chunk& chunk, Index rows) const {
    const Index all = schedule_.offset[schedule_.steps];
    const Index done = schedule_.reverse ? chunk.last_row : all - chunk.first_row;
    return chunk.begin == 0 || done / rows != (done - chunk.rows()) / rows;
  }

  void collect_sums(const Chunk& chunk) const {
    if (ends_rows(chunk, kSumRows)) {
      for_recent_sums([&](T* from, T* to, Index n) {
        const auto share = worker_.share(to ? n : 0);
        for (Index j = share.begin; j < share.end; ++j) to[j] += from[j], from[j] = T(0);
      });
    }
    if (!problem_.tokens.slot) return;
    // Rarely enough that few rows of the many tokens are gone through for each one added.
    const Index all_tokens = 4 * problem_.tokens.count;
    if (ends_rows(chunk, all_tokens > kTokenSumRows ? all_tokens : kTokenSumRows))
      scatter_token_gradients();
  }

  Index packed_row(Index s, Index i) const { return schedule_.offset[schedule_.time(s)] + i; }

  T* delta_row(const Chunk& chunk, Index s, Index i) const {
    return s < chunk.end && s >= chunk.begin
               ? scratch_.delta + (packed_row(s, i) - chunk.first_row) * kDeltas * units_
               : scratch_.boundary + i * kDeltas * units_;
  }

  // What row i held before processed step s: h for its product, c for its equations.
  const T* previous_h(Index s, Index i) const {
    const Index b = schedule_.order[i];
    if (s == 0 || i >= schedule_.live(s - 1)) return problem_.h_0 + b * units_;
    return problem_.y.at(schedule_.time(s - 1), b);
  }
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
        scratch_.h_previous[i] = previous_h(s, i);
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
          T* sums = scratch_.tile + (i - begin) * out_row;
          for (Index j = 0; j < out_row; j += V::size) V(0).store(sums + j);
        }
        for (Index block = 0; block < side * matrix.blocks; ++block) {
          const Index unit = p * matrix.row_size() + block * V::size;
          const T* sums = scratch_.tile + block * V::size;
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

  // Σ over the phase's gates of delta · W_hh for rows [begin, end): where the gates do not lie side by
  // side, run by run onto the same sums.
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
                                  .out = scratch_.tile,
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
      T* dh = problem_.dh + schedule_.order[i] * units_ + unit;
      const V product = V::load(sums);
      if (i >= live) {
        lane.store(dh, lane.load(dh) + product);
        continue;
      }
      BackwardStep<V, Cell> step;
      for (int k = 0; k < Cell::saved; ++k)
        step.saved[k] = lane.load(scratch_.saved[i] + k * units_ + unit);
      step.h_previous = lane.load(scratch_.h_previous[i] + unit);
      step.h = lane.load(scratch_.h[i] + unit);
      T* dc = nullptr;
      if constexpr (has_c<Cell>) {
        dc = problem_.dc + schedule_.order[i] * units_ + unit;
        step.c_previous = lane.load(scratch_.c_previous[i] + unit);
        step.c = lane.load(scratch_.cell[i] + unit);
        step.dc = lane.load(dc);
      }
      if constexpr (P == 0) {
        step.dh = product + lane.load(dh);
        if (scratch_.dy[i]) step.dh = step.dh + lane.load(scratch_.dy[i] + unit);
        if constexpr (kPhases > 1) lane.store(scratch_.dh + i * units_ + unit, step.dh);
      } else {
        step.dh = lane.load(scratch_.dh + i * units_ + unit);
        step.doperand = product;
        step.direct = lane.load(dh);
        constexpr Range before = found_in<Cell>(P - 1);
        for (int d = before.first; d < before.first + before.count; ++d)
          step.delta[d] = lane.load(scratch_.delta_now[i] + d * units_ + unit);
      }

      Cell::backward(Phase<P>{}, step);

      if (problem_.state_gradients) keep_gradients<P>(lane, step, i, unit);
      constexpr Range found = found_in<Cell>(P);
      for (int d = found.first; d < found.first + found.count; ++d) {
        lane.store(scratch_.delta_now[i] + d * units_ + unit, step.delta[d]);
      }
      lane.store(dh, step.direct);
      if constexpr (has_c<Cell>) lane.store(dc, step.dc);
    }
  }

  // Row i's part of the state gradients that this phase knows.
  template <int P, class Lane>
  void keep_gradients(Lane lane, const BackwardStep<V, Cell>& step, Index i, Index unit) const {
    constexpr int states = has_c<Cell> ? 2 : 1;
    constexpr Range found = found_in<Cell>(P);
    T* out = scratch_.state_gradients[i] + unit;
    if constexpr (P == 0) {
      lane.store(out, step.dh);
      if constexpr (has_c<Cell>) lane.store(out + units_, step.dc_now);
    }
    for (int g = found.first; g < found.first + found.count && g < kGates; ++g)
      lane.store(out + (states + g) * units_, step.delta[g]);
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

  // Of the products with deltas as the left-hand side's columns.
  typename Product::Tiles tiles_over_chunk(const Matrix& matrix) const {
    return {matrix.width, units_};
  }

  int delta_tile_rows() const {
    const int for_operands = tiles_over_chunk(scratch_.operands[0]).height();
    if (problem_.tokens.slot) return for_operands;
    const int for_inputs = tiles_over_chunk(scratch_.inputs).height();
    return for_inputs < for_operands ? for_inputs : for_operands;
  }

  // Of one delta's rows.
  TileCut delta_tiles() const { return TileCut(units_, delta_tile_rows()); }

  // Calls visit(d, first unit, rows) for this thread's tiles of the deltas' rows.
  template <class Visit>
  [[gnu::always_inline]] void for_delta_tiles(Visit visit) const {
    const TileCut cut = delta_tiles();
    const auto share = worker_.share(kDeltas * cut.tiles);
    for (Index t = share.begin; t < share.end; ++t) {
      const Index first = cut.begin(t % cut.tiles);
      visit(static_cast<int>(t / cut.tiles), first, cut.begin(t % cut.tiles + 1) - first);
    }
  }

  void pack_chunk(const Chunk& chunk) const {
    const Index rows = chunk.rows();
    const T** const a = scratch_.source;
    for (int p = 0; p < kPhases; ++p) {
      Matrix matrix = scratch_.operands[p];
      matrix.depth = rows;
      const auto share = worker_.share(matrix.count());
      for_packed_rows<V>(schedule_, chunk.first_row, chunk.last_row,
                         [&](Index row, Index t, Index i) {
                           a[row - chunk.first_row] = previous_h(schedule_.time(t), i);
                         });
      pack_rows(matrix, share.begin, share.end, [&](Index k, Index unit, Index n) {
        const V h = load_some<V>(a[k] + unit, n);
        if constexpr (kPhases > 1) {
          if (p == 1) {
            const T* saved = problem_.saved + (chunk.first_row + k) * Cell::saved * units_;
            return load_some<V>(saved + Cell::operand_gate * units_ + unit, n) * h;
          }
        }
        return h;
      });
    }
    if (!problem_.tokens.slot) {
      Matrix matrix = scratch_.inputs;
      matrix.depth = rows;
      const auto share = worker_.share(matrix.count());
      for_packed_rows<V>(schedule_, chunk.first_row, chunk.last_row,
                         [&](Index row, Index t, Index i) {
                           a[row - chunk.first_row] = problem_.x.at(t, schedule_.order[i]);
                         });
      pack_rows(matrix, share.begin, share.end,
                [&](Index k, Index unit, Index n) { return load_some<V>(a[k] + unit, n); });
    }
    for_delta_tiles([&](int d, Index first, Index height) {
      Product::pack_across(scratch_.delta + d * units_ + first, kDeltas * units_, rows, height,
                           packed_delta(d, first, rows));
    });
  }

  // dx += deltas · W_ih for rows [begin, end) of the chunk.
  void add_input_gradient(const Chunk& chunk, Index begin, Index end) const {
    const Index first = chunk.first_row + begin;
    for_packed_rows<V>(schedule_, first, chunk.first_row + end, [&](Index p, Index t, Index i) {
      const Index row = p - chunk.first_row;
      scratch_.a[p - first] =
          Product::copy_row(scratch_.delta + row * kDeltas * units_, kGates * units_,
                            scratch_.delta_copies + row * copy_size<Product>(kGates * units_));
      scratch_.c[p - first] = problem_.dx.at(t, schedule_.order[i]);
    });
    multiply(panels_.input, scratch_.a, scratch_.c, 0, end - begin, chunk.rows(), true,
             scratch_.tile, worker_);
  }

  // Column sums of the deltas, for this thread's columns.
  void add_bias_gradients(const Chunk& chunk) const {
    const Index lanes = (units_ + V::size - 1) / V::size;
    const auto share = worker_.share(kDeltas * lanes);
    for (Index j = share.begin; j < share.end; ++j) {
      const int d = static_cast<int>(j / lanes);
      const Index unit = j % lanes * V::size, n = units_ - unit;
      T* out = nullptr;
      if (d < kGates) {
        if (problem_.dbias) out = sums_.dbias + d * units_ + unit;
      } else if (problem_.dbias_hn) {
        out = sums_.dbias_hn + unit;
      }
      if (!out) continue;
      const V sum = column_sums(scratch_.delta + d * units_ + unit, chunk.rows(), n);
      store_some(out, load_some<V>(out, n) + sum, n);
    }
  }

  // Of so many rows of deltas. The several sums side by side are short, and keep the units busy.
  V column_sums(const T* from, Index rows, Index n) const {
    constexpr Index kSums = 8, kRows = 128 * kSums;
    const Index row = kDeltas * units_;
    V total(T(0));
    for (Index begin = 0; begin < rows; begin += kRows) {
      const Index end = begin + kRows < rows ? begin + kRows : rows;
      V sums[kSums];
      for (auto& sum : sums) sum = V(T(0));
      Index k = begin;
      for (; end - k >= kSums; k += kSums) {
#pragma GCC unroll 8
        for (Index i = 0; i < kSums; ++i) sums[i] = sums[i] + load_some<V>(from + (k + i) * row, n);
      }
      for (; k < end; ++k) sums[0] = sums[0] + load_some<V>(from + k * row, n);
      for (Index half = kSums / 2; half > 0; half /= 2) {
        for (Index i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
      }
      total = total + sums[0];
    }
    return total;
  }

  // dW += deltasᵀ · (x or operand) for tiles [begin, end) of the deltas' rows.
  void add_weight_gradients(const Chunk& chunk, Index begin, Index end) const {
    const Index tiles = delta_tiles().tiles;
    for (Index t = begin, next; t < end; t = next) {
      const int d = static_cast<int>(t / tiles);
      next = (d + 1) * tiles < end ? (d + 1) * tiles : end;
      const Range part{static_cast<int>(t - d * tiles), static_cast<int>(next - t)};
      for (int g = 0; g < kGates; ++g) {
        if (!problem_.tokens.slot && g == d) {
          multiply_delta(chunk, d, part, scratch_.inputs,
                         sums_.dw_ih + g * units_ * problem_.inputs, problem_.inputs);
        }
        for (int p = 0; p < kPhases; ++p) {
          const Range phase = Cell::phases[p];
          if (recurrent_delta<Cell>(g) != d || g < phase.first || g >= phase.first + phase.count)
            continue;
          multiply_delta(chunk, d, part, scratch_.operands[p], sums_.dw_hh + g * units_ * units_,
                         units_);
        }
      }
    }
  }

  // Rows of units [first, ...) of delta d.
  Operand* packed_delta(int d, Index first, Index chunk_rows) const {
    return scratch_.packed_delta +
           (d * units_ + first) * round_up(chunk_rows, Product::kDepthMultiple);
  }

  void multiply_delta(const Chunk& chunk, int d, Range part, Matrix matrix, T* out,
                      Index out_row) const {
    const TileCut cut = delta_tiles();
    matrix.depth = chunk.rows();
    const Index columns = matrix.row_size();
    const auto tiles = tiles_over_chunk(matrix);
    for (Index p = 0; p < matrix.count(); ++p) {
      const Index real = matrix.units - p * columns;
      Ahead ahead = matrix.ahead(p + 1, 1);
      for (Index t = part.first; t < part.first + part.count; ++t) {
        const Index first = cut.begin(t), height = cut.begin(t + 1) - first;
        const Operand* a[kMaxTileRows];
        T* c[kMaxTileRows];
        for (Index m = 0; m < height; ++m) {
          a[m] = packed_delta(d, first, chunk.rows()) + m * Product::row_distance(chunk.rows());
          c[m] = out + (first + m) * out_row + p * columns;
        }
        // What the next tile will add to: its sums would wait for it.
        for (Index m = 0; m < height; ++m) prefetch(c[m] + height * out_row, columns);
        const bool direct = real >= columns;
        const typename Product::Tile tile{.a = a,
                                          .a_begin = 0,
                                          .a_step = Product::step_distance(height),
                                          .b = matrix.row(p, 0),
                                          .b_panel = 0,
                                          .depth = chunk.rows(),
                                          .ahead = ahead.take(chunk.rows() / Product::kDepthStep),
                                          .start = direct ? c[0] : scratch_.tile,
                                          .start_row = direct ? out_row : columns,
                                          .start_panel = 0,
                                          .add = true,
                                          .out = direct ? c[0] : scratch_.tile,
                                          .out_row = direct ? out_row : columns,
                                          .out_panel = 0};
        if (!direct) load_tile<V>(c, 0, height, real, columns, scratch_.tile);
        tiles.multiply(static_cast<int>(height), 1, tile);
        if (!direct) store_tile<V>(c, 0, height, real, columns, scratch_.tile);
      }
      worker_.progress(
          static_cast<double>(2 * part.count * delta_tile_rows() * columns * chunk.rows()));
    }
  }

  void add_token_gradients(const Chunk& chunk) const {
    const auto share = worker_.share(kGates * units_);
    for (Index k = 0; k < chunk.rows(); ++k) {
      const T* from = scratch_.delta + k * kDeltas * units_;
      T* to = scratch_.token_gradient + problem_.tokens.slot[chunk.first_row + k] * kGates * units_;
      for (Index j = share.begin; j < share.end; ++j) to[j] += Product::rounded(from[j]);
    }
  }

  void scatter_token_gradients() const {
    const auto share = worker_.share(kGates * units_);
    for (Index slot = 0; slot < problem_.tokens.count; ++slot) {
      T* from = scratch_.token_gradient + slot * kGates * units_;
      T* column = problem_.dw_ih + problem_.tokens.token[slot];
      for (Index j = share.begin; j < share.end; ++j) {
        column[j * problem_.inputs] += from[j];
        from[j] = T(0);
      }
    }
  }

  const BackwardProblem<T>& problem_;
  const Schedule& schedule_;
  const Index units_;
  const Worker& worker_;
  const Panels panels_;
  const Scratch scratch_;
  const Gradients sums_;  // what the products over a chunk are added to
  const TileCut cut_;
};

}  // namespace rnnkern
