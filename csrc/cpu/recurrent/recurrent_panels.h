// SPDX-License-Identifier: Apache-2.0
// The recurrent weights as the forward pass and a single step read them: units by groups, the gates
// of a phase side by side.
#pragma once

#include "core/cells.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"

namespace rnnkern {

// A matrix of phase p's gates: side by side for each lane of units, or one behind the other where sums are
// normalised before equations see them.
template <class Matrix>
[[gnu::always_inline]] inline Matrix phase_matrix(const CellFacts& cell, int p, Index units,
                                                  Index depth) {
  const int gates = cell.phases[static_cast<std::size_t>(p)].count;
  return cell.layer_norm ? Matrix(depth, gates * units, 1) : Matrix(depth, units, gates);
}

// Groups [begin, end) of that of W_hh.
template <class Matrix, class T>
[[gnu::always_inline]] inline void pack_recurrent(const CellFacts& cell, const Matrix& matrix,
                                                  const Parameters<T>& parameters, int p,
                                                  Index begin, Index end) {
  if (!cell.recurrent_product) return;
  const Index units = parameters.units, outputs = parameters.outputs;
  const int first = cell.phases[p].first;
  const T* starts[kMostGates] = {};
  const int biased = cell.recurrent_bias_gate - first;
  if (!cell.layer_norm && 0 <= biased && biased < cell.phases[p].count)
    starts[biased] = parameters.bias_hn;
  pack_start(matrix, begin, end, starts);
  const Index gate = units * outputs;
  pack_columns(matrix, begin, end, {parameters.w_hh + first * gate, outputs, gate});
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
  pack_start(matrix, begin, end, nullptr);
  pack_columns(matrix, begin, end, {parameters.w_hr, parameters.units});
}

}  // namespace rnnkern
