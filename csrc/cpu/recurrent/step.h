// SPDX-License-Identifier: Apache-2.0
// One step of a few rows: W_ih x and W_hh h panel by panel, with the cell's equations as the
// epilogue. It is what a stream runs: no team, no schedule, nothing packed and nothing allocated.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/equations.h"
#include "cpu/recurrent/normalization.h"
#include "cpu/recurrent/recurrent_panels.h"
#include "cpu/recurrent/zoneout.h"

namespace rnnkern {

// All matrices of a step, gate-interleaved: one tile of sums has all gates of its units.
template <class V, class Product>
struct StepPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;

  const CellFacts& cell;
  Matrix input[kMostPhases], recurrent[kMostPhases];
  T* unit_weights;
  NormWeights<T> norm;
  Matrix projection;  // where there is one

  StepPanels(const CellFacts& cell, Index inputs, Index units, Index outputs, Arena& arena)
      : cell(cell) {
    const auto take = [&](Matrix matrix) {
      matrix.data = arena.take<T>(matrix.size());
      return matrix;
    };
    for (int p = 0; p < cell.phase_count(); ++p) {
      input[p] = take(phase_matrix<Matrix>(cell, p, units, inputs));
      recurrent[p] = take(phase_matrix<Matrix>(cell, p, units, cell.recurrent_columns(outputs)));
    }
    unit_weights = take_unit_weights<T>(cell, units, arena);
    norm = NormWeights<T>(cell, units, arena);
    if (outputs != units) projection = take(Matrix(units, outputs, 1));
  }

  void pack(const Parameters<T>& parameters, bool with_input) const {
    const Index units = parameters.units;
    for (int p = 0; p < cell.phase_count(); ++p) {
      const int first = cell.phases[p].first;
      const T* starts[kMostGates] = {};
      for (int gate = 0; parameters.bias && !cell.layer_norm && gate < cell.phases[p].count; ++gate)
        starts[gate] = parameters.bias + (first + gate) * units;
      pack_start(input[p], 0, input[p].groups(), starts);
      if (with_input) pack_columns(input[p], 0, input[p].groups(), input_rows(parameters, first));
      pack_recurrent(cell, recurrent[p], parameters, p, 0, recurrent[p].groups());
    }
    copy_unit_weights(parameters, unit_weights, 0, cell.unit_weights * units);
    norm.pack(cell, parameters);
    if (projection.data) pack_projection(projection, parameters, 0, projection.groups());
  }

  void pack_token(const Parameters<T>& parameters, Index token) const {
    for (int p = 0; p < cell.phase_count(); ++p)
      pack_row(input[p], token, input_rows(parameters, cell.phases[p].first));
  }

 private:
  // W_ih from a phase's first gate on.
  static SourceColumns<T> input_rows(const Parameters<T>& parameters, int first) {
    const Index inputs = parameters.inputs, gate = parameters.units * inputs;
    return {parameters.w_ih + first * gate, inputs, gate};
  }
};

template <class V, class Product>
class Step {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Panels = StepPanels<V, Product>;
  using Matrix = PanelMatrix<V, Product>;
  using Tiles = typename Product::Tiles;

 public:
  static Index packed_bytes(const CellFacts& cell, const Parameters<T>& parameters) {
    Arena measure(nullptr);
    Panels(cell, parameters.inputs, parameters.units, parameters.outputs, measure);
    return measure.used();
  }

  static void pack(const CellFacts& cell, const Parameters<T>& parameters, bool with_input,
                   std::byte* packed) {
    Arena arena(packed);
    Panels(cell, parameters.inputs, parameters.units, parameters.outputs, arena)
        .pack(parameters, with_input);
  }

  static void pack_token(const CellFacts& cell, const Parameters<T>& parameters, Index token,
                         std::byte* packed) {
    Arena arena(packed);
    Panels(cell, parameters.inputs, parameters.units, parameters.outputs, arena)
        .pack_token(parameters, token);
  }

