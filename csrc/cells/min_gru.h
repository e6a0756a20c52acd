// SPDX-License-Identifier: Apache-2.0
// The minimal GRU (Feng et al. 2024, arXiv:2410.01201), whose gate and candidate do not see h:
//   u_t = σ(W_xu x_t + b_u)
//   n_t = W_xn x_t + b_n
//   h_t = u_t·n_t + (1 - u_t)·h_{t-1}
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct MinGru : CellDefaults<2> {
  enum { u, n };

  static constexpr const char* name = "min_gru";
  static constexpr const char* gate_names[] = {"u", "n"};
  static constexpr bool recurrent_product = false;

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, MinGru>& s, const F&) {
    s.saved[u] = sigmoid(s.x[u]);
    s.saved[n] = s.x[n];
    s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, MinGru>& s, const F&) {
    const V one(1), update = s.saved[u];
    s.delta[u] = s.dh * (s.saved[n] - s.h_previous) * update * (one - update);
    s.delta[n] = s.dh * update;
    s.direct = s.dh * (one - update);
  }
};

}  // namespace rnnkern
