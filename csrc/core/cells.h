// SPDX-License-Identifier: Apache-2.0
// The list of cells, and their facts: a new cell is a header of its own and one more entry here.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "cells/gru.h"
#include "cells/ind_rnn.h"
#include "cells/lstm.h"
#include "cells/min_gru.h"
#include "cells/min_lstm.h"
#include "cells/minimal_gated.h"
#include "cells/rnn.h"
#include "cells/simplified_gru.h"

namespace rnnkern {

// Cells are templates on the lane, so that no two instruction sets share a symbol.
template <template <class V> class... Cells>
struct CellList {
  static constexpr int size = sizeof...(Cells);
};

using AllCells =
    CellList<RnnTanh, RnnRelu, SimplifiedGru, GruResetBefore, GruResetAfter, MinimalGated, Lstm,
             LstmCoupled, LstmPeephole, LstmPeepholeCoupled, MinGru, MinLstm, IndRnn>;

// A cell's facts, for code that is no template.
struct CellFacts {
  std::string_view name;
  std::span<const char* const> gate_names, states;  // states: h, or h and c
  int gates, saved, deltas;
  bool cell_state;  // whether there is c
  std::span<const Range> phases;
  int operand_gate;         // or kNoGate
  bool recurrent_product;   // whether there is W_hh
  int recurrent_bias_gate;  // or kNoGate
  int unit_weights;
  std::string_view unit_weights_name;
  bool sees_h;
  std::span<const Range> norm_blocks;
  int output_gate;  // or kNoGate
  // Of a twin that normalises, which has the cell's equations: its gradients' places are the cell's own ones,
  // then one a gate, ∂L/∂(its recurrent sums), and where there is c ∂L/∂(c normalised).
  bool layer_norm = false;
  int equations = 0;   // the cell's place in AllCells
  int own_deltas = 0;  // the cell's

  [[gnu::always_inline]] bool norms_c() const { return layer_norm && cell_state; }

  // Inlined always, as what kernels of several instruction sets use must be.
  [[gnu::always_inline]] int phase_count() const { return static_cast<int>(phases.size()); }

  // Of W_hh.
  [[gnu::always_inline]] std::ptrdiff_t recurrent_columns(std::ptrdiff_t units) const {
    return recurrent_product ? units : 0;
  }

  // Where among the deltas that of a gate's recurrent part is.
  [[gnu::always_inline]] int recurrent_delta(int gate) const {
    return layer_norm ? own_deltas + gate : preactivation_delta(gate);
  }

  // And where that of what its equations see of it is.
  [[gnu::always_inline]] int preactivation_delta(int gate) const {
    return gate == recurrent_bias_gate ? gates : gate;
  }

  // Those of the deltas that are pre-activations' and so meet x or an operand in a product: the first.
  [[gnu::always_inline]] int preactivation_deltas() const {
    return deltas - unit_weights - norms_c();
  }
};
// Those of AllCells, and behind them their twins.
const std::vector<CellFacts>& all_cells();
inline const CellFacts& cell_facts(int cell) { return all_cells()[static_cast<std::size_t>(cell)]; }

// Index into all_cells(), and into the kernels' tables; throws std::invalid_argument for a name
// that no cell has.
int find_cell(std::string_view name);

}  // namespace rnnkern
