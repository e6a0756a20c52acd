// SPDX-License-Identifier: Apache-2.0
// What a cell says of itself, and the registers through which the time loops talk to its equations.
//
// A cell is a struct, a template on its lane V and derived from CellDefaults<gates>, with
//   name                   as the Python layer calls it
//   gate_names             of its pre-activations: gate g is rows [g·H, (g+1)·H) of the weights
//   forward(Phase<p>, s, f)   the equations, and below it
//   backward(Phase<p>, s, f)  their derivatives, run for rising p too
// with s what they read and write, and f the functions that they apply (core/functions.h).
// Its equations see registers of a lane V alone: no memory, no shapes, no loops. So sequences and
// single steps have them from one place on every processor. What else a cell may say of itself, and
// what holds where it does not, is in CellDefaults.
#pragma once

#include "core/functions.h"
#include "core/lane.h"

namespace rnnkern {

template <int P>
struct Phase {};

struct Range {
  int first, count;
};

inline constexpr int kNoGate = -1;

template <int Gates, int Saved = Gates>
struct CellDefaults {
  // What f.candidate is unless a layer is given another.
  using Candidate = Tanh;

  static constexpr int gates = Gates;

  // Values a unit keeps for the backward pass: one a gate, in the order of the gates, then any
  // others; or none at all.
  static constexpr int saved = Saved;

  // What goes from step to step: h, and in a cell that also names "c" a second state, which no
  // weights multiply.
  static constexpr const char* states[] = {"h"};

  // The parts of the recurrent product in the order in which they are needed: a phase computes its
  // gates [first, first + count). Phase 0 multiplies h_{t-1}; phase 1, which needs what phase 0
  // made, multiplies saved[operand_gate]·h_{t-1}.
  static constexpr Range phases[] = {{0, Gates}};
  static constexpr int operand_gate = kNoGate;

  // Gates of one phase that layer normalisation takes together: their parts from x have one mean and one
  // variance, and so have their recurrent parts.
  static constexpr Range norm_blocks[] = {{0, Gates}};

  // The gate that h = gate·f.output(c) has, where h is made of c so (GatedOutput): layer normalisation of c
  // stands between the two.
  static constexpr int output_gate = kNoGate;

  // Whether weights multiply what a phase sees of h_{t-1}. Without, there is no W_hh: a unit sees the h of its
  // own alone, in one phase, and nothing but the part from x takes a product.
  static constexpr bool recurrent_product = true;

  // The gate whose recurrent product has a bias of its own, bias_hn. Then its gradient is apart
  // from that of the part from x too, and stands behind the gates' own, in delta[gates].
  static constexpr int recurrent_bias_gate = kNoGate;

  // Weights of a unit that no product has and the equations see, as those of peepholes: how many, which
  // are the rows of one array of parameters, and what that is called. Their gradients at a step stand
  // behind the others, in delta[unit_delta<Cell>(k)], and are summed as a bias's are.
  static constexpr int unit_weights = 0;
  static constexpr const char* unit_weights_name = "";

  // Whether the equations see h_{t-1} beside its product, or h_t on the way back. Where they do not,
  // h may be a projection of what they leave, and of another width.
  static constexpr bool sees_h = true;
};

inline constexpr int kMostPhases = 2, kMostGates = 4;

template <class Cell>
inline constexpr int phase_count = static_cast<int>(sizeof(Cell::phases) / sizeof(Range));

template <class Cell>
inline constexpr bool has_c = sizeof(Cell::states) > sizeof(const char*);

// Gradients of pre-activations that a unit has: one a gate, of its part from x, and the one above.
template <class Cell>
inline constexpr int preactivation_deltas = Cell::gates + (Cell::recurrent_bias_gate != kNoGate);

// Gradients that a unit has: those, and of its own weights.
template <class Cell>
inline constexpr int delta_count = preactivation_deltas<Cell> + Cell::unit_weights;

// Where among them that of a unit's own weight k is.
template <class Cell>
constexpr int unit_delta(int k) {
  return preactivation_deltas<Cell> + k;
}

// Where among them that of gate g's recurrent part is.
template <class Cell>
constexpr int recurrent_delta(int g) {
  return g == Cell::recurrent_bias_gate ? Cell::gates : g;
}

// The values that a phase saves.
template <class Cell>
constexpr Range saved_in(int phase) {
  const int first = phase > 0 ? Cell::phases[phase].first : 0;
  const bool last = phase + 1 == phase_count<Cell>;
  return {first, (last ? Cell::saved : Cell::phases[phase + 1].first) - first};
}

// The gradients that a phase of the backward pass finds: those of the gate that phase 1's operand
// is made of wait for ∂L/∂operand, the others need ∂L/∂h_t alone.
template <class Cell>
constexpr Range found_in(int phase) {
  if constexpr (phase_count<Cell> == 1) {
    return {0, delta_count<Cell>};
  } else {
    static_assert(phase_count<Cell> == 2 && Cell::operand_gate == 0);
    return phase == 0 ? Range{1, delta_count<Cell> - 1} : Range{0, 1};
  }
}

constexpr int at_least_one(int n) { return n > 0 ? n : 1; }

template <class V, class Cell>
struct ForwardStep {
  V x[Cell::gates];                    // W_ih x_t + b, read by the phase that has the gate
  V product[Cell::gates];              // W_hh · operand (+ bias_hn), likewise, where there is W_hh
  V saved[at_least_one(Cell::saved)];  // what earlier phases saved is here; this phase adds its own
  V h, c;                              // in: h_{t-1}, c_{t-1}; the last phase leaves h_t, c_t
  V unit[at_least_one(Cell::unit_weights)];  // the unit's own weights
};

template <class V, class Cell>
struct BackwardStep {
  V saved[at_least_one(Cell::saved)];
  V h_previous, h, c_previous, c;
  V dh;        // ∂L/∂h_t, whole
  V doperand;  // phase 1: ∂L/∂(its operand)
  V dc;        // in: ∂L/∂c_t as step t+1 left it; out: ∂L/∂c_{t-1}
  V dc_now;    // out: ∂L/∂c_t, whole
  V direct;    // ∂L/∂h_{t-1} by every path that is not the product of phase 0; phase 1 adds to it
  V delta[delta_count<Cell>];  // what phase 0 found is here; phase 1 adds its own
  V unit[at_least_one(Cell::unit_weights)];
};

// What h is made of, of a cell that names its output_gate.
template <class V>
struct GatedOutput {
  // ∂L/∂(the gate's pre-activation), and ∂L/∂c with what else reaches it.
  struct Gradient {
    V gate, c;
  };

  template <class F>
  RNNKERN_DEVICE static V forward(V gate, V c, const F& f) {
    return gate * f.output(c);
  }
  template <class F>
  RNNKERN_DEVICE static Gradient backward(V gate, V c, V dh, V rest, const F& f) {
    const V squashed = f.output(c);
    return {f.gate_chain(gate, dh * squashed), f.output_chain(squashed, dh * gate, rest)};
  }
};

}  // namespace rnnkern
