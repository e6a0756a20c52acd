// SPDX-License-Identifier: Apache-2.0
// One step of a few rows: W_ih x and W_hh h panel by panel, with the cell's equations as the
// epilogue. It is what a stream runs: no team, no schedule, nothing packed and nothing allocated.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/cell.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/cell_io.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/recurrent_panels.h"

namespace rnnkern {

// All matrices of a step, gate-interleaved: one tile of sums has all gates of its units.
template <class V, class Cell, class Product>
struct StepPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;
  static constexpr int kPhases = phase_count<Cell>;

  Matrix input[kPhases], recurrent[kPhases];

  StepPanels(Index inputs, Index units, Arena& arena) {
    const auto take = [&](Matrix matrix) {
      matrix.data = arena.take<T>(matrix.size());
      return matrix;
    };
    for (int p = 0; p < kPhases; ++p) {
      input[p] = take(Matrix(inputs, units, Cell::phases[p].count));
      recurrent[p] = take(Matrix(units, units, Cell::phases[p].count));
    }
  }

  void pack(const Parameters<T>& parameters, bool with_input) const {
    const Index units = parameters.units;
    for (int p = 0; p < kPhases; ++p) {
      const int first = Cell::phases[p].first;
      pack_start(input[p], 0, input[p].groups(), [&](int gate) {
        return parameters.bias ? parameters.bias + (first + gate) * units : nullptr;
      });
      if (with_input) pack_columns(input[p], 0, input[p].groups(), input_row(parameters, first));
      pack_recurrent<Cell>(recurrent[p], parameters, p, 0, recurrent[p].groups());
    }
  }

  void pack_token(const Parameters<T>& parameters, Index token) const {
    for (int p = 0; p < kPhases; ++p)
      pack_row(input[p], token, input_row(parameters, Cell::phases[p].first));
  }

 private:
  // Row of W_ih of a unit and a gate, counted from the first of a phase.
  static auto input_row(const Parameters<T>& parameters, int first) {
    return [=, units = parameters.units, inputs = parameters.inputs, w_ih = parameters.w_ih](
               int gate, Index unit) { return w_ih + ((first + gate) * units + unit) * inputs; };
  }
};

template <class V, class Cell, class Product>
class Step {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Panels = StepPanels<V, Cell, Product>;
  using Matrix = PanelMatrix<V, Product>;
  using Tiles = typename Product::Tiles;
  static constexpr int kPhases = phase_count<Cell>;

 public:
  static Index packed_bytes(const Parameters<T>& parameters) {
    Arena measure(nullptr);
    Panels(parameters.inputs, parameters.units, measure);
    return measure.used();
  }

  static void pack(const Parameters<T>& parameters, bool with_input, std::byte* packed) {
    Arena arena(packed);
    Panels(parameters.inputs, parameters.units, arena).pack(parameters, with_input);
  }

  static void pack_token(const Parameters<T>& parameters, Index token, std::byte* packed) {
    Arena arena(packed);
    Panels(parameters.inputs, parameters.units, arena).pack_token(parameters, token);
  }

  static Index scratch_bytes(const StepProblem<T>& problem) {
    Arena measure(nullptr);
    Scratch(problem, measure);
    return measure.used();
  }

  static void run(const StepProblem<T>& problem, const TallTiles* tall, std::byte* packed,
                  std::byte* scratch) {
    [[maybe_unused]] const typename Product::Session session(tall);
    Arena packed_arena(packed), scratch_arena(scratch);
    Step(problem, tall, Panels(problem.inputs, problem.units, packed_arena),
         Scratch(problem, scratch_arena))
        .template run_phases<0>();
  }

 private:
  struct Scratch {
    T* from_input;  // sums of one tile
    T* from_state;
    T* h;               // (B, H): h_t, while others still read h_{t-1}
    T* operand;         // (B, H): what a later phase's product takes
    T* saved;           // (B, saved, H)
    Operand* x_copies;  // (rows of a tile, I), where operands are rounded
    Operand* h_copies;  // (rows of a tile, H), likewise

    Scratch(const StepProblem<T>& problem, Arena& arena) {
      const Index size = problem.batch * problem.units;
      from_input = arena.take<T>(tile_scratch<V>());
      from_state = arena.take<T>(tile_scratch<V>());
      h = arena.take<T>(size);
      operand = arena.take<T>(kPhases > 1 ? size : 0);
      saved = arena.take<T>(kPhases > 1 ? size * Cell::saved : 0);
      const Index copies = problem.round_operands ? kMaxTileRows : 0;
      x_copies = take_copies<Product>(arena, copies, problem.inputs);
      h_copies = take_copies<Product>(arena, copies, problem.units);
    }
  };

  Step(const StepProblem<T>& problem, const TallTiles* tall, const Panels& panels,
       const Scratch& scratch)
      : problem_(problem), tall_(tall), panels_(panels), scratch_(scratch) {}

  Tiles tiles_for(const Matrix& matrix) const { return {matrix.width, problem_.batch, tall_}; }