  static Index scratch_bytes(const CellFacts& cell, const StepProblem<T>& problem) {
    Arena measure(nullptr);
    Scratch(cell, problem, measure);
    return measure.used();
  }

  static void run(const LoopCell<T>& cell, const StepProblem<T>& problem, const TallTiles* tall,
                  std::byte* packed, std::byte* scratch) {
    [[maybe_unused]] const typename Product::Session session(tall);
    Arena packed_arena(packed), scratch_arena(scratch);
    Step(cell, problem, tall,
         Panels(cell.facts, problem.inputs, problem.units, problem.outputs, packed_arena),
         Scratch(cell.facts, problem, scratch_arena))
        .run_phases();
  }

 private:
  struct Scratch {
    T* from_input;  // sums of one tile
    T* from_state;
    T* h;               // (B, H): h_t, while others still read h_{t-1}; or what a projection takes
    T* operand;         // (B, H): what a later phase's product takes
    T* saved;           // (B, saved, H)
    T* fresh_c;         // (B, H): c before its zoneout
    T* projected;       // (B, P): likewise h that is a projection
    T* x_rows;          // (rows of a tile, G·H): parts from x that are normalised,
    T* sum_rows;        // recurrent ones,
    T* normed_tile;     // and these as equations read them
    Operand* x_copies;  // (rows of a tile, I), where operands are rounded
    Operand* h_copies;  // (rows of a tile, H or P), likewise

    Scratch(const CellFacts& cell, const StepProblem<T>& problem, Arena& arena) {
      const bool one_phase = cell.phase_count() == 1;
      const Index size = problem.batch * problem.units;
      from_input = arena.take<T>(tile_scratch<V>());
      from_state = arena.take<T>(tile_scratch<V>());
      h = arena.take<T>(size);
      operand = arena.take<T>(one_phase ? 0 : size);
      saved = arena.take<T>(one_phase && !cell.norms_c() ? 0 : size * cell.saved);
      fresh_c = arena.take<T>(problem.zone_c.on() ? size : 0);
      const bool projects = problem.outputs != problem.units;
      projected =
          arena.take<T>(problem.zone_h.on() && projects ? problem.batch * problem.outputs : 0);
      const Index norm_rows = cell.layer_norm ? kMaxTileRows * cell.gates : 0;
      x_rows = arena.take<T>(norm_rows * problem.units);
      sum_rows = arena.take<T>(norm_rows * problem.units);
      normed_tile = arena.take<T>(norm_rows * round_up(problem.units, Index{V::size}));
      const Index copies = problem.round_operands ? kMaxTileRows : 0;
      x_copies = take_copies<Product>(arena, copies, problem.inputs);
      h_copies = take_copies<Product>(arena, copies, std::max(problem.units, problem.outputs));
    }
  };

  Step(const LoopCell<T>& cell, const StepProblem<T>& problem, const TallTiles* tall,
       const Panels& panels, const Scratch& scratch)
      : cell_(cell.facts),
        equations_(cell.equations),
        phases_(cell_.phase_count()),
        problem_(problem),
        tall_(tall),
        panels_(panels),
        scratch_(scratch) {}

  Tiles tiles_for(const Matrix& matrix) const { return {matrix.width, problem_.batch, tall_}; }

  void run_phases() const {
    for (int phase = 0; phase < phases_; ++phase) {
      const Index height = tiles_for(panels_.recurrent[phase]).height();
      for (Index i = 0; i < problem_.batch; i += height)
        run_rows(phase, i, static_cast<int>(std::min(height, problem_.batch - i)));
    }
    const Index size = problem_.batch * problem_.units;
    if (problem_.zone_c.on())
      zone_row<V>(problem_.zone_c, nullptr, scratch_.fresh_c, problem_.c, size, problem_.c);
    if (problem_.outputs == problem_.units) {
      take_h(scratch_.h);
      return;
    }
    const Index height = tiles_for(panels_.projection).height();
    for (Index i = 0; i < problem_.batch; i += height)
      project_rows(i, static_cast<int>(std::min(height, problem_.batch - i)));
    if (problem_.zone_h.on()) take_h(scratch_.projected);
  }

