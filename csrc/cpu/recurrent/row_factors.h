// SPDX-License-Identifier: Apache-2.0
// Recurrent dropout (Gal & Ghahramani 2016, arXiv:1512.05287): what a recurrent product takes of h, or of an
// operand, counts so many times; the factors are of a row and unit, for all steps.
#pragma once

#include "core/problem.h"
#include "cpu/gemm/product.h"

namespace rnnkern {

// Of the i-th row of processed step s.
template <class Problem>
[[gnu::always_inline]] inline auto row_factors(const Problem& problem, Index outputs, Index s,
                                               Index i) {
  const Schedule& schedule = problem.schedule;
  return problem.h_factors + schedule.at(schedule.time(s), i).b * outputs;
}

// to = a·b, n numbers each; `to` may be one of them.
template <class V, class T>
[[gnu::always_inline]] inline void multiply_row(const T* a, const T* b, Index n, T* to) {
  for (Index j = 0; j < n; j += V::size)
    store_some(to + j, load_some<V>(a + j, n - j) * load_some<V>(b + j, n - j), n - j);
}

// Of sums for rows [begin, end), columns from `first` on, which are the gradients of what a product of step s took
// of h; from one row of them to the next are `row` numbers.
template <class V, class Problem>
void factor_sums(const Problem& problem, Index outputs, Index s, Index first, Index row,
                 Index begin, Index end, typename V::value* sums) {
  const Index columns = row < outputs - first ? row : outputs - first;
  for (Index i = begin; i < end; ++i, sums += row)
    multiply_row<V>(sums, row_factors(problem, outputs, s, i) + first, columns, sums);
}

}  // namespace rnnkern
