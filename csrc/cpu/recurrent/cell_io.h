// SPDX-License-Identifier: Apache-2.0
// A cell's equations on one row and one lane of units, between memory and registers: sequences and
// single steps, forward and backward, all go through here.
#pragma once

#include "core/cell.h"

namespace rnnkern {

// Whole lanes and the last, partial one, as two types so that the first pays nothing for the
// second.
template <class V>
struct WholeLane {
  using T = typename V::value;
  [[gnu::always_inline]] V load(const T* p) const { return V::load(p); }
  [[gnu::always_inline]] void store(T* p, V v) const { v.store(p); }
};

template <class V>
struct PartLane {
  using T = typename V::value;
  Index n;
  [[gnu::always_inline]] V load(const T* p) const { return V::load(p, n); }
  [[gnu::always_inline]] void store(T* p, V v) const { v.store(p, n); }
};

// Where a phase finds the values of a row and a lane of units, and leaves them. Values of the same
// row that belong to the next gate, or are saved next, lie a distance apart.
template <class T>
struct ForwardPlace {
  const T* x;  // W_ih x + b of the phase's first gate
  Index x_gate;
  const T* sums;  // its recurrent product
  Index sums_gate;
  const T *h, *c;         // of the step before
  const T* saved_before;  // what earlier phases saved
  T* saved;               // what this one does; null where nobody will ask for it
  Index units;            // from a saved value to the next
  T* operand;             // of the next phase
  T *new_h, *new_c;       // what the last phase leaves; new_c may be c
};

template <int P, class V, class Cell, class Lane>
[[gnu::always_inline]] inline void forward_cell(Lane lane,
                                                const ForwardPlace<typename V::value>& at) {
  constexpr Range phase = Cell::phases[P], saves = saved_in<Cell>(P);
  ForwardStep<V, Cell> step;
  for (int g = 0; g < phase.count; ++g) {
    step.x[phase.first + g] = lane.load(at.x + g * at.x_gate);
    step.product[phase.first + g] = V::load(at.sums + g * at.sums_gate);
  }
  for (int k = 0; k < saves.first; ++k) step.saved[k] = lane.load(at.saved_before + k * at.units);
  step.h = lane.load(at.h);
  if constexpr (has_c<Cell>) step.c = lane.load(at.c);

  Cell::forward(Phase<P>{}, step);

  if constexpr (saves.count > 0) {
    if (at.saved) {
      for (int k = saves.first; k < saves.first + saves.count; ++k)
        lane.store(at.saved + k * at.units, step.saved[k]);
    }
  }
  if constexpr (P + 1 < phase_count<Cell>) {
    lane.store(at.operand, step.saved[Cell::operand_gate] * step.h);
  } else {
    lane.store(at.new_h, step.h);
    if constexpr (has_c<Cell>) lane.store(at.new_c, step.c);
  }
}

template <class T>
struct BackwardPlace {
  Index units;  // from a value that is saved, or a gradient, to the next
  const T* saved;
  const T *h_previous, *h, *c_previous, *c;
  const T* dy;  // or null
  T *dh, *dc;   // in: ∂L/∂h_t but for dy and the product, ∂L/∂c_t; out: those of the step before
  T* dh_now;    // ∂L/∂h_t, from phase 0 to phase 1
  T* delta;     // out
  T* state_gradients;  // out: ∂L/∂h_t, ∂L/∂c_t, and ∂L/∂(each pre-activation); or null
};

// `product` is what the phase's product adds to ∂L/∂h_t or, in phase 1, ∂L/∂operand.
template <int P, class V, class Cell, class Lane>
[[gnu::always_inline]] inline void backward_cell(Lane lane, V product,
                                                 const BackwardPlace<typename V::value>& at) {
  constexpr Range found = found_in<Cell>(P);
  BackwardStep<V, Cell> step;
  for (int k = 0; k < Cell::saved; ++k) step.saved[k] = lane.load(at.saved + k * at.units);
  step.h_previous = lane.load(at.h_previous);
  step.h = lane.load(at.h);
  if constexpr (has_c<Cell>) {
    step.c_previous = lane.load(at.c_previous);
    step.c = lane.load(at.c);
    step.dc = lane.load(at.dc);
  }
  if constexpr (P == 0) {
    step.dh = product + lane.load(at.dh);
    if (at.dy) step.dh = step.dh + lane.load(at.dy);
    if constexpr (phase_count<Cell> > 1) lane.store(at.dh_now, step.dh);
  } else {
    step.dh = lane.load(at.dh_now);
    step.doperand = product;
    step.direct = lane.load(at.dh);
    constexpr Range before = found_in<Cell>(P - 1);
    for (int d = before.first; d < before.first + before.count; ++d)
      step.delta[d] = lane.load(at.delta + d * at.units);
  }

  Cell::backward(Phase<P>{}, step);

  if (at.state_gradients) {
    constexpr int states = has_c<Cell> ? 2 : 1;
    if constexpr (P == 0) {
      lane.store(at.state_gradients, step.dh);
      if constexpr (has_c<Cell>) lane.store(at.state_gradients + at.units, step.dc_now);
    }
    for (int g = found.first; g < found.first + found.count && g < Cell::gates; ++g)
      lane.store(at.state_gradients + (states + g) * at.units, step.delta[g]);
  }
  for (int d = found.first; d < found.first + found.count; ++d)
    lane.store(at.delta + d * at.units, step.delta[d]);
  lane.store(at.dh, step.direct);
  if constexpr (has_c<Cell>) lane.store(at.dc, step.dc);
}

}  // namespace rnnkern
