// SPDX-License-Identifier: Apache-2.0
// The weights as a forward pass reads them.
#pragma once

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/normalization.h"
#include "cpu/recurrent/recurrent_panels.h"
#include "cpu/team/team.h"

namespace rnnkern {

// The panels that a forward pass reads. A frozen layer keeps them from call to call.
template <class V, class Product>
struct ForwardPanels {
  using T = typename V::value;
  using Matrix = PanelMatrix<V, Product>;

  Matrix input;
  Matrix recurrent[kMostPhases];
  T* unit_weights;
  NormWeights<T> norm;
  Matrix projection;  // where there is one

  ForwardPanels(const CellFacts& cell, const Parameters<T>& parameters, bool with_input,
                Arena& arena) {
    const Index units = parameters.units, outputs = parameters.outputs;
    for (int p = 0; p < cell.phase_count(); ++p) {
      recurrent[p] = phase_matrix<Matrix>(cell, p, units, cell.recurrent_columns(outputs));
      recurrent[p].data = arena.take<T>(recurrent[p].size());
    }
    unit_weights = take_unit_weights<T>(cell, units, arena);
    norm = NormWeights<T>(cell, units, arena);
    if (outputs != units) {
      projection = Matrix(units, outputs, 1);
      projection.data = arena.take<T>(projection.size());
    }
    // Last, so that panels packed with it serve tokens as well.
    if (with_input) {
      input = Matrix(parameters.inputs, cell.gates * units, 1);
      input.data = arena.take<T>(input.size());
    }
  }

  // Each thread packs the units that it will multiply with, so that they are in its own cache.
  void pack(const CellFacts& cell, const Parameters<T>& parameters, const Worker& worker) const {
    if (input.data) {
      const auto share = worker.share(input.count());
      const T* start = cell.layer_norm ? nullptr : parameters.bias;
      pack_start(input, share.begin, share.end, &start);
      pack_columns(input, share.begin, share.end, {parameters.w_ih, parameters.inputs});
    }
    for (int p = 0; p < cell.phase_count(); ++p) {
      const auto share = worker.share(recurrent[p].groups());
      pack_recurrent(cell, recurrent[p], parameters, p, share.begin, share.end);
    }
    const auto copied = worker.share(cell.unit_weights * parameters.units);
    copy_unit_weights(parameters, unit_weights, copied.begin, copied.end);
    if (worker.id == 0) norm.pack(cell, parameters);
    if (parameters.outputs != parameters.units) {
      const auto share = worker.share(projection.groups());
      pack_projection(projection, parameters, share.begin, share.end);
    }
  }
};

}  // namespace rnnkern
