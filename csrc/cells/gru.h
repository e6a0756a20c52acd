// SPDX-License-Identifier: Apache-2.0
// The gated recurrent unit, in the two forms that differ in where the reset gate acts.
//   r_t, u_t = σ(W_h h_{t-1} + W_x x_t + b)
//   before:  n_t = tanh(W_hn (r_t·h_{t-1}) + W_xn x_t + b_n)       (Cho et al. 2014, arXiv:1406.1078)
//   after:   n_t = tanh(r_t·(W_hn h_{t-1} + b_hn) + W_xn x_t + b_n)
//   h_t = u_t·n_t + (1 - u_t)·h_{t-1}
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct GruResetBefore : CellDefaults<3> {
  enum { r, u, n };

  static constexpr const char* name = "gru_before";
  static constexpr const char* gate_names[] = {"r", "u", "n"};
  static constexpr Range phases[] = {{r, 2}, {n, 1}};
  static constexpr Range norm_blocks[] = {{r, 2}, {n, 1}};
  static constexpr int operand_gate = r;

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, GruResetBefore>& s, const F& f) {
    s.saved[r] = f.gate(s.x[r] + s.product[r]);
    s.saved[u] = f.update(s.x[u] + s.product[u]);
  }
  template <class F>
  RNNKERN_DEVICE static void forward(Phase<1>, ForwardStep<V, GruResetBefore>& s, const F& f) {
    s.saved[n] = f.candidate(s.x[n] + s.product[n]);
    s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, GruResetBefore>& s, const F& f) {
    const V one(1), update = s.saved[u], candidate = s.saved[n];
    s.delta[u] = f.update_chain(update, s.dh * (candidate - s.h_previous));
    s.delta[n] = f.candidate_chain(candidate, s.dh * update);
    s.direct = s.dh * (one - update);
  }
  template <class F>
  RNNKERN_DEVICE static void backward(Phase<1>, BackwardStep<V, GruResetBefore>& s, const F& f) {
    const V reset = s.saved[r];
    s.delta[r] = f.gate_chain(reset, s.doperand * s.h_previous);
    s.direct = fma(s.doperand, reset, s.direct);
  }
};

template <class V>
struct GruResetAfter : CellDefaults<3, 4> {
  // saved[product] = W_hn h_{t-1} + b_hn, and delta[product] its gradient.
  enum { r, u, n, product };

  static constexpr const char* name = "gru_after";
  static constexpr const char* gate_names[] = {"r", "u", "n"};
  static constexpr int recurrent_bias_gate = n;
  static constexpr Range norm_blocks[] = {{r, 2}, {n, 1}};

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, GruResetAfter>& s, const F& f) {
    s.saved[r] = f.gate(s.x[r] + s.product[r]);
    s.saved[u] = f.update(s.x[u] + s.product[u]);
    s.saved[product] = s.product[n];
    s.saved[n] = f.candidate(fma(s.saved[r], s.saved[product], s.x[n]));
    s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, GruResetAfter>& s, const F& f) {
    const V one(1), reset = s.saved[r], update = s.saved[u], candidate = s.saved[n];
    s.delta[u] = f.update_chain(update, s.dh * (candidate - s.h_previous));
    s.delta[n] = f.candidate_chain(candidate, s.dh * update);
    s.delta[product] = s.delta[n] * reset;
    s.delta[r] = f.gate_chain(reset, s.delta[n] * s.saved[product]);
    s.direct = s.dh * (one - update);
  }
};

}  // namespace rnnkern