  // The state's h, of what the step came to.
  void take_h(const T* fresh) const {
    const Index size = problem_.batch * problem_.outputs;
    if (problem_.zone_h.on()) {
      zone_row<V>(problem_.zone_h, nullptr, fresh, problem_.h, size, problem_.h);
    } else {
      std::copy_n(fresh, size, problem_.h);
    }
  }

  void run_rows(int phase, Index first, int rows) const {
    const Index units = problem_.units, inputs = problem_.inputs, kept = cell_.saved * units;
    const auto matrix = panels_.recurrent[phase];
    const Tiles tiles = tiles_for(matrix);
    const Operand *x[kMaxTileRows], *state[kMaxTileRows];
    const T* h[kMaxTileRows];
    T *new_h[kMaxTileRows], *c[kMaxTileRows], *new_c[kMaxTileRows], *saved[kMaxTileRows];
    const T* operands = phase == 0 ? problem_.h : scratch_.operand;
    const Index size = matrix.depth;
    for (int r = 0; r < rows; ++r) {
      const Index i = first + r;
      if (problem_.x) {
        x[r] = operand_row(problem_.x + i * problem_.x_row, inputs,
                           scratch_.x_copies + r * copy_size<Product>(inputs));
      }
      state[r] =
          operand_row(operands + i * size, size, scratch_.h_copies + r * copy_size<Product>(size));
      h[r] = problem_.h + i * problem_.outputs, new_h[r] = scratch_.h + i * units;
      if (cell_.cell_state) {
        c[r] = problem_.c + i * units;
        new_c[r] = problem_.zone_c.on() ? scratch_.fresh_c + i * units : c[r];
      }
      if (phases_ > 1 || cell_.norms_c()) saved[r] = scratch_.saved + i * kept;
    }
    const auto apply = equations_.forward[phase];
    ForwardTile<T> tile{.units = units,
                        .end = rows,
                        .sums = scratch_.from_state,
                        .group_lanes = matrix.lanes(),
                        .group_blocks = matrix.blocks,
                        .x_sums = scratch_.from_input,
                        .h = h,
                        .c = c,
                        .saved_before = saved,
                        .saved = phase + 1 < phases_ || cell_.norms_c() ? saved : nullptr,
                        .operand = scratch_.operand + first * units,
                        .new_h = new_h,
                        .new_c = new_c,
                        .unit_weights = panels_.unit_weights,
                        .options = problem_.options};
    if (!Product::kScaled && cell_.layer_norm)  // as in forward.h
      return run_normed(phase, x, state, first, rows, tile);
    const Index most = groups_together(matrix, tiles, rows, matrix.groups());
    sweep(0, matrix.groups(), most, problem_.back, [&](Index p, Index side, Index) {
      const Index panel = p * matrix.panels(), panels = side * matrix.panels();
      sum_input(phase, x, first, rows, panel, panels);
      Ahead nothing;
      if (cell_.recurrent_product)
        multiply_panels(matrix, tiles, state, rows, panel, panels, nothing, scratch_.from_state);
      tile.first_unit = p * matrix.group_units(), tile.groups = side;
      tile.sums_row = panels * matrix.row_size();
      apply(tile);
    });
  }

