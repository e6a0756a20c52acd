// SPDX-License-Identifier: Apache-2.0
// What a cell says of itself, and the registers through which the time loop talks to its equations.
//
// A cell is a struct, a template on its lane V, with
//   name                        as the Python layer calls it
//   gates                       pre-activations a unit has; gate g is rows [g·H, (g+1)·H) of the weights
//   cell_state                  whether a second state c runs beside h
//   phases                      the recurrent product's parts in the order they are needed: phase p computes
//                               the gates [first, first + count) from operand(p); operand(0) is h_{t-1}
//   saved                       values a unit keeps for the backward pass; those of phase p end at saved_after[p]
//   deltas                      gradients of pre-activations a unit has: delta[input_delta[g]] belongs to
//                               gate g's part from x, delta[state_delta[g]] to its recurrent part
//   forward(Phase<p>, s)        the equations, and below it
//   backward(Phase<p>, s)       their derivatives, run for rising p too; writes the deltas of the
//                               range writes[p]
// all of them on registers of a lane V: no memory, no shapes, no loops.
#pragma once

#include "core/activations.h"
#include "core/lane.h"

namespace rnnkern {

template <int P>
struct Phase {};

struct Range {
  int first, count;
};

constexpr int at_least_one(int n) { return n > 0 ? n : 1; }

template <class Cell>
constexpr int phase_count = static_cast<int>(sizeof(Cell::phases) / sizeof(Range));

template <class V, class Cell>
struct ForwardStep {
  V x[Cell::gates];                    // W_ih x_t + b, read by the phase that has the gate
  V product[Cell::gates];              // W_hh · operand (+ b_hn), likewise
  V saved[at_least_one(Cell::saved)];  // what earlier phases saved is here; this phase adds its own
  V h, c;                              // in: h_{t-1}, c_{t-1}; the last phase leaves h_t, c_t
};

template <class V, class Cell>
struct BackwardStep {
  V saved[at_least_one(Cell::saved)];
  V h_previous, h, c_previous, c;
  V dh;      // phase 0: ∂L/∂h_t, whole; phase p > 0: ∂L/∂operand(p)
  V dc;      // in: ∂L/∂c_t as step t+1 left it; out: ∂L/∂c_{t-1}
  V dc_now;  // out: ∂L/∂c_t, whole
  V direct;  // ∂L/∂h_{t-1} by every path that is not the product of phase 0
  V delta[Cell::deltas];
};

}  // namespace rnnkern
