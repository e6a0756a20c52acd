// SPDX-License-Identifier: Apache-2.0
// Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000), with an input
// gate, which the formulas call u, a forget gate f, a new cell value n and an output gate o:
//   u_t, f_t, o_t = σ(W_h h_{t-1} + W_x x_t + b)
//   n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n)
//   c_t = u_t·n_t + f_t·c_{t-1},  h_t = o_t·tanh(c_t)
// With peepholes (Gers, Schraudolph & Schmidhuber 2002) u_t, f_t and o_t also see p_u·c_{t-1}, p_f·c_{t-1}
// and p_o·c_t. Coupled (Greff et al. 2017, arXiv:1503.04069), f_t is 1 - u_t and has no weights.
#pragma once

#include "core/cell.h"

namespace rnnkern {

// The gates in turn; with the input gate and the forget gate coupled there is one less.
template <bool Coupled>
struct LstmGates : CellDefaults<4> {
  enum { input, forget, cell, output };
  static constexpr const char* gate_names[] = {"u", "f", "n", "o"};
};
template <>
struct LstmGates<true> : CellDefaults<3> {
  enum { input, cell, output };
  static constexpr const char* gate_names[] = {"u", "n", "o"};
};

template <class V, bool Peepholes, bool Coupled>
struct LstmOf : LstmGates<Coupled> {
  using Gates = LstmGates<Coupled>;
  enum { of_input, of_forget, of_output = Coupled ? 1 : 2 };  // among the unit's own weights

  static constexpr const char* name = Peepholes
                                          ? (Coupled ? "lstm_peephole_coupled" : "lstm_peephole")
                                          : (Coupled ? "lstm_coupled" : "lstm");
  static constexpr const char* states[] = {"h", "c"};
  static constexpr bool sees_h = false;
  static constexpr int output_gate = Gates::output;
  static constexpr int unit_weights = Peepholes ? of_output + 1 : 0;
  static constexpr const char* unit_weights_name = "weight_peephole";

  template <class F>
  RNNKERN_DEVICE static void forward(Phase<0>, ForwardStep<V, LstmOf>& s, const F& f) {
    constexpr int input = Gates::input, cell = Gates::cell, output = Gates::output;
    s.saved[input] = f.gate(peeking(s, input, of_input));
    if constexpr (!Coupled) s.saved[Gates::forget] = f.gate(peeking(s, Gates::forget, of_forget));
    s.saved[cell] = f.candidate(s.x[cell] + s.product[cell]);
    if constexpr (!Peepholes) s.saved[output] = f.gate(s.x[output] + s.product[output]);
    if constexpr (Coupled) {
      s.c = f.held(fma(s.saved[input], s.saved[cell] - s.c, s.c));
    } else {
      s.c = f.held(fma(s.saved[Gates::forget], s.c, s.saved[input] * s.saved[cell]));
    }
    if constexpr (Peepholes) s.saved[output] = f.gate(peeking(s, output, of_output));
    s.h = GatedOutput<V>::forward(s.saved[output], s.c, f);
  }

  template <class F>
  RNNKERN_DEVICE static void backward(Phase<0>, BackwardStep<V, LstmOf>& s, const F& f) {
    constexpr int input = Gates::input, cell = Gates::cell, output = Gates::output;
    const V u = s.saved[input], n = s.saved[cell];
    const auto of_h = GatedOutput<V>::backward(s.saved[output], s.c, s.dh, s.dc, f);
    s.delta[output] = of_h.gate;
    V whole = of_h.c;
    if constexpr (Peepholes) whole = fma(s.unit[of_output], s.delta[output], whole);
    const V dc = f.through_held(s.c, whole);
    if constexpr (Coupled) {
      s.delta[input] = f.gate_chain(u, dc * (n - s.c_previous));
    } else {
      s.delta[input] = f.gate_chain(u, dc * n);
      s.delta[Gates::forget] = f.gate_chain(s.saved[Gates::forget], dc * s.c_previous);
    }
    s.delta[cell] = f.candidate_chain(n, dc * u);
    s.dc_now = whole;
    if constexpr (Coupled) {
      s.dc = dc * (V(1) - u);
    } else {
      s.dc = dc * s.saved[Gates::forget];
    }
    if constexpr (Peepholes) {
      s.dc = fma(s.unit[of_input], s.delta[input], s.dc);
      s.delta[unit_delta<LstmOf>(of_input)] = s.delta[input] * s.c_previous;
      if constexpr (!Coupled) {
        s.dc = fma(s.unit[of_forget], s.delta[Gates::forget], s.dc);
        s.delta[unit_delta<LstmOf>(of_forget)] = s.delta[Gates::forget] * s.c_previous;
      }
      s.delta[unit_delta<LstmOf>(of_output)] = s.delta[output] * s.c;
    }
    s.direct = V(0);
  }

 private:
  // What σ is applied to; c is what it is by then.
  RNNKERN_DEVICE static V peeking(const ForwardStep<V, LstmOf>& s, int gate, int weight) {
    const V sum = s.x[gate] + s.product[gate];
    if constexpr (Peepholes) {
      return fma(s.unit[weight], s.c, sum);
    } else {
      return sum;
    }
  }
};

template <class V>
using Lstm = LstmOf<V, false, false>;
template <class V>
using LstmCoupled = LstmOf<V, false, true>;
template <class V>
using LstmPeephole = LstmOf<V, true, false>;
template <class V>
using LstmPeepholeCoupled = LstmOf<V, true, true>;

}  // namespace rnnkern
