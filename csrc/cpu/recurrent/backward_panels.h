// SPDX-License-Identifier: Apache-2.0
// The weights as a backward pass reads them.
#pragma once

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/normalization.h"
#include "cpu/recurrent/recurrent_panels.h"
#include "cpu/team/team.h"

namespace rnnkern {

// The panels that a backward pass reads, packed when the forward pass ran: they are its snapshot of
// the weights, which may have changed since.
template <class V, class Product>
struct BackwardPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;

  Matrix recurrent[kMostPhases];  // phase p: its gates' rows of W_hh, (count·H, P)
  Matrix projection;              // W_hr, (P, H), where there is one
  Matrix input;                   // W_ih, (G·H, I)
  T* unit_weights;
  NormWeights<T> norm;

  BackwardPanels(const CellFacts& cell, Index inputs, Index units, Index outputs, bool with_input,
                 Arena& arena) {
    for (int p = 0; p < cell.phase_count(); ++p) {
      recurrent[p] = Matrix(cell.phases[p].count * cell.recurrent_columns(units), outputs, 1);
      recurrent[p].data = arena.take<T>(recurrent[p].size());
    }
    unit_weights = take_unit_weights<T>(cell, units, arena);
    norm = NormWeights<T>(cell, units, arena);
    if (outputs != units) {
      projection = Matrix(outputs, units, 1);
      projection.data = arena.take<T>(projection.size());
    }
    // Last, so that panels packed with it serve where no ∂L/∂x is wanted.
    if (with_input) {
      input = Matrix(cell.gates * units, inputs, 1);
      input.data = arena.take<T>(input.size());
    }
  }

  void pack(const CellFacts& cell, const Parameters<T>& parameters, const Worker& worker) const {
    const Index units = parameters.units, outputs = parameters.outputs;
    for (int p = 0; p < cell.phase_count() && cell.recurrent_product; ++p) {
      const T* rows = parameters.w_hh + cell.phases[p].first * units * outputs;
      pack_share(recurrent[p], rows, outputs, worker);
    }
    if (projection.data) pack_share(projection, parameters.w_hr, units, worker);
    if (input.data) pack_share(input, parameters.w_ih, parameters.inputs, worker);
    const auto copied = worker.share(cell.unit_weights * units);
    copy_unit_weights(parameters, unit_weights, copied.begin, copied.end);
    if (worker.id == 0) norm.pack(cell, parameters);
  }

 private:
  static void pack_share(const Matrix& matrix, const T* rows, Index row_size,
                         const Worker& worker) {
    const auto share = worker.share(matrix.count());
    pack_start(matrix, share.begin, share.end, nullptr);
    pack_rows(matrix, share.begin, share.end, rows, row_size);
  }
};

}  // namespace rnnkern
