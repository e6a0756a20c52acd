// SPDX-License-Identifier: Apache-2.0
// A cell's equations as the time loops call them: on a tile of sums at once. The loops themselves
// know a cell by its facts alone, so that they are compiled once for a product and not for each cell.
#pragma once

#include "core/cells.h"

namespace rnnkern {

// Rows [begin, end) of a batch and `groups` of lanes of units from first_unit on, as PanelMatrix groups
// them. Arrays of pointers have one entry a row, to its first unit. The sums of a row stand sums_row
// after those of the row before.
template <class T>
struct ForwardTile {
  Index units;
  Index begin = 0, end = 0;
  Index first_unit = 0, groups = 0;
  const T* sums;  // the recurrent product
  Index sums_row = 0;
  int group_lanes, group_blocks;
  const T* x_sums = nullptr;       // W_ih x + b, laid out as the sums are; or null, and then
  const T* const* x = nullptr;     // its rows (G·H)
  const T *const *h, *const *c;    // of the step before
  const T* const* saved_before;    // what earlier phases saved
  T* const* saved;                 // what this one does; null where nobody will ask for it
  T* operand;                      // (B, H): of the next phase
  T *const *new_h, *const *new_c;  // what the last phase leaves; new_c may be c
  const T* unit_weights;           // (of the cell, H)
  const CellOptions<T>* options;   // for equations of given functions
};

// Likewise, for `blocks` lanes of units, whose sums stand side by side. Rows from `live` on have ended: they
// only hand on what the product sends them.
template <class T>
struct BackwardTile {
  Index units;
  Index begin = 0, end = 0, live;
  Index first_unit = 0, blocks = 0;
  const T* sums;
  Index sums_row = 0;
  const Index* order;  // whose rows of dh and dc they are
  const T* const* saved;
  const T *const *h_previous, *const *h, *const *c_previous, *const *c;
  const T* const* dy;         // or null
  T *dh, *dc;                 // (B, H)
  T* dh_now;                  // (B, H), by tile row: from phase 0 to phase 1
  T* const* delta;            // out
  T* const* state_gradients;  // out, or null
  const T* unit_weights;      // (of the cell, H)
  const CellOptions<T>* options;
};

// One row on its way from a normalised c to h = gate·f.output(gain·n + shift), or back.
template <class T>
struct OutputRow {
  Index units;
  const T *gate, *c;
  T mean, scale;  // c's
  const T *gain, *shift;
  const CellOptions<T>* options;
  T* h = nullptr;         // forward: out
  const T* dh = nullptr;  // backward: ∂L/∂h_t, whole
  T* dgate = nullptr;     // out: ∂L/∂(the gate's pre-activation),
  T* d = nullptr;         // ∂L/∂(gain·n + shift),
  T* normed = nullptr;    // and n
};

// By phase; and of h, null where it is not made of c by a gate.
template <class T>
struct CellEquations {
  void (*forward[kMostPhases])(const ForwardTile<T>&);
  void (*backward[kMostPhases])(const BackwardTile<T>&);
  void (*output)(const OutputRow<T>&) = nullptr;
  void (*output_backward)(const OutputRow<T>&) = nullptr;
};

// What the loops take.
template <class T>
struct LoopCell {
  const CellFacts& facts;
  const CellEquations<T>& equations;
};

}  // namespace rnnkern