  template <int P>
  void run_phases() const {
    const Index height = tiles_for(panels_.recurrent[P]).height();
    for (Index i = 0; i < problem_.batch; i += height)
      run_rows<P>(i, static_cast<int>(std::min(height, problem_.batch - i)));
    if constexpr (P + 1 < kPhases) {
      run_phases<P + 1>();
    } else {
      std::copy_n(scratch_.h, problem_.batch * problem_.units, problem_.h);
    }
  }

  template <int P>
  void run_rows(Index first, int rows) const {
    const Index units = problem_.units;
    const auto& matrix = panels_.recurrent[P];
    const Tiles tiles = tiles_for(matrix);
    const Operand *x[kMaxTileRows], *state[kMaxTileRows];
    for (int r = 0; r < rows; ++r) {
      const Index i = first + r, inputs = problem_.inputs;
      if (problem_.x) {
        x[r] = operand_row(problem_.x + i * problem_.x_row, inputs,
                           scratch_.x_copies + r * copy_size<Product>(inputs));
      }
      state[r] = operand_row((P == 0 ? problem_.h : scratch_.operand) + i * units, units,
                             scratch_.h_copies + r * copy_size<Product>(units));
    }
    const Index most = groups_together(matrix, tiles, rows, matrix.groups());
    sweep(0, matrix.groups(), most, problem_.back, [&](Index p, Index side, Index) {
      const Index panel = p * matrix.panels(), panels = side * matrix.panels();
      sum_input<P>(x, first, rows, panel, panels);
      Ahead nothing;
      multiply_panels(matrix, tiles, state, rows, panel, panels, nothing, scratch_.from_state);
      for (Index block = 0; block < side * matrix.blocks; ++block) {
        const Index unit = p * matrix.group_units() + block * V::size;
        const Index sums = block_sums(matrix, block);
        const Index row = panels * matrix.row_size(), gate = Index{matrix.blocks} * V::size;
        for (int r = 0; r < rows; ++r) {
          if (unit + V::size <= units) {
            apply<P>(WholeLane<V>{}, first + r, unit, sums + r * row, gate);
          } else if (unit < units) {
            apply<P>(PartLane<V>{units - unit}, first + r, unit, sums + r * row, gate);
          }
        }
      }
    });
  }

  // A row as the product takes it: where it stands, unless it is to be rounded.
  const Operand* operand_row(const T* row, Index n, Operand* copy) const {
    if constexpr (std::is_same_v<T, Operand>) {
      if (!problem_.round_operands) return row;
    }
    return Product::copy_row(row, n, copy);
  }

  // W_ih x + b; of a one-hot row, the token's column and b.
  template <int P>
  void sum_input(const Operand* const* x, Index first, int rows, Index panel, Index count) const {
    const auto& matrix = panels_.input[P];
    T* out = scratch_.from_input;
    if (problem_.x) {
      Ahead nothing;
      return multiply_panels(matrix, tiles_for(matrix), x, rows, panel, count, nothing, out);
    }
    for (int r = 0; r < rows; ++r) {
      const Index token = problem_.tokens[first + r];
      for (Index p = panel; p < panel + count; ++p, out += matrix.row_size())
        add_column(matrix, p, token, out);
    }
  }

  // Row k of panel p, and its initial values.
  static void add_column(const Matrix& matrix, Index p, Index k, T* out) {
    constexpr int kDeep = Product::kDepthStep, kWide = Product::kWidthStep;
    for (int w = 0; w < matrix.width; ++w) {
      V lanes[kDeep * kWide];
      Product::load_block(matrix.block(p, k - k % kDeep, w - w % kWide), lanes);
      const V start = V::load(matrix.start(p) + w * V::size);
      (start + lanes[k % kDeep * kWide + w % kWide]).store(out + w * V::size);
    }
  }

  // One lane of units of row i: its sums of gate g stand at sums + g·gate.
  template <int P, class Lane>
  void apply(Lane lane, Index i, Index unit, Index sums, Index gate) const {
    const Index units = problem_.units, at = i * units + unit;
    T* saved = kPhases > 1 ? scratch_.saved + i * Cell::saved * units + unit : nullptr;
    ForwardPlace<T> place{.x = scratch_.from_input + sums,
                          .x_gate = gate,
                          .sums = scratch_.from_state + sums,
                          .sums_gate = gate,
                          .h = problem_.h + at,
                          .c = nullptr,
                          .saved_before = saved,
                          .saved = P + 1 < kPhases ? saved : nullptr,
                          .units = units,
                          .operand = P + 1 < kPhases ? scratch_.operand + at : nullptr,
                          .new_h = scratch_.h + at,
                          .new_c = nullptr};
    if constexpr (has_c<Cell>) place.c = place.new_c = problem_.c + at;
    forward_cell<P, V, Cell>(lane, place);
  }

  const StepProblem<T>& problem_;
  const TallTiles* const tall_;
  const Panels panels_;
  const Scratch scratch_;
};

}  // namespace rnnkern
