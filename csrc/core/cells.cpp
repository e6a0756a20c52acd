// SPDX-License-Identifier: Apache-2.0
#include "core/cells.h"

#include <deque>
#include <iterator>
#include <stdexcept>
#include <string>

namespace rnnkern {

namespace {

template <class Cell>
CellFacts facts_of() {
  static_assert(std::size(Cell::gate_names) == Cell::gates && Cell::gates <= kMostGates);
  static_assert(phase_count<Cell> <= kMostPhases);
  static_assert((Cell::recurrent_product && Cell::sees_h) ||
                (phase_count<Cell> == 1 && Cell::recurrent_bias_gate == kNoGate));
  return {.name = Cell::name,
          .gate_names = Cell::gate_names,
          .states = Cell::states,
          .gates = Cell::gates,
          .saved = Cell::saved,
          .deltas = delta_count<Cell>,
          .cell_state = has_c<Cell>,
          .phases = Cell::phases,
          .operand_gate = Cell::operand_gate,
          .recurrent_product = Cell::recurrent_product,
          .recurrent_bias_gate = Cell::recurrent_bias_gate,
          .unit_weights = Cell::unit_weights,
          .unit_weights_name = Cell::unit_weights_name,
          .sees_h = Cell::sees_h,
          .norm_blocks = Cell::norm_blocks,
          .output_gate = Cell::output_gate,
          .own_deltas = delta_count<Cell>};
}

// Whether layer normalisation of a cell is anywhere defined, and the kernels have it: not without a recurrent
// product, nor where gates see c as it is; a normalised c goes through an output gate behind the only phase.
bool has_twin(const CellFacts& cell) {
  const bool outputs_c = cell.output_gate != kNoGate && cell.phase_count() == 1;
  return cell.recurrent_product && cell.unit_weights == 0 && (!cell.cell_state || outputs_c);
}

template <template <class> class... Cells>
std::vector<CellFacts> describe(CellList<Cells...>) {
  std::vector<CellFacts> cells = {facts_of<Cells<Scalar<float>>>()...};
  static std::deque<std::string> names;  // they stay where they are
  for (int i = 0; i < CellList<Cells...>::size; ++i) {
    const auto at = static_cast<std::size_t>(i);
    cells[at].equations = i;
    if (!has_twin(cells[at])) continue;
    CellFacts twin = cells[at];
    twin.name = names.emplace_back(std::string(twin.name) + "_norm");
    twin.layer_norm = true;
    twin.deltas += twin.gates + twin.cell_state;
    cells.push_back(twin);
  }
  return cells;
}

}  // namespace

const std::vector<CellFacts>& all_cells() {
  static const std::vector<CellFacts> cells = describe(AllCells());
  return cells;
}

int find_cell(std::string_view name) {
  const auto& cells = all_cells();
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (cells[i].name == name) return static_cast<int>(i);
  }
  throw std::invalid_argument("cell: no cell is named '" + std::string(name) + "'");
}

}  // namespace rnnkern
