// SPDX-License-Identifier: Apache-2.0
// The minimal LSTM (Feng et al. 2024, arXiv:2410.01201), whose gates and candidate do not see h, and whose
// shares of old and new sum to 1:
//   u_t, f_t = σ(W_x x_t + b)
//   n_t = W_xn x_t + b_n
//   h_t = (u_t·n_t + f_t·h_{t-1}) / (u_t + f_t)
#pragma once

#include <limits>

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct MinLstm : CellDefaults<3> {
  enum { u, f, n };

  static constexpr const char* name = "min_lstm";
  static constexpr const char* gate_names[] = {"u", "f", "n"};
  static constexpr bool recurrent_product = false;

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, MinLstm>& s, const F&) {
    s.saved[u] = sigmoid(s.x[u]);
    s.saved[f] = sigmoid(s.x[f]);
    s.saved[n] = s.x[n];
    s.h = fma(share(s.saved[u], s.saved[f]), s.saved[n] - s.h, s.h);
  }

  // With s = u / (u + f): ∂s/∂(pre-activation of u) = s·(1 - s)·(1 - u), and of f -s·(1 - s)·(1 - f).
  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, MinLstm>& s, const F&) {
    const V one(1), taken = share(s.saved[u], s.saved[f]), kept = one - taken;
    const V gradient = s.dh * (s.saved[n] - s.h_previous) * taken * kept;
    s.delta[u] = gradient * (one - s.saved[u]);
    s.delta[f] = gradient * (s.saved[f] - one);
    s.delta[n] = s.dh * taken;
    s.direct = s.dh * kept;
  }

 private:
  // So that the shares of two gates that are both closed are one half each.
  static constexpr auto kLeast = std::numeric_limits<typename V::value>::min();

  // Of the candidate.
  RNNKERN_DEVICE static V share(V of_new, V of_old) {
    const V added = of_new + V(kLeast);
    return added / (added + (of_old + V(kLeast)));
  }
};

}  // namespace rnnkern
