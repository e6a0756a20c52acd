// SPDX-License-Identifier: Apache-2.0
// A cell's equations on one row and one lane of units, between memory and registers: sequences and
// single steps, forward and backward, all go through here.
#pragma once

#include "core/cell.h"
#include "cpu/recurrent/equations.h"

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
  const T *h, *c;         // of the step before; h where the cell sees it
  const T* saved_before;  // what earlier phases saved
  T* saved;               // what this one does; null where nobody will ask for it
  Index units;            // from a saved value to the next
  T* operand;             // of the next phase
  T *new_h, *new_c;       // what the last phase leaves; new_c may be c
  const T* unit_weights;
};

template <int P, class V, class Cell, class Lane, class Functions>
[[gnu::always_inline]] inline void forward_cell(Lane lane,
                                                const ForwardPlace<typename V::value>& at,
                                                const Functions& functions) {
  constexpr Range phase = Cell::phases[P], saves = saved_in<Cell>(P);
  ForwardStep<V, Cell> step;
  for (int g = 0; g < phase.count; ++g) {
    step.x[phase.first + g] = lane.load(at.x + g * at.x_gate);
    if constexpr (Cell::recurrent_product)
      step.product[phase.first + g] = V::load(at.sums + g * at.sums_gate);
  }
  for (int k = 0; k < saves.first; ++k) step.saved[k] = lane.load(at.saved_before + k * at.units);
  if constexpr (Cell::sees_h) step.h = lane.load(at.h);
  if constexpr (has_c<Cell>) step.c = lane.load(at.c);
  for (int k = 0; k < Cell::unit_weights; ++k)
    step.unit[k] = lane.load(at.unit_weights + k * at.units);

  Cell::forward(Phase<P>{}, step, functions);

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
  const T *h_previous, *h, *c_previous, *c;  // h where the cell sees it
  const T* dy;                               // or null
  T *dh, *dc;  // in: ∂L/∂h_t but for dy and the product, ∂L/∂c_t; out: those of the step before
  T* dh_now;   // ∂L/∂h_t, from phase 0 to phase 1
  T* delta;    // out
  T* state_gradients;  // out: ∂L/∂h_t, ∂L/∂c_t, and ∂L/∂(each pre-activation); or null
  const T* unit_weights;
};

