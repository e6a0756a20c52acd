// The forward time loop: W_ih x for a run of steps as one product, then step by step the recurrent
// product with the cell's equations as its epilogue.
#pragma once

#include "core/cell.h"
#include "core/parallel.h"
#include "core/problem.h"
#include "cpu/panels.h"

namespace rnnkern {

// A run of processed steps [begin, end) whose packed rows [first_row, last_row) are worked on as one.
struct Chunk {
  Index begin, end, first_row, last_row;

  [[gnu::always_inline]] Index rows() const { return last_row - first_row; }
};

// Rows that make a chunk: enough for the products over it, few enough for it to stay in cache.
inline constexpr Index kChunkRows = 512;

[[gnu::always_inline]] inline Index largest_chunk(const Schedule& s) {
  const Index all = s.offset[s.steps], most = kChunkRows + s.batch;
  return all < most ? all : most;
}

[[gnu::always_inline]] inline void set_rows(const Schedule& s, Chunk& chunk) {
  const Index first = s.reverse ? s.time(chunk.end - 1) : chunk.begin;
  chunk.first_row = s.offset[first];
  chunk.last_row = s.offset[first + (chunk.end - chunk.begin)];
}

[[gnu::always_inline]] inline Chunk chunk_from(const Schedule& s, Index begin) {
  Chunk chunk{begin, begin, 0, 0};
  for (Index rows = 0; chunk.end < s.steps && rows < kChunkRows; ++chunk.end)
    rows += s.live(chunk.end);
  set_rows(s, chunk);
  return chunk;
}

[[gnu::always_inline]] inline Chunk chunk_until(const Schedule& s, Index end) {
  Chunk chunk{end, end, 0, 0};
  for (Index rows = 0; chunk.begin > 0 && rows < kChunkRows; --chunk.begin) {
    rows += s.live(chunk.begin - 1);
  }
  set_rows(s, chunk);
  return chunk;
}

// Calls visit(packed row, t, i) for the packed rows [begin, end).
template <class V, class Visit>
[[gnu::always_inline]] inline void for_packed_rows(const Schedule& s, Index begin, Index end,
                                                   Visit visit) {
  Index low = 0, high = s.steps;  // the step that holds `begin`: the last t with offset[t] <= begin
  while (high - low > 1) {
    const Index middle = low + (high - low) / 2;
    (s.offset[middle] <= begin ? low : high) = middle;
  }
  for (Index t = low, p = begin; p < end; ++t) {
    for (; p < end && p < s.offset[t + 1]; ++p) visit(p, t, p - s.offset[t]);
  }
}

// Whole lanes and the last, partial one, as two types so that the first pays nothing for the second.
template <class V>
struct WholeLane {
  using T = typename V::value;
  [[gnu::always_inline]] V load(const T* p) const { return V::load(p); }
  [[gnu::always_inline]] void store(T* p, V v) const { v.store(p); }
};

template <class V>
struct PartLane {
  using T = typename V::value;
  Index n;
  [[gnu::always_inline]] V load(const T* p) const { return V::load(p, n); }
  [[gnu::always_inline]] void store(T* p, V v) const { v.store(p, n); }
};

// The panels that a forward pass reads; `stream` keeps them from call to call.
template <class V, class Cell>
struct ForwardPanels {
  using T = typename V::value;

  PanelMatrix<V> input;
  PanelMatrix<V> recurrent[phase_count<Cell>];

  ForwardPanels(const Parameters<T>& parameters, bool dense, Arena& arena) {
    const Index units = parameters.units;
    for (int p = 0; p < phase_count<Cell>; ++p) {
      recurrent[p] = PanelMatrix<V>(units, units, Cell::phases[p].count);
      recurrent[p].data = arena.take<T>(recurrent[p].size());
    }
    // Last, so that panels packed for dense input serve tokens as well.
    if (dense) {
      input = PanelMatrix<V>(parameters.inputs, Cell::gates * units, 1);
      input.data = arena.take<T>(input.size());
    }
  }

