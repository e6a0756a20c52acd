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
  const Index units = parameters.units;
  const int first = cell.phases[p].first;
  pack_start(matrix, begin, end, [&](int gate) -> const T* {
    return first + gate == cell.recurrent_bias_gate ? parameters.bias_hn : nullptr;
  });
  pack_columns(matrix, begin, end, [&](int gate, Index unit) {
    return parameters.w_hh + ((first + gate) * units + unit) * units;
  });
}

}  // namespace rnnkern