// `product` is what the phase's product adds to ∂L/∂h_t or, in phase 1, ∂L/∂operand.
template <int P, class V, class Cell, class Lane, class Functions>
[[gnu::always_inline]] inline void backward_cell(Lane lane, V product,
                                                 const BackwardPlace<typename V::value>& at,
                                                 const Functions& functions) {
  constexpr Range found = found_in<Cell>(P);
  BackwardStep<V, Cell> step;
  for (int k = 0; k < Cell::saved; ++k) step.saved[k] = lane.load(at.saved + k * at.units);
  if constexpr (Cell::sees_h) {
    step.h_previous = lane.load(at.h_previous);
    step.h = lane.load(at.h);
  }
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
  for (int k = 0; k < Cell::unit_weights; ++k)
    step.unit[k] = lane.load(at.unit_weights + k * at.units);

  Cell::backward(Phase<P>{}, step, functions);

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

// The equations of phase P on a tile.
template <int P, class V, class Cell, class Functions>
void forward_tile(const ForwardTile<typename V::value>& tile) {
  using T = typename V::value;
  const Functions functions(tile.options);
  constexpr int first = Cell::phases[P].first;
  const Index units = tile.units, sums_gate = Index{tile.group_blocks} * V::size;
  const auto apply = [&](auto lane, Index unit, Index at_sums) __attribute__((always_inline)) {
    for (Index i = tile.begin; i < tile.end; ++i, at_sums += tile.sums_row) {
      ForwardPlace<T> at{.x = nullptr,
                         .x_gate = units,
                         .sums = tile.sums + at_sums,
                         .sums_gate = sums_gate,
                         .h = nullptr,
                         .c = nullptr,
                         .saved_before = nullptr,
                         .saved = nullptr,
                         .units = units,
                         .operand = nullptr,
                         .new_h = nullptr,
                         .new_c = nullptr,
                         .unit_weights = nullptr};
      if (tile.x_sums) {
        at.x = tile.x_sums + at_sums, at.x_gate = sums_gate;
      } else {
        at.x = tile.x[i] + first * units + unit;
      }
      if constexpr (saved_in<Cell>(P).first > 0) at.saved_before = tile.saved_before[i] + unit;
      if constexpr (saved_in<Cell>(P).count > 0) {
        if (tile.saved) at.saved = tile.saved[i] + unit;
      }
      if constexpr (P + 1 < phase_count<Cell>) {
        at.operand = tile.operand + i * units + unit;
      } else {
        at.new_h = tile.new_h[i] + unit;
        if constexpr (has_c<Cell>) at.new_c = tile.new_c[i] + unit;
      }
      if constexpr (Cell::sees_h) at.h = tile.h[i] + unit;
      if constexpr (has_c<Cell>) at.c = tile.c[i] + unit;
      if constexpr (Cell::unit_weights > 0) at.unit_weights = tile.unit_weights + unit;
      forward_cell<P, V, Cell>(lane, at, functions);
    }
  };
  Index unit = tile.first_unit;
  for (Index group = 0; group < tile.groups; ++group) {
    for (int block = 0; block < tile.group_blocks; ++block, unit += V::size) {
      const Index at_sums = (group * tile.group_lanes + block) * V::size;
      if (unit + V::size <= units) {
        apply(WholeLane<V>{}, unit, at_sums);
      } else if constexpr (V::size > 1) {
        if (unit < units) apply(PartLane<V>{units - unit}, unit, at_sums);
      }
    }
  }
}

template <int P, class V, class Cell, class Functions>
void backward_tile(const BackwardTile<typename V::value>& tile) {
  using T = typename V::value;
  const Functions functions(tile.options);
  const Index units = tile.units;
  const auto apply = [&](auto lane, Index unit, const T* sums) __attribute__((always_inline)) {
    for (Index i = tile.begin; i < tile.end; ++i, sums += tile.sums_row) {
      const Index state = tile.order[i] * units + unit;
      T* dh = tile.dh + state;
      V product(T(0));
      if constexpr (Cell::recurrent_product) product = V::load(sums);
      if (i >= tile.live) {
        lane.store(dh, lane.load(dh) + product);
        continue;
      }
      BackwardPlace<T> at{
          .units = units,
          .saved = nullptr,
          .h_previous = nullptr,
          .h = nullptr,
          .c_previous = nullptr,
          .c = nullptr,
          .dy = tile.dy ? tile.dy[i] + unit : nullptr,
          .dh = dh,
          .dc = nullptr,
          .dh_now = nullptr,
          .delta = tile.delta[i] + unit,
          .state_gradients = tile.state_gradients ? tile.state_gradients[i] + unit : nullptr,
          .unit_weights = nullptr};
      if constexpr (Cell::saved > 0) at.saved = tile.saved[i] + unit;
      if constexpr (Cell::sees_h) {
        at.h_previous = tile.h_previous[i] + unit, at.h = tile.h[i] + unit;
      }
      if constexpr (phase_count<Cell> > 1) at.dh_now = tile.dh_now + i * units + unit;
      if constexpr (has_c<Cell>) {
        at.c_previous = tile.c_previous[i] + unit, at.c = tile.c[i] + unit;
        at.dc = tile.dc + state;
      }
      if constexpr (Cell::unit_weights > 0) at.unit_weights = tile.unit_weights + unit;
      backward_cell<P, V, Cell>(lane, product, at, functions);
    }
  };
  for (Index block = 0; block < tile.blocks; ++block) {
    const Index unit = tile.first_unit + block * V::size;
    const T* sums = tile.sums + block * V::size;
    if (unit + V::size <= units) {
      apply(WholeLane<V>{}, unit, sums);
    } else if constexpr (V::size > 1) {
      if (unit < units) apply(PartLane<V>{units - unit}, unit, sums);
    }
  }
}

// Calls visit(where a lane begins, the lane) for those of a row.
template <class V, class Visit>
[[gnu::always_inline]] inline void for_lanes(Index units, Visit visit) {
  Index j = 0;
  for (; j + V::size <= units; j += V::size) visit(j, WholeLane<V>{});
  if constexpr (V::size > 1) {
    if (j < units) visit(j, PartLane<V>{units - j});
  }
}

template <class V, class Functions>
void output_row(const OutputRow<typename V::value>& row) {
  const Functions functions(row.options);
  const V minus(-row.mean), scale(row.scale);
  for_lanes<V>(row.units, [&](Index j, auto lane) __attribute__((always_inline)) {
    const V n = (lane.load(row.c + j) + minus) * scale;
    const V seen = fma(lane.load(row.gain + j), n, lane.load(row.shift + j));
    lane.store(row.h + j, GatedOutput<V>::forward(lane.load(row.gate + j), seen, functions));
  });
}

template <class V, class Functions>
void output_row_backward(const OutputRow<typename V::value>& row) {
  using T = typename V::value;
  const Functions functions(row.options);
  const V minus(-row.mean), scale(row.scale);
  for_lanes<V>(row.units, [&](Index j, auto lane) __attribute__((always_inline)) {
    const V n = (lane.load(row.c + j) + minus) * scale;
    const V seen = fma(lane.load(row.gain + j), n, lane.load(row.shift + j));
    const auto gradient = GatedOutput<V>::backward(lane.load(row.gate + j), seen,
                                                   lane.load(row.dh + j), V(T(0)), functions);
    lane.store(row.dgate + j, gradient.gate);
    lane.store(row.d + j, gradient.c);
    lane.store(row.normed + j, n);
  });
}

template <class V, class Cell, class Functions>
constexpr CellEquations<typename V::value> equations() {
  static_assert(phase_count<Cell> <= kMostPhases);
  CellEquations<typename V::value> all{{forward_tile<0, V, Cell, Functions>},
                                       {backward_tile<0, V, Cell, Functions>}};
  if constexpr (phase_count<Cell> > 1) {
    all.forward[1] = forward_tile<1, V, Cell, Functions>;
    all.backward[1] = backward_tile<1, V, Cell, Functions>;
  }
  if constexpr (Cell::output_gate != kNoGate && Cell::unit_weights == 0) {
    all.output = output_row<V, Functions>;
    all.output_backward = output_row_backward<V, Functions>;
  }
  return all;
}

}  // namespace rnnkern
