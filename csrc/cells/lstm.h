// SPDX-License-Identifier: Apache-2.0
// Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000):
// Its gates are the input gate u (the update gate of some texts), the forget gate f, the candidate n
// and the output gate o.
//   u_t, f_t, o_t = σ(W_h h_{t-1} + W_x x_t + b),  n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n)
//   c_t = u_t·n_t + f_t·c_{t-1},  h_t = o_t·tanh(c_t)
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct Lstm : CellDefaults<4> {
  enum { u, f, n, o };

  static constexpr const char* name = "lstm";
  static constexpr const char* gate_names[] = {"u", "f", "n", "o"};
  static constexpr const char* states[] = {"h", "c"};

  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, Lstm>& s) {
    s.saved[u] = sigmoid(s.x[u] + s.product[u]);
    s.saved[f] = sigmoid(s.x[f] + s.product[f]);
    s.saved[n] = tanh(s.x[n] + s.product[n]);
    s.saved[o] = sigmoid(s.x[o] + s.product[o]);
    s.c = fma(s.saved[f], s.c, s.saved[u] * s.saved[n]);
    s.h = s.saved[o] * tanh(s.c);
  }

  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, Lstm>& s) {
    const V one(1), input = s.saved[u], forget = s.saved[f], candidate = s.saved[n],
                    output = s.saved[o];
    const V squashed = tanh(s.c);
    const V dc = fma(s.dh * output, one - squashed * squashed, s.dc);
    s.delta[u] = dc * candidate * input * (one - input);
    s.delta[f] = dc * s.c_previous * forget * (one - forget);
    s.delta[n] = dc * input * (one - candidate * candidate);
    s.delta[o] = s.dh * squashed * output * (one - output);
    s.dc_now = dc;
    s.dc = dc * forget;
    s.direct = V(0);
  }
};

}  // namespace rnnkern
