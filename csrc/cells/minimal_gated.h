// SPDX-License-Identifier: Apache-2.0
// The minimal gated unit (Zhou et al. 2016, arXiv:1603.09420), whose one gate resets and updates:
//   f_t = σ(W_hf h_{t-1} + W_xf x_t + b_f)
//   n_t = tanh(W_hn (f_t·h_{t-1}) + W_xn x_t + b_n)
//   h_t = f_t·n_t + (1 - f_t)·h_{t-1}
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct MinimalGated : CellDefaults<2> {
  enum { f, n };

  static constexpr const char* name = "minimal_gated";
  static constexpr const char* gate_names[] = {"f", "n"};
  static constexpr Range phases[] = {{f, 1}, {n, 1}};
  static constexpr int operand_gate = f;

  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, MinimalGated>& s) {
    s.saved[f] = sigmoid(s.x[f] + s.product[f]);
  }
  RNNKERN_DEVICE static void forward(Phase<1>, ForwardStep<V, MinimalGated>& s) {
    s.saved[n] = tanh(s.x[n] + s.product[n]);
    s.h = fma(s.saved[f], s.saved[n] - s.h, s.h);
  }

  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, MinimalGated>& s) {
    const V one(1), candidate = s.saved[n];
    s.delta[n] = s.dh * s.saved[f] * (one - candidate * candidate);
    s.direct = s.dh * (one - s.saved[f]);
  }
  RNNKERN_DEVICE static void backward(Phase<1>, BackwardStep<V, MinimalGated>& s) {
    const V one(1), forget = s.saved[f];
    const V gradient = fma(s.dh, s.saved[n] - s.h_previous, s.doperand * s.h_previous);
    s.delta[f] = gradient * forget * (one - forget);
    s.direct = fma(s.doperand, forget, s.direct);
  }
};

}  // namespace rnnkern
