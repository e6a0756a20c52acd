// tanh, sigmoid, relu and exp on lanes.
//
// float32: error at most 3 units in the last place, tanh on all of float32 and sigmoid for
// |x| <= 87; beyond that sigmoid saturates below 2e-38 from 0 and exactly at 1. |tanh| <= 1 and
// 0 <= sigmoid <= 1 always; tanh is odd; NaN stays NaN. tests/test_activations.py sweeps these.
// exp of x <= 0 likewise and 2e-38 besides; it is 0 from -87.3 on.
// float64: the C library's functions, at most 3 units in the last place, for gradient checks.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/lane.h"

namespace rnnkern {

// e^x - 1 = 2^n·p + (2^n - 1), where x = n·ln 2 + r, |r| <= ln 2 / 2 and p = e^r - 1.
template <class V>
struct ExpParts {
  V p, scale;
};

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline ExpParts<V> exp_parts(V x) {
  // Adding and taking away 1.5·2^23 rounds to the nearest integer.
  const V magic(12582912.0f);
  const V n = fma(x, V(1.44269504f), magic) - magic;
  // ln 2 in two parts, the first with trailing zeros so that n·high is exact.
  const V r = fma(n, V(-1.42860677e-6f), fma(n, V(-0.693145752f), x));
  // (e^r - 1 - r) / r², minimax on |r| <= 0.347: relative error of p below 3e-9.
  V q(0.000198458991f);
  q = fma(q, r, V(0.00139408931f));
  q = fma(q, r, V(0.00833338965f));
  q = fma(q, r, V(0.0416663587f));
  q = fma(q, r, V(0.166666657f));
  q = fma(q, r, V(0.5f));
  return {fma(r * r, q, r), exp2_integer(n)};
}

// Each element through a function of the C library.
template <class V, class F>
RNNKERN_DEVICE inline V per_element(V x, F f) {
  typename V::value element[V::size];
  x.store(element);
  for (auto& e : element) e = f(e);
  return V::load(element);
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V sigmoid(V x) {
  if constexpr (std::is_same_v<typename V::value, float>) {
    // The bound comes first in min and max so that a NaN goes through.
    const auto e = exp_parts(max(V(-87.3f), min(V(88.3f), V(0.0f) - x)));
    return quotient(V(1.0f), V(1.0f) + fma(e.p, e.scale, e.scale));
  } else {
    return per_element(x, [](double v) { return 1.0 / (1.0 + std::exp(-v)); });
  }
}

// e^x for x <= 0.
template <class V>
[[gnu::always_inline]] inline V exp_negative(V x) {
  if constexpr (std::is_same_v<typename V::value, float>) {
    // Less by a number that changes no value above 1e-31, so that what was bounded ends at 0.
    const auto e = exp_parts(max(V(-87.3f), x));
    return max(V(0.0f), fma(e.p, e.scale, e.scale) - V(1.3e-38f));
  } else {
    return per_element(x, [](double v) { return std::exp(v); });
  }
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V tanh(V x) {
  if constexpr (std::is_same_v<typename V::value, float>) {
    // tanh |x| = (e^{2|x|} - 1) / (e^{2|x|} + 1); from 9.02 on it rounds to 1.
    const V a = min(V(9.1f), abs(x));
    const auto e = exp_parts(a + a);
    const V m = fma(e.p, e.scale, e.scale - V(1.0f));
    return copy_sign(quotient(m, m + V(2.0f)), x);
  } else {
    return per_element(x, [](double v) { return std::tanh(v); });
  }
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V relu(V x) {
  return max(V(typename V::value(0)), x);
}

}  // namespace rnnkern
