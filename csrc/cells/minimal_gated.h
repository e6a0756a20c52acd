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
  enum { forget, n };

  static constexpr const char* name = "minimal_gated";
  static constexpr const char* gate_names[] = {"f", "n"};
  static constexpr Range phases[] = {{forget, 1}, {n, 1}};
  static constexpr Range norm_blocks[] = {{forget, 1}, {n, 1}};
  static constexpr int operand_gate = forget;

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, MinimalGated>& s, const F& f) {
    s.saved[forget] = f.gate(s.x[forget] + s.product[forget]);
  }
  template <class F>
  RNNKERN_DEVICE static void forward(Phase<1>, ForwardStep<V, MinimalGated>& s, const F& f) {
    s.saved[n] = f.candidate(s.x[n] + s.product[n]);
    s.h = fma(s.saved[forget], s.saved[n] - s.h, s.h);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, MinimalGated>& s, const F& f) {
    const V one(1), candidate = s.saved[n];
    s.delta[n] = f.candidate_chain(candidate, s.dh * s.saved[forget]);
    s.direct = s.dh * (one - s.saved[forget]);
  }
  template <class F>
  RNNKERN_DEVICE static void backward(Phase<1>, BackwardStep<V, MinimalGated>& s, const F& f) {
    const V gate = s.saved[forget];
    const V gradient = fma(s.dh, s.saved[n] - s.h_previous, s.doperand * s.h_previous);
    s.delta[forget] = f.gate_chain(gate, gradient);
    s.direct = fma(s.doperand, gate, s.direct);
  }
};

}  // namespace rnnkern
