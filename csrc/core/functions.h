// SPDX-License-Identifier: Apache-2.0
// The functions that cells' equations apply, and their derivatives from their own results.
//
// An equation asks an object f: f.gate(a) of a gate's pre-activation, f.candidate(a) of the new value's, and
// f.output(c) of what h is made of; f.gate_chain(result, d) and its like are the derivative times d. OwnFunctions
// are those of the cell, known when compiled. GivenFunctions are a layer's options, known when it runs.
//
// f.update(a) is that of a GRU's update gate, 1 - gate(-a). For σ, where that is gate(a), it is that. Others have
// the gate that weighs h_{t-1}, z = gate(b) = 1 - u, and give it other functions: then a = -b.
#pragma once

#include <limits>

#include "core/activations.h"
#include "core/lane.h"

namespace rnnkern {

struct Sigmoid {
  template <class V>
  RNNKERN_DEVICE static V apply(V a) {
    return sigmoid(a);
  }
  template <class V>
  RNNKERN_DEVICE static V chain(V result, V d) {
    return d * result * (V(1) - result);
  }
};

struct Tanh {
  template <class V>
  RNNKERN_DEVICE static V apply(V a) {
    return tanh(a);
  }
  template <class V>
  RNNKERN_DEVICE static V chain(V result, V d) {
    return d * (V(1) - result * result);
  }
};

struct Relu {
  template <class V>
  RNNKERN_DEVICE static V apply(V a) {
    return relu(a);
  }
  template <class V>
  RNNKERN_DEVICE static V chain(V result, V d) {
    return positive(result, d);
  }
};

// What layers may be given, by what they are called and how many numbers they take: alpha, then beta.
enum class Function {
  sigmoid,
  tanh,
  relu,
  hard_sigmoid,
  softsign,
  softplus,
  identity,
  affine,
  leaky_relu,
  elu,
  thresholded_relu,
  scaled_tanh
};

struct FunctionFacts {
  const char* name;
  int numbers;
  double alpha, beta;  // unless others are given
};
inline constexpr FunctionFacts kFunctions[] = {
    {"sigmoid", 0, 0, 0},
    {"tanh", 0, 0, 0},
    {"relu", 0, 0, 0},
    {"hard_sigmoid", 2, 1.0 / 6, 0.5},
    {"softsign", 0, 0, 0},
    {"softplus", 0, 0, 0},
    {"identity", 0, 0, 0},
    {"affine", 2, 1, 0},
    {"leaky_relu", 1, 0.01, 0},
    {"elu", 1, 1, 0},
    {"thresholded_relu", 1, 1, 0},
    {"scaled_tanh", 2, 1, 1},
};

template <class T>
struct GivenFunction {
  Function function;
  T alpha = 0, beta = 0;
};

// A layer's options in one direction.
template <class T>
struct CellOptions {
  static constexpr T none = std::numeric_limits<T>::infinity();

  GivenFunction<T> gate{Function::sigmoid}, candidate{Function::tanh}, output{Function::tanh};
  T clip = none;       // pre-activations are held within ±clip
  T cell_clip = none;  // likewise c_t

  template <class Other>
  explicit operator CellOptions<Other>() const {
    const auto as = [](const GivenFunction<T>& f) {
      return GivenFunction<Other>{f.function, static_cast<Other>(f.alpha),
                                  static_cast<Other>(f.beta)};
    };
    return {as(gate), as(candidate), as(output), static_cast<Other>(clip),
            static_cast<Other>(cell_clip)};
  }
};

template <class V, class Cell>
struct OwnFunctions {
  RNNKERN_DEVICE explicit OwnFunctions(const CellOptions<typename V::value>*) {}