  // The sums of whole rows, and then the equations of what they come to when they are normalised.
  void run_normed(int phase, const Operand* const* x, const Operand* const* state, Index first,
                  int rows, ForwardTile<T>& tile) const {
    const Range gates = cell_.phases[static_cast<std::size_t>(phase)];
    const Index units = problem_.units, row = cell_.gates * units;
    T *x_rows[kMaxTileRows], *sums[kMaxTileRows];
    for (int r = 0; r < rows; ++r)
      x_rows[r] = scratch_.x_rows + r * row, sums[r] = scratch_.sum_rows + r * row;
    const auto store = [&](const Matrix& matrix, T* const* to, const T* from, Index p, Index side) {
      const Index columns = side * matrix.row_size(), begin = p * matrix.row_size();
      store_tile<V>(to, gates.first * units + begin, rows, std::min(columns, matrix.units - begin),
                    columns, from);
    };
    const auto input = panels_.input[phase], recurrent = panels_.recurrent[phase];
    sweep(0, input.count(), tiles_for(input).panels(rows, input.count()), problem_.back,
          [&](Index p, Index side, Index) {
            sum_input(phase, x, first, rows, p, side);
            store(input, x_rows, scratch_.from_input, p, side);
          });
    sweep(0, recurrent.count(), tiles_for(recurrent).panels(rows, recurrent.count()), problem_.back,
          [&](Index p, Index side, Index) {
            Ahead nothing;
            multiply_panels(recurrent, tiles_for(recurrent), state, rows, p, side, nothing,
                            scratch_.from_state);
            store(recurrent, sums, scratch_.from_state, p, side);
          });
    const Index lanes = (units + V::size - 1) / V::size;
    tile.x_sums = nullptr, tile.x = x_rows;
    tile.sums = scratch_.normed_tile, tile.sums_row = lanes * gates.count * V::size;
    tile.group_lanes = gates.count, tile.group_blocks = 1, tile.groups = lanes;
    for (int r = 0; r < rows; ++r) {
      normalize_input<V>(cell_, gates, units, panels_.norm, x_rows[r], nullptr, nullptr);
      normalize_sums<V>(cell_, gates, units, panels_.norm, sums[r], nullptr,
                        scratch_.normed_tile + r * tile.sums_row);
    }
    equations_.forward[phase](tile);
    for (int r = 0; r < rows && cell_.norms_c(); ++r) {
      finish_output<V>(cell_, equations_, panels_.norm, problem_.options, units, tile.saved[r],
                       tile.new_c[r], nullptr, tile.new_h[r]);
    }
  }

  // h_t = W_hr h', of what the last phase left.
  void project_rows(Index first, int rows) const {
    const Index units = problem_.units, outputs = problem_.outputs;
    const auto matrix = panels_.projection;
    const Tiles tiles = tiles_for(matrix);
    const Operand* inner[kMaxTileRows];
    T* h[kMaxTileRows];
    for (int r = 0; r < rows; ++r) {
      inner[r] = operand_row(scratch_.h + (first + r) * units, units,
                             scratch_.h_copies + r * copy_size<Product>(units));
      h[r] = (problem_.zone_h.on() ? scratch_.projected : problem_.h) + (first + r) * outputs;
    }
    sweep(0, matrix.count(), tiles.panels(rows, matrix.count()), problem_.back,
          [&](Index p, Index side, Index) {
            const Index columns = side * matrix.row_size(), begin = p * matrix.row_size();
            Ahead nothing;
            multiply_panels(matrix, tiles, inner, rows, p, side, nothing, scratch_.from_state);
            store_tile<V>(h, begin, rows, std::min(columns, outputs - begin), columns,
                          scratch_.from_state);
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
  void sum_input(int phase, const Operand* const* x, Index first, int rows, Index panel,
                 Index count) const {
    const auto matrix = panels_.input[phase];
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
      V value = lanes[k % kDeep * kWide + w % kWide];
      if constexpr (Product::kScaled) value = value * V::load(matrix.scales(p) + w * V::size);
      (start + value).store(out + w * V::size);
    }
  }

  const CellFacts& cell_;
  const CellEquations<T>& equations_;
  const int phases_;
  const StepProblem<T>& problem_;
  const TallTiles* const tall_;
  const Panels panels_;
  const Scratch scratch_;
};

}  // namespace rnnkern
