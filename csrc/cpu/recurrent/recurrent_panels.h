// SPDX-License-Identifier: Apache-2.0
// The recurrent weights as the forward pass and a single step read them: units by groups, the gates
// of a phase side by side.
#pragma once

#include "core/cells.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"

namespace rnnkern {

// Groups [begin, end) of phase p's matrix.
template <class Matrix, class T>
[[gnu::always_inline]] inline void pack_recurrent(const CellFacts& cell, const Matrix& matrix,
                                                  const Parameters<T>& parameters, int p,
                                                  Index begin, Index end) {
  if (!cell.recurrent_product) return;
  const Index units = parameters.units, outputs = parameters.outputs;
  const int first = cell.phases[p].first;
  pack_start(matrix, begin, end, [&](int gate) -> const T* {
    return first + gate == cell.recurrent_bias_gate ? parameters.bias_hn : nullptr;
  });
  pack_columns(matrix, begin, end, [&](int gate, Index unit) {
    return parameters.w_hh + ((first + gate) * units + unit) * outputs;
  });
}

// Memory beside the panels for a copy of the units' own weights.
template <class T>
[[gnu::always_inline]] inline T* take_unit_weights(const CellFacts& cell, Index units,
                                                   Arena& arena) {
  return arena.take<T>(cell.unit_weights * units);
}

// Numbers [begin, end) of that copy.
template <class T>
[[gnu::always_inline]] inline void copy_unit_weights(const Parameters<T>& parameters, T* to,
                                                     Index begin, Index end) {
  for (Index j = begin; j < end; ++j) to[j] = parameters.unit_weights[j];
}

// The panels of a projection, likewise: h' (units) times W_hrᵀ.
template <class Matrix, class T>
[[gnu::always_inline]] inline void pack_projection(const Matrix& matrix,
                                                   const Parameters<T>& parameters, Index begin,
                                                   Index end) {
  pack_start(matrix, begin, end, [](int) -> const T* { return nullptr; });
  pack_columns(matrix, begin, end,
               [&](int, Index output) { return parameters.w_hr + output * parameters.units; });
}

}  // namespace rnnkern