  // Each thread packs the units that it will multiply with, so that they are in its own cache.
  void pack(const Parameters<T>& parameters, const Worker& worker) const {
    const Index units = parameters.units;
    if (input.data) {
      const auto share = worker.share(input.count());
      pack_start(input, share.begin, share.end, [&](int) { return parameters.bias; });
      pack_columns(input, share.begin, share.end,
                   [&](int, Index column) { return parameters.w_ih + column * parameters.inputs; });
    }
    for (int p = 0; p < phase_count<Cell>; ++p) {
      const auto& matrix = recurrent[p];
      const auto share = worker.share(matrix.count());
      const int first = Cell::phases[p].first;
      pack_start(matrix, share.begin, share.end, [&](int gate) -> const T* {
        return first + gate == Cell::gates - 1 ? parameters.bias_hn : nullptr;
      });
      pack_columns(matrix, share.begin, share.end, [&](int gate, Index unit) {
        return parameters.w_hh + ((first + gate) * units + unit) * units;
      });
    }
  }
};

template <class V, class Cell>
class Forward {
  using T = typename V::value;
  static constexpr int kPhases = phase_count<Cell>;
  static constexpr int kGates = Cell::gates;

 public:
  static Index packed_bytes(const Parameters<T>& parameters, bool dense) {
    Arena measure(nullptr);
    ForwardPanels<V, Cell>(parameters, dense, measure);
    return measure.used();
  }

  static void pack(const Parameters<T>& parameters, bool dense, const Worker& worker,
                   std::byte* packed) {
    Arena arena(packed);
    ForwardPanels<V, Cell>(parameters, dense, arena).pack(parameters, worker);
  }

  static Index scratch_bytes(const ForwardProblem<T>& problem, int threads) {
    Arena measure(nullptr);
    Scratch(problem, threads, 0, measure);
    return measure.used();
  }

  static void run(const ForwardProblem<T>& problem, const Worker& worker, std::byte* packed,
                  std::byte* scratch) {
    Forward(problem, worker, packed, scratch).run();
  }

 private:
  struct Scratch {
    // Shared by the team.
    T* x_part;   // (rows of a chunk, G·H): W_ih x + b; with tokens (distinct tokens, G·H)
    T* operand;  // (B, H): what a later phase's product takes
    T* saved;    // (B, saved, H): one step's, where no backward pass wants them
    // This thread's.
    T* tile;
    const T** a;  // (rows of a chunk): rows of the product W_ih x, in and
    T** c;        // out
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
      const Index chunk = largest_chunk(problem.schedule);
      x_part = arena.take<T>((problem.tokens.slot ? problem.tokens.count : chunk) * kGates * units);
      operand = arena.take<T>(kPhases > 1 ? batch * units : 0);
      saved = arena.take<T>(kPhases > 1 && !problem.saved ? batch * Cell::saved * units : 0);
      for (int i = 0; i < threads; ++i) {
        T* tile_i = arena.take<T>(tile_scratch<V>());
        const T** a_i = arena.take<const T*>(chunk);
        T** c_i = arena.take<T*>(chunk);
        const T** in = arena.take<const T*>(4 * batch);
        T** out = arena.take<T*>(3 * batch);
        if (i != id) continue;
        tile = tile_i, a = a_i, c = c_i;
        h = in, operand_rows = in + batch, x = in + 2 * batch, c_previous = in + 3 * batch;
        cell = out, y = out + batch, saved_rows = out + 2 * batch;
      }
    }
  };

  Forward(const ForwardProblem<T>& problem, const Worker& worker, std::byte* packed,
          std::byte* scratch)
      : problem_(problem),
        schedule_(problem.schedule),
        units_(problem.parameters.units),
        worker_(worker),
        panels_(make_panels(problem, packed)),
        scratch_(make_scratch(problem, worker, scratch)),
        cut_(schedule_.batch, tile_height(), worker.row_groups) {}