  RNNKERN_DEVICE V gate(V a) const { return Sigmoid::apply(a); }
  RNNKERN_DEVICE V gate_chain(V result, V d) const { return Sigmoid::chain(result, d); }
  RNNKERN_DEVICE V update(V a) const { return gate(a); }
  RNNKERN_DEVICE V update_chain(V result, V d) const { return gate_chain(result, d); }
  RNNKERN_DEVICE V candidate(V a) const { return Cell::Candidate::apply(a); }
  RNNKERN_DEVICE V candidate_chain(V result, V d) const {
    return Cell::Candidate::chain(result, d);
  }
  RNNKERN_DEVICE V output(V c) const { return tanh(c); }
  // With what else reaches c.
  RNNKERN_DEVICE V output_chain(V result, V d, V rest) const {
    return fma(d, V(1) - result * result, rest);
  }
  // c_t, and the part of ∂L/∂c_t that goes on to what it was made of.
  RNNKERN_DEVICE V held(V c) const { return c; }
  RNNKERN_DEVICE V through_held(V, V d) const { return d; }
};

// ln(1 + z) for 0 <= z <= 1, as 2 artanh(z / (2 + z)) by its series, whose terms fall ninefold.
template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V log1p_below_1(V z) {
  using T = typename V::value;
  const V s = z / (V(T(2)) + z), square = s * s;
  constexpr int terms = sizeof(T) == sizeof(float) ? 8 : 18;
  V sum(T(1) / (2 * terms + 1));
  for (int k = terms - 1; k >= 0; --k) sum = fma(sum, square, V(T(1) / T(2 * k + 1)));
  return (s + s) * sum;
}

// e^x - 1 for x <= 0.
template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V expm1_negative(V x) {
  using T = typename V::value;
  const auto e = exp_parts(max(V(ExpConstants<T>::least), x));
  return fma(e.p, e.scale, e.scale - V(T(1)));
}

// A call of its own, so that every place has the same bits and its equations stay small.
template <class V>
RNNKERN_DEVICE_CALLED V apply_given(CalledWith<GivenFunction<typename V::value>> f, V x) {
  using T = typename V::value;
  const V zero(T(0)), one(T(1)), alpha(f.alpha), beta(f.beta);
  switch (f.function) {
    case Function::sigmoid:
      return sigmoid(x);
    case Function::tanh:
      return tanh(x);
    case Function::relu:
      return relu(x);
    case Function::hard_sigmoid:
      return max(zero, min(one, fma(alpha, x, beta)));
    case Function::softsign:
      return x / (one + abs(x));
    case Function::softplus:
      return relu(x) + log1p_below_1(exp_negative(zero - abs(x)));
    case Function::identity:
      return x;
    case Function::affine:
      return fma(alpha, x, beta);
    case Function::leaky_relu:
      return fma(alpha, min(zero, x), relu(x));
    case Function::elu:
      return fma(alpha, expm1_negative(min(zero, x)), relu(x));
    case Function::thresholded_relu:
      return positive(x - alpha, x);
    case Function::scaled_tanh:
      return alpha * tanh(beta * x);
  }
  return x;
}

// The derivative times d, from the function's own result.
template <class V>
RNNKERN_DEVICE_CALLED V chain_given(CalledWith<GivenFunction<typename V::value>> f, V result, V d) {
  using T = typename V::value;
  const V zero(T(0)), one(T(1)), alpha(f.alpha), beta(f.beta);
  switch (f.function) {
    case Function::sigmoid:
      return Sigmoid::chain(result, d);
    case Function::tanh:
      return Tanh::chain(result, d);
    case Function::relu:
      return Relu::chain(result, d);
    case Function::hard_sigmoid:
      return positive(result, positive(one - result, alpha * d));
    case Function::softsign: {
      const V rest = one - abs(result);
      return d * rest * rest;
    }
    case Function::softplus:
      return zero - d * expm1_negative(zero - result);
    case Function::identity:
      return d;
    case Function::affine:
      return alpha * d;
    case Function::leaky_relu: {
      const V above = positive(result, d);
      return fma(alpha, d - above, above);
    }
    case Function::elu: {
      const V above = positive(result, d);
      return fma(result + alpha, d - above, above);
    }
    case Function::thresholded_relu:
      return positive(abs(result), d);
    case Function::scaled_tanh:
      return d * beta * (alpha - result * result / alpha);
  }
  return d;
}

template <class V, class Cell>
class GivenFunctions {
  using T = typename V::value;

 public:
  RNNKERN_DEVICE explicit GivenFunctions(const CellOptions<T>* options)
      : options_(*options),
        clips_(options->clip < CellOptions<T>::none),
        gate_(ends_of(options_.gate)),
        candidate_(ends_of(options_.candidate)) {}

  RNNKERN_DEVICE V gate(V a) const { return apply_given(options_.gate, clipped(a)); }
  RNNKERN_DEVICE V candidate(V a) const { return apply_given(options_.candidate, clipped(a)); }
  RNNKERN_DEVICE V output(V c) const { return apply_given(options_.output, c); }
  RNNKERN_DEVICE V gate_chain(V result, V d) const {
    return chain_given(options_.gate, result, unclipped(gate_, result, d));
  }
  RNNKERN_DEVICE V candidate_chain(V result, V d) const {
    return chain_given(options_.candidate, result, unclipped(candidate_, result, d));
  }
  RNNKERN_DEVICE V output_chain(V result, V d, V rest) const {
    return chain_given(options_.output, result, d) + rest;
  }

  RNNKERN_DEVICE V update(V a) const { return V(T(1)) - gate(V(T(0)) - a); }
  RNNKERN_DEVICE V update_chain(V result, V d) const {
    const V one(T(1));
    const Ends ends{one - gate_.low, one - gate_.high};
    return chain_given(options_.gate, one - result, unclipped(ends, result, d));
  }

  RNNKERN_DEVICE V held(V c) const {
    const V most(options_.cell_clip);
    return max(V(T(0)) - most, min(most, c));
  }
  RNNKERN_DEVICE V through_held(V c, V d) const {
    return positive(V(options_.cell_clip) - abs(c), d);
  }

 private:
  // A function's results at the ends of what it may be applied to: where it gives these its argument was
  // clipped, or it is flat there, and there is no gradient.
  struct Ends {
    V low, high;
  };

  RNNKERN_DEVICE Ends ends_of(const GivenFunction<T>& f) const {
    if (!clips_) return {V(T(0)), V(T(0))};
    return {apply_given(f, V(-options_.clip)), apply_given(f, V(options_.clip))};
  }

  RNNKERN_DEVICE V clipped(V a) const {
    const V most(options_.clip);
    return max(V(T(0)) - most, min(most, a));
  }

  RNNKERN_DEVICE V unclipped(const Ends& ends, V result, V d) const {
    if (!clips_) return d;
    return positive(abs(result - ends.low), positive(abs(result - ends.high), d));
  }

  const CellOptions<T>& options_;
  const bool clips_;
  const Ends gate_, candidate_;
};

}  // namespace rnnkern
