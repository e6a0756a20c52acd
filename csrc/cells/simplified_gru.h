// SPDX-License-Identifier: Apache-2.0
// The GRU without a reset gate:
//   u_t = σ(W_hu h_{t-1} + W_xu x_t + b_u)
//   n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n)
//   h_t = u_t·n_t + (1 - u_t)·h_{t-1}
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct SimplifiedGru : CellDefaults<2> {
  enum { u, n };

  static constexpr const char* name = "simplified_gru";
  static constexpr const char* gate_names[] = {"u", "n"};
  static constexpr Range norm_blocks[] = {{u, 1}, {n, 1}};

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, SimplifiedGru>& s, const F& f) {
    s.saved[u] = f.update(s.x[u] + s.product[u]);
    s.saved[n] = f.candidate(s.x[n] + s.product[n]);
    s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, SimplifiedGru>& s, const F& f) {
    const V one(1), update = s.saved[u], candidate = s.saved[n];
    s.delta[u] = f.update_chain(update, s.dh * (candidate - s.h_previous));
    s.delta[n] = f.candidate_chain(candidate, s.dh * update);
    s.direct = s.dh * (one - update);
  }
};

}  // namespace rnnkern
