// SPDX-License-Identifier: Apache-2.0
// What a step of training does around the layers. Each reads its arrays once; elements or rows do
// not depend on each other but for the sums, whose order is fixed.
#pragma once

#include <cmath>
#include <limits>

#include "core/activations.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"

namespace rnnkern {

// Rounded to a multiple of the smallest normal number, which changes nothing but far smaller
// numbers than matter: with gradients of 0 a running sum would come to rest among the denormal
// ones, and make every later step slow.
template <class V>
[[gnu::always_inline]] inline V without_denormals(V v) {
  using Limits = std::numeric_limits<typename V::value>;
  // The last digit of this is the smallest normal number.
  const V round(Limits::min() / Limits::epsilon() * typename V::value(1.5));
  return (v + round) - round;
}

template <class V>
void adam(const AdamProblem<typename V::value>& a) {
  using T = typename V::value;
  // The square of what is larger, or the sum of such squares, may be infinite for ever.
  const T limit = std::sqrt(std::numeric_limits<T>::max() * (T(1) - a.second_beta)) / T(2);
  const V low(-limit), high(limit);
  const V decay(a.decay), first_beta(a.first_beta), second_beta(a.second_beta), epsilon(a.epsilon),
      rate(a.rate);
  for (Index i = 0; i < a.size; i += V::size) {
    const Index n = a.size - i;
    const V given = load_some<V>(a.g + i, n);
    const V g = fma(given, V(T(0)), min(max(given, low), high));  // what is not finite is NaN
    const V first = without_denormals(load_some<V>(a.first + i, n) * first_beta + g);
    const V second = without_denormals(load_some<V>(a.second + i, n) * second_beta + g * g);
    store_some(a.first + i, first, n);
    store_some(a.second + i, second, n);
    const V step = first / (sqrt(second) + epsilon) * rate;
    store_some(a.p + i, load_some<V>(a.p + i, n) * decay - step, n);
  }
}

template <class V>
double sum_of_elements(V v) {
  typename V::value element[V::size];
  v.store(element);
  double sum = 0;
  for (const auto e : element) sum += static_cast<double>(e);
  return sum;
}

// Blocks short enough that a float32 sum loses nothing that matters, added up in double. The
// several sums side by side keep the units busy: this kernel also tells how fast memory can be
// read.
template <class V>
double sum_of_squares(const typename V::value* x, Index size) {
  constexpr Index kSums = 8, kRow = kSums * V::size, kBlock = 64 * kRow;
  double total = 0;
  for (Index begin = 0; begin < size; begin += kBlock) {
    const Index end = size - begin < kBlock ? size : begin + kBlock;
    V sums[kSums];
    for (auto& sum : sums) sum = V(typename V::value(0));
    Index i = begin;
    for (; end - i >= kRow; i += kRow) {
      for (Index k = 0; k < kSums; ++k) {
        const V v = V::load(x + i + k * V::size);
        sums[k] = fma(v, v, sums[k]);
      }
    }
    for (; i < end; i += V::size) {
      const V v = load_some<V>(x + i, end - i);
      sums[0] = fma(v, v, sums[0]);
    }
    for (Index k = 1; k < kSums; ++k) sums[0] = sums[0] + sums[k];
    total += sum_of_elements(sums[0]);
  }
  return total;
}

template <class V>
typename V::value largest(const typename V::value* x, Index n) {
  typename V::value top = x[0];
  if (n < V::size) {
    for (Index i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
    return top;
  }
  V tops = V::load(x);
  for (Index i = V::size; i < n; i += V::size) {
    // The last vector overlaps the one before it, which changes nothing.
    tops = max(tops, V::load(x + (n - i < V::size ? n - V::size : i)));
  }
  typename V::value element[V::size];
  tops.store(element);
  top = element[0];
  for (const auto e : element) top = e > top ? e : top;
  return top;
}

// The sum of the rows' losses. The gradient's row first holds the exponentials.
template <class V>
double softmax_cross_entropy(const SoftmaxProblem<typename V::value>& s) {
  using T = typename V::value;
  double loss = 0;
  for (Index row = 0; row < s.rows; ++row) {
    const T* x = s.logits + row * s.classes;
    T* out = s.gradient + row * s.classes;
    if (s.mask && !s.mask[row]) {
      for (Index i = 0; i < s.classes; ++i) out[i] = T(0);
      continue;
    }
    const T top = largest<V>(x, s.classes);
    for (Index i = 0; i < s.classes; i += V::size)
      store_some(out + i, exp_negative(load_some<V>(x + i, s.classes - i) - V(top)), s.classes - i);
    V sums(T(0));
    for (Index i = 0; i < s.classes; i += V::size)
      sums = sums + load_some<V>(out + i, s.classes - i);
    const T total = static_cast<T>(sum_of_elements(sums));
    const V scale(s.weight / total);
    for (Index i = 0; i < s.classes; i += V::size)
      store_some(out + i, load_some<V>(out + i, s.classes - i) * scale, s.classes - i);
    out[s.targets[row]] -= s.weight;
    // In double: logits may be further apart than their type's numbers reach.
    loss += static_cast<double>(std::log(total)) -
            (static_cast<double>(x[s.targets[row]]) - static_cast<double>(top));
  }
  return loss;
}

}  // namespace rnnkern
