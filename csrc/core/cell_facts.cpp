// SPDX-License-Identifier: Apache-2.0
// The list of cells as facts: apart from the kernels' tables, for those who have kernels of their own.
#include <iterator>
#include <stdexcept>

#include "core/backend.h"
#include "core/cells.h"

namespace rnnkern {

namespace {

template <class Cell>
CellFacts facts_of() {
  static_assert(std::size(Cell::gate_names) == Cell::gates);
  return {.name = Cell::name,
          .gate_names = Cell::gate_names,
          .states = Cell::states,
          .gates = Cell::gates,
          .saved = Cell::saved,
          .cell_state = has_c<Cell>,
          .recurrent_bias_gate = Cell::recurrent_bias_gate};
}

template <template <class> class... Cells>
std::vector<CellFacts> describe(CellList<Cells...>) {
  return {facts_of<Cells<Scalar<float>>>()...};
}

}  // namespace

const std::vector<CellFacts>& all_cells() {
  static_assert(AllCells::size <= kMaxCells);
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
