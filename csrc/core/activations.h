// SPDX-License-Identifier: Apache-2.0
// tanh, sigmoid, relu and exp on lanes.
//
// Error at most 3 units in the last place, tanh everywhere; sigmoid until it or 1 - it is no normal number
// (|x| <= 87 in float32, 708 in float64): beyond that it saturates, less than the smallest normal number
// from 0 and exactly at 1. |tanh| <= 1 and 0 <= sigmoid <= 1 always; tanh is odd; NaN stays NaN. exp of
// x <= 0 until it is no normal number: below that it is 0.
// tests/kernels/test_activations.py sweeps these, and holds the constants against what is said here.
//
// The way is that of Cody and Waite, "Software manual for the elementary functions" (1980): n·ln 2 is taken
// from x in two parts, and what is left goes through a polynomial.
#pragma once

#include "core/lane.h"

namespace rnnkern {

// e^x - 1 = 2^n·p + (2^n - 1), where x = n·ln 2 + r, |r| <= ln 2 / 2 and p = e^r - 1.
template <class V>
struct ExpParts {
  V p, scale;
};

// What the number of bits decides.
template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float magic = 12582912.0f;  // 1.5·2^23
  // Those of fdlibm's expf: ln 2 with 9 trailing zeros, and the rest.
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr float least = -87.33654f;  // e^x of no less is a normal number: ln 2^-126
  static constexpr float most = 88.3f;        // with e^x in range, and n <= 127
  static constexpr float tanh_is_one = 9.1f;  // as it is, rounded, from 9.011 on
};

template <>
struct ExpConstants<double> {
  static constexpr double magic = 6755399441055744.0;  // 1.5·2^52
  // Those of fdlibm's exp: ln 2 with 21 trailing zeros, and the rest.
  static constexpr double ln2_high = 0.69314718036912382, ln2_low = 1.9082149292705877e-10;
  static constexpr double least = -708.39641853226408, most = 709.4;  // ln 2^-1022
  static constexpr double tanh_is_one = 19.1;                         // from 19.0619 on
};

// (e^r - 1 - r) / r² for |r| <= ln 2 / 2.
template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V exp_rest(V r) {
  if constexpr (sizeof(typename V::value) == sizeof(float)) {
    // A fit of the least maximal relative error of p, which is below 3e-9 with these rounded coefficients.
    // (The minimax polynomial by Remez' exchange, rounded, has the same first two and agrees in the others
    // to 2e-5 of them.)
    V q(0.000198458991f);
    q = fma(q, r, V(0.00139408931f));
    q = fma(q, r, V(0.00833338965f));
    q = fma(q, r, V(0.0416663587f));
    q = fma(q, r, V(0.166666657f));
    return fma(q, r, V(0.5f));
  } else {
    // 1 / 13! to 1 / 2!: what follows in the series is below 2e-17 of p.
    V q(1.6059043836821613e-10);
    q = fma(q, r, V(2.08767569878681e-09));
    q = fma(q, r, V(2.505210838544172e-08));
    q = fma(q, r, V(2.755731922398589e-07));
    q = fma(q, r, V(2.7557319223985893e-06));
    q = fma(q, r, V(2.48015873015873e-05));
    q = fma(q, r, V(0.0001984126984126984));
    q = fma(q, r, V(0.001388888888888889));
    q = fma(q, r, V(0.008333333333333333));
    q = fma(q, r, V(0.041666666666666664));
    q = fma(q, r, V(0.16666666666666666));
    return fma(q, r, V(0.5));
  }
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline ExpParts<V> exp_parts(V x) {
  using T = typename V::value;
  using C = ExpConstants<T>;
  // Adding and taking away the magic number rounds to the nearest integer.
  const V magic(C::magic);
  const V n = fma(x, V(T(1.4426950408889634)), magic) - magic;
  // ln 2 in two parts, the first with trailing zeros so that n·high is exact.
  const V r = fma(n, V(-C::ln2_low), fma(n, V(-C::ln2_high), x));
  return {fma(r * r, exp_rest(r), r), exp2_integer(n)};
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V sigmoid(V x) {
  using T = typename V::value;
  using C = ExpConstants<T>;
  // The bound comes first in min and max so that a NaN goes through.
  const auto e = exp_parts(max(V(C::least), min(V(C::most), V(T(0)) - x)));
  return quotient(V(T(1)), V(T(1)) + fma(e.p, e.scale, e.scale));
}

// e^x for x <= 0.
template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V exp_negative(V x) {
  using T = typename V::value;
  using C = ExpConstants<T>;
  const auto e = exp_parts(max(V(C::least), x));
  const V bounded = fma(e.p, e.scale, e.scale);
  // Nothing where x was bounded; a NaN goes through.
  return bounded - positive(V(C::least) - x, bounded);
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V tanh(V x) {
  using T = typename V::value;
  // tanh |x| = (e^{2|x|} - 1) / (e^{2|x|} + 1), which rounds to 1 in the end.
  const V a = min(V(ExpConstants<T>::tanh_is_one), abs(x));
  const auto e = exp_parts(a + a);
  const V m = fma(e.p, e.scale, e.scale - V(T(1)));
  return copy_sign(quotient(m, m + V(T(2))), x);
}

template <class V>
[[gnu::always_inline]] RNNKERN_DEVICE inline V relu(V x) {
  return max(V(typename V::value(0)), x);
}

}  // namespace rnnkern
