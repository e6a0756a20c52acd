// SPDX-License-Identifier: Apache-2.0
// The independently recurrent network (Li et al. 2018, arXiv:1803.04831), whose units see no other's h:
//   h_t = relu(W_xh x_t + u·h_{t-1} + b)
#pragma once

#include "core/cell.h"

namespace rnnkern {

template <class V>
struct IndRnn : CellDefaults<1, 0> {
  static constexpr const char* name = "ind_rnn";
  static constexpr const char* gate_names[] = {"h"};
  static constexpr bool recurrent_product = false;
  static constexpr int unit_weights = 1;
  static constexpr const char* unit_weights_name = "weight_u";

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, IndRnn>& s, const F&) {
    s.h = relu(fma(s.unit[0], s.h, s.x[0]));
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, IndRnn>& s, const F&) {
    s.delta[0] = positive(s.h, s.dh);
    s.delta[unit_delta<IndRnn>(0)] = s.delta[0] * s.h_previous;
    s.direct = s.delta[0] * s.unit[0];
  }
};

}  // namespace rnnkern
