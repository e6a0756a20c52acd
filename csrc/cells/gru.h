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
struct GruResetBefore {
  enum { r, u, n };

  static constexpr const char* name = "gru_before";
  static constexpr int gates = 3, saved = 3, deltas = 3;
  static constexpr bool cell_state = false;
  static constexpr Range phases[] = {{r, 2}, {n, 1}};
  static constexpr int saved_after[] = {2, 3};
  static constexpr Range writes[] = {{u, 2}, {r, 1}};
  static constexpr int input_delta[] = {r, u, n}, state_delta[] = {r, u, n};

  // What phase 1's product takes in the place of h_{t-1}.
  RNNKERN_DEVICE static V operand(Phase<1>, V reset, V h_previous) { return reset * h_previous; }
  static constexpr int operand_gate = r;

  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, GruResetBefore>& s) {
    s.saved[r] = sigmoid(s.x[r] + s.product[r]);
    s.saved[u] = sigmoid(s.x[u] + s.product[u]);
  }
  RNNKERN_DEVICE static void forward(Phase<1>, ForwardStep<V, GruResetBefore>& s) {
    s.saved[n] = tanh(s.x[n] + s.product[n]);
    s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);
  }

  RNNKERN_DEVICE static void backward(Phase<1>, BackwardStep<V, GruResetBefore>& s) {
    const V reset = s.saved[r];
    s.delta[r] = s.dh * s.h_previous * reset * (V(1) - reset);
    s.direct = fma(s.dh, reset, s.direct);
  }
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, GruResetBefore>& s) {
    const V one(1), update = s.saved[u], candidate = s.saved[n];
    s.delta[u] = s.dh * (candidate - s.h_previous) * update * (one - update);
    s.delta[n] = s.dh * update * (one - candidate * candidate);
    s.direct = s.dh * (one - update);
  }
};

template <class V>
struct GruResetAfter {
  // saved[product] = W_hn h_{t-1} + b_hn; delta[product] is the gradient of that same value.
  enum { r, u, n, product };

  static constexpr const char* name = "gru_after";
  static constexpr int gates = 3, saved = 4, deltas = 4;
  static constexpr bool cell_state = false;
  static constexpr Range phases[] = {{r, 3}};
  static constexpr int saved_after[] = {4};
  static constexpr Range writes[] = {{r, 4}};
  static constexpr int input_delta[] = {r, u, n}, state_delta[] = {r, u, product};

  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, GruResetAfter>& s) {
    s.saved[r] = sigmoid(s.x[r] + s.product[r]);
    s.saved[u] = sigmoid(s.x[u] + s.product[u]);
    s.saved[product] = s.product[n];
    s.saved[n] = tanh(fma(s.saved[r], s.saved[product], s.x[n]));
    s.h = fma(s.saved[u], s.saved[n] - s.h, s.h);
  }

  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, GruResetAfter>& s) {
    const V one(1), reset = s.saved[r], update = s.saved[u], candidate = s.saved[n];
    s.delta[u] = s.dh * (candidate - s.h_previous) * update * (one - update);
    s.delta[n] = s.dh * update * (one - candidate * candidate);
    s.delta[product] = s.delta[n] * reset;
    s.delta[r] = s.delta[n] * s.saved[product] * reset * (one - reset);
    s.direct = s.dh * (one - update);
  }
};

}  // namespace rnnkern
