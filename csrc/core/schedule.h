// SPDX-License-Identifier: Apache-2.0
// Which row of a batch is alive at which step: the memory behind a Schedule.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/problem.h"

namespace rnnkern {

class ScheduleStorage {
 public:
  // `lengths` holds one entry a batch row, each in [0, steps] (std::invalid_argument otherwise);
  // without them every row has all steps.
  ScheduleStorage(Index steps, Index batch, const std::optional<std::vector<Index>>& lengths);

  Schedule schedule(bool reverse) const {
    return {steps_, batch_, reverse, numbers_.data(), numbers_.data() + batch_};
  }
  Index live_rows() const { return numbers_.back(); }
  // Where it is ragged.
  Index length(Index row) const { return lengths_[static_cast<std::size_t>(row)]; }
  bool ragged() const { return !lengths_.empty(); }

 private:
  Index steps_, batch_;
  std::vector<Index> lengths_;  // none where all rows have all steps
  std::vector<Index> numbers_;  // the order, then the offsets, of `Schedule`
};

// Sets what lies past the rows' lengths to 0 in (T, B, width).
template <class T>
void clear_ends(const ScheduleStorage& rows, Sequence<T> y, Index width) {
  if (!rows.ragged()) return;
  const Schedule whole = rows.schedule(false);
  for (Index b = 0; b < whole.batch; ++b) {
    for (Index t = rows.length(b); t < whole.steps; ++t) std::fill_n(y.at(t, b), width, T(0));
  }
}

// The memory behind Tokens: the distinct ones among the live, and each live row's slot.
class TokenStorage {
 public:
  // Tokens outside [0, vocabulary) are a std::invalid_argument.
  TokenStorage(const Schedule& schedule, Sequence<const std::int64_t> x, Index vocabulary);

  Tokens tokens() const { return {slot_.data(), token_.data(), static_cast<Index>(token_.size())}; }

 private:
  std::vector<std::int32_t> slot_;
  std::vector<Index> token_;
};

}  // namespace rnnkern
