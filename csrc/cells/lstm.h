// SPDX-License-Identifier: Apache-2.0
// Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000), with an input
// gate, which the formulas call u, a forget gate f, a new cell value n and an output gate o:
//   u_t, f_t, o_t = σ(W_h h_{t-1} + W_x x_t + b)
//   n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n)
//   c_t = u_t·n_t + f_t·c_{t-1},  h_t = o_t·tanh(c_t)
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct Lstm : CellDefaults<4> {
  enum { input, forget, cell, output };

  static constexpr const char* name = "lstm";
  static constexpr const char* gate_names[] = {"u", "f", "n", "o"};
  static constexpr const char* states[] = {"h", "c"};

  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, Lstm>& s) {
    s.saved[input] = sigmoid(s.x[input] + s.product[input]);
    s.saved[forget] = sigmoid(s.x[forget] + s.product[forget]);
    s.saved[cell] = tanh(s.x[cell] + s.product[cell]);
    s.saved[output] = sigmoid(s.x[output] + s.product[output]);
    s.c = fma(s.saved[forget], s.c, s.saved[input] * s.saved[cell]);
    s.h = s.saved[output] * tanh(s.c);
  }

  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, Lstm>& s) {
    const V one(1), u = s.saved[input], f = s.saved[forget], n = s.saved[cell], o = s.saved[output];
    const V squashed = tanh(s.c);
    const V dc = fma(s.dh * o, one - squashed * squashed, s.dc);
    s.delta[input] = dc * n * u * (one - u);
    s.delta[forget] = dc * s.c_previous * f * (one - f);
    s.delta[cell] = dc * u * (one - n * n);
    s.delta[output] = s.dh * squashed * o * (one - o);
    s.dc_now = dc;
    s.dc = dc * f;
    s.direct = V(0);
  }
};

}  // namespace rnnkern
