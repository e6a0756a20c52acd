// SPDX-License-Identifier: Apache-2.0
// The simple recurrent network: h_t = f(W_hh h_{t-1} + W_xh x_t + b_h), f = tanh or relu.
#pragma once

#include "core/cell.h"

namespace rnnkern {

struct Tanh {
  static constexpr const char* cell_name = "rnn_tanh";
  template <class V>
  RNNKERN_DEVICE static V apply(V a) {
    return tanh(a);
  }
  // The derivative times d, from the function's own result.
  template <class V>
  RNNKERN_DEVICE static V chain(V result, V d) {
    return d * (V(1) - result * result);
  }
};

struct Relu {
  static constexpr const char* cell_name = "rnn_relu";
  template <class V>
  RNNKERN_DEVICE static V apply(V a) {
    return relu(a);
  }
  template <class V>
  RNNKERN_DEVICE static V chain(V result, V d) {
    return positive(result, d);
  }
};

template <class V, class Nonlinearity>
struct Rnn : CellDefaults<1, 0> {
  static constexpr const char* name = Nonlinearity::cell_name;
  static constexpr const char* gate_names[] = {"h"};

  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, Rnn>& s) {
    s.h = Nonlinearity::apply(s.x[0] + s.product[0]);
  }

  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, Rnn>& s) {
    s.delta[0] = Nonlinearity::chain(s.h, s.dh);
    s.direct = V(0);
  }
};

template <class V>
using RnnTanh = Rnn<V, Tanh>;
template <class V>
using RnnRelu = Rnn<V, Relu>;

}  // namespace rnnkern
