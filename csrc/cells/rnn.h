// SPDX-License-Identifier: Apache-2.0
// The simple recurrent network: h_t = f(W_hh h_{t-1} + W_xh x_t + b_h), f = tanh or relu.
#pragma once

#include <type_traits>

#include "core/cell.h"

namespace rnnkern {

template <class V, class Nonlinearity>
struct Rnn : CellDefaults<1, 0> {
  using Candidate = Nonlinearity;

  static constexpr const char* name = std::is_same_v<Nonlinearity, Tanh> ? "rnn_tanh" : "rnn_relu";
  static constexpr const char* gate_names[] = {"h"};

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, Rnn>& s, const F& f) {
    s.h = f.candidate(s.x[0] + s.product[0]);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, Rnn>& s, const F& f) {
    s.delta[0] = f.candidate_chain(s.h, s.dh);
    s.direct = V(0);
  }
};

template <class V>
using RnnTanh = Rnn<V, Tanh>;
template <class V>
using RnnRelu = Rnn<V, Relu>;

}  // namespace rnnkern
