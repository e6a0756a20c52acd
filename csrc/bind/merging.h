// SPDX-License-Identifier: Apache-2.0
// What two directions of a layer give together.
#pragma once

#include <algorithm>

#include "bind/arguments.h"
#include "core/schedule.h"

namespace rnnkern {

// y (T, B, H) from what two directions give, side by side, and back: their gradients from that of y.
template <class T>
void merge_directions(Merge merge, const ScheduleStorage& rows, Sequence<const T> both, Index units,
                      Sequence<T> y) {
  const auto each = [&](auto combine) {
    for (Index t = 0; t < rows.steps(); ++t) {
      for (Index b = 0; b < rows.batch(); ++b) {
        const T* const first = both.at(t, b);
        std::transform(first, first + units, first + units, y.at(t, b), combine);
      }
    }
  };
  if (merge == Merge::sum) each([](T a, T b) { return a + b; });
  if (merge == Merge::average) each([](T a, T b) { return (a + b) * T(0.5); });
  if (merge == Merge::product) each([](T a, T b) { return a * b; });
}

template <class T>
void split_gradient(Merge merge, const ScheduleStorage& rows, Sequence<const T> both, Index units,
                    Sequence<const T> dy, Sequence<T> out) {
  for (Index t = 0; t < rows.steps(); ++t) {
    for (Index b = 0; b < rows.batch(); ++b) {
      const T *const of_y = dy.at(t, b), *const given = both.at(t, b);
      T* const to = out.at(t, b);
      for (Index j = 0; j < units; ++j) {
        const bool product = merge == Merge::product;
        const T whole = merge == Merge::average ? of_y[j] * T(0.5) : of_y[j];
        to[j] = product ? whole * given[units + j] : whole;
        to[units + j] = product ? whole * given[j] : whole;
      }
    }
  }
}

}  // namespace rnnkern