  static ForwardPanels<V, Cell> make_panels(const ForwardProblem<T>& problem, std::byte* packed) {
    Arena arena(packed);
    return ForwardPanels<V, Cell>(problem.parameters, !problem.tokens.slot, arena);
  }
  static Scratch make_scratch(const ForwardProblem<T>& problem, const Worker& worker,
                              std::byte* base) {
    Arena arena(base);
    return Scratch(problem, worker.count, worker.id, arena);
  }

  // The same for all phases, so that a row of the batch stays with its thread.
  int tile_height() const {
    int height = kMaxTileRows;
    for (const auto& matrix : panels_.recurrent) {
      const int rows = tile_rows<V>(matrix.width());
      if (rows < height) height = rows;
    }
    return height;
  }

  void run() {
    if (problem_.tokens.slot) gather_tokens();
    for (Chunk chunk{0, 0, 0, 0}; chunk.end < schedule_.steps;) {
      chunk = chunk_from(schedule_, chunk.end);
      if (!problem_.tokens.slot) multiply_inputs(chunk);
      worker_.wait_team();
      for (Index s = chunk.begin; s < chunk.end; ++s) {
        fill_rows(chunk, s);
        run_phases<0>(s);
        finish_rows(s);
      }
      worker_.wait_team();
    }
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
        row[j] = column[j * parameters.inputs] + (parameters.bias ? parameters.bias[j] : T(0));
      }
    }
  }

  void multiply_inputs(const Chunk& chunk) const {
    const auto share = worker_.share(chunk.rows());
    const Index size = kGates * units_, first = chunk.first_row + share.begin;
    for_packed_rows<V>(schedule_, first, chunk.first_row + share.end,
                       [&](Index p, Index t, Index i) {
                         scratch_.a[p - first] = problem_.x.at(t, schedule_.order[i]);
                         scratch_.c[p - first] = scratch_.x_part + (p - chunk.first_row) * size;
                       });
    multiply<V>(panels_.input, scratch_.a, 1, scratch_.c, size, share.end - share.begin, false,
                scratch_.tile);
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
        if constexpr (Cell::cell_state) {
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

  template <int P>
  void run_phases(Index s) const {
    run_phase<P>(s);
    worker_.wait_group();
    if constexpr (P + 1 < kPhases) run_phases<P + 1>(s);
  }

  // This thread's panels of a phase.
  Worker::Share panel_share(const PanelMatrix<V>& matrix) const {
    const Index count = matrix.count();
    return {count * worker_.unit_group / worker_.unit_groups,
            count * (worker_.unit_group + 1) / worker_.unit_groups};
  }

  template <int P>
  void run_phase(Index s) const {
    const auto& matrix = panels_.recurrent[P];
    const int width = matrix.width();
    const auto share = panel_share(matrix);
    const int highest = static_cast<int>((cut_.rows + cut_.tiles - 1) / cut_.tiles);
    for (Index p = share.begin, side; p < share.end; p += side) {
      side = TileKernels<V>::panels(highest, width, share.end - p);
      for_tiles<V>(cut_, worker_, schedule_.live(s), [&](Index begin, Index end) {
        const int rows = static_cast<int>(end - begin);
        const TileProduct<T> tile{.a = (P == 0 ? scratch_.h : scratch_.operand_rows) + begin,
                                  .a_begin = 0,
                                  .a_step = 1,
                                  .b = matrix.panel(p) + matrix.row_size(),
                                  .b_panel = matrix.stride(),
                                  .depth = units_,
                                  .start = matrix.panel(p),
                                  .start_row = 0,
                                  .start_panel = matrix.stride(),
                                  .out = scratch_.tile,
                                  .out_row = side * matrix.row_size(),
                                  .out_panel = matrix.row_size()};
        TileKernels<V>::find(rows, width, static_cast<int>(side))(tile);
        for (Index block = 0; block < side * matrix.blocks; ++block) {
          const Index unit = p * matrix.panel_units() + block * V::size;
          const T* sums = scratch_.tile + block / matrix.blocks * matrix.row_size() +
                          block % matrix.blocks * V::size;
          if (unit + V::size <= units_) {
            apply_cell<P>(WholeLane<V>{}, sums, tile.out_row, matrix.blocks, begin, rows, unit);
          } else if (unit < units_) {
            apply_cell<P>(PartLane<V>{units_ - unit}, sums, tile.out_row, matrix.blocks, begin,
                          rows, unit);
          }
        }
      });
    }
  }

  // The cell's equations on `rows` rows of one lane of units; gate g's sums stand g·blocks lanes on.
  template <int P, class Lane>
  void apply_cell(Lane lane, const T* sums, Index sums_row, int blocks, Index begin, int rows,
                  Index unit) const {
    constexpr Range phase = Cell::phases[P];
    constexpr int saved_before = P > 0 ? Cell::saved_after[P > 0 ? P - 1 : 0] : 0;
    for (int r = 0; r < rows; ++r, sums += sums_row) {
      const Index i = begin + r;
      ForwardStep<V, Cell> step;
      for (int g = phase.first; g < phase.first + phase.count; ++g) {
        step.x[g] = lane.load(scratch_.x[i] + g * units_ + unit);
        step.product[g] = V::load(sums + Index{g - phase.first} * blocks * V::size);
      }
      for (int k = 0; k < saved_before; ++k) {
        step.saved[k] = lane.load(scratch_.saved_rows[i] + k * units_ + unit);
      }
      step.h = lane.load(scratch_.h[i] + unit);
      if constexpr (Cell::cell_state) step.c = lane.load(scratch_.c_previous[i] + unit);

      Cell::forward(Phase<P>{}, step);

      if constexpr (Cell::saved > 0) {
        if (T* saved = scratch_.saved_rows[i]) {
          for (int k = saved_before; k < Cell::saved_after[P]; ++k) {
            lane.store(saved + k * units_ + unit, step.saved[k]);
          }
        }
      }
      if constexpr (P + 1 < kPhases) {
        lane.store(scratch_.operand + i * units_ + unit,
                   Cell::operand(Phase<P + 1>{}, step.saved[Cell::operand_gate], step.h));
      } else {
        lane.store(scratch_.y[i] + unit, step.h);
        if constexpr (Cell::cell_state) lane.store(scratch_.cell[i] + unit, step.c);
      }
    }
  }

  // Rows that end with this step leave their last state behind: the units that this thread wrote.
  void finish_rows(Index s) const {
    const auto& matrix = panels_.recurrent[kPhases - 1];
    const auto share = panel_share(matrix);
    const Index begin_unit = share.begin * matrix.panel_units();
    const Index last = share.end * matrix.panel_units(), end_unit = last < units_ ? last : units_;
    const Index going_on = schedule_.live(s + 1), live = schedule_.live(s);
    if (going_on >= live) return;
    for_tiles<V>(cut_, worker_, live, [&](Index begin, Index end) {
      for (Index i = begin > going_on ? begin : going_on; i < end; ++i) {
        const Index b = schedule_.order[i];
        for (Index u = begin_unit; u < end_unit; ++u) problem_.h[b * units_ + u] = scratch_.y[i][u];
        if constexpr (Cell::cell_state) {
          if (!problem_.cells) continue;
          for (Index u = begin_unit; u < end_unit; ++u)
            problem_.c[b * units_ + u] = scratch_.cell[i][u];
        }
      }
    });
  }

  const ForwardProblem<T>& problem_;
  const Schedule& schedule_;
  const Index units_;
  const Worker& worker_;
  const ForwardPanels<V, Cell> panels_;
  const Scratch scratch_;
  const TileCut cut_;
};

}  // namespace rnnkern
