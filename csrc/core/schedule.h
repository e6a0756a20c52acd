// SPDX-License-Identifier: Apache-2.0
// Which row of a batch is alive at which step: the memory behind a Schedule.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/problem.h"
#include "core/stretches.h"

namespace rnnkern {

// The first row whose length is not in [0, steps], or -1.
inline Index wrong_length(const std::vector<Index>& lengths, Index steps) {
  const auto wrong =
      std::ranges::find_if(lengths, [steps](Index length) { return length < 0 || length > steps; });
  return wrong == lengths.end() ? Index{-1} : static_cast<Index>(wrong - lengths.begin());
}

// A std::invalid_argument where there is one.
inline void check_lengths(const std::vector<Index>& lengths, Index steps) {
  if (const Index b = wrong_length(lengths, steps); b >= 0) {
    throw std::invalid_argument("lengths must lie in 0.." + std::to_string(steps) + ", got " +
                                std::to_string(lengths[static_cast<std::size_t>(b)]) + " for row " +
                                std::to_string(b));
  }
}

class ScheduleStorage {
 public:
  // `lengths` holds one entry a batch row, each in [0, steps] (std::invalid_argument otherwise);
  // without them every row has all steps. `marks` are looked at within the lengths.
  ScheduleStorage(Index steps, Index batch, std::optional<std::vector<Index>> lengths,
                  const RowMarks& marks = {});

  // Of a call's arrays (T, B, ·).
  Index steps() const { return steps_; }
  Index batch() const { return batch_; }
  // Of its states (L·D, rows, ·): B, and as many more where rows begin anew with states of their own.
  Index state_rows() const { return state_rows_; }

  // Of rows that are cut into stretches, that of the first part of these.
  Schedule schedule(bool reverse) const {
    if (stretches_) return stretches_->schedule(reverse, stretches_->parts().front());
    return {steps_, batch_, reverse, numbers_.data(), numbers_.data() + batch_};
  }
  Index live_rows() const { return stretches_ ? stretches_->live_rows() : numbers_.back(); }
  // Where it is ragged.
  Index length(Index row) const { return lengths_[static_cast<std::size_t>(row)]; }
  bool ragged() const { return !lengths_.empty(); }
  // Or null, where every row is one stretch from its first step on.
  const Stretches* stretches() const { return stretches_ ? &*stretches_ : nullptr; }

 private:
  Index steps_, batch_, state_rows_;
  std::vector<Index> lengths_;  // none where all rows have all steps
  std::vector<Index> numbers_;  // the order, then the offsets, of `Schedule`
  std::optional<Stretches> stretches_;
};

// Sets what no live row writes to 0 in (T, B, width).
template <class T>
void clear_dead(const ScheduleStorage& rows, Sequence<T> y, Index width) {
  const Stretches* const stretches = rows.stretches();
  if (!rows.ragged() && !(stretches && stretches->has_gaps())) return;
  for (Index b = 0; b < rows.batch(); ++b) {
    if (stretches) {
      for (Index t = 0; t < rows.steps(); ++t)
        if (!stretches->live(t, b)) std::fill_n(y.at(t, b), width, T(0));
    } else {
      for (Index t = rows.length(b); t < rows.steps(); ++t) std::fill_n(y.at(t, b), width, T(0));
    }
  }
}

// Calls visit(place) for every live step of every row, in the packed order.
template <class Visit>
void for_places(const ScheduleStorage& rows, Visit visit) {
  const auto of_schedule = [&](const Schedule& schedule) {
    for (Index t = 0; t < schedule.steps; ++t) {
      const Index live = schedule.offset[t + 1] - schedule.offset[t];
      for (Index i = 0; i < live; ++i) visit(schedule.at(t, i));
    }
  };
  const Stretches* const stretches = rows.stretches();
  if (!stretches) return of_schedule(rows.schedule(false));
  for (const auto& part : stretches->parts()) of_schedule(stretches->schedule(false, part));
}

// The memory behind Tokens: the distinct ones among the live, and each live row's slot.
class TokenStorage {
 public:
  // Tokens outside [0, vocabulary) are a std::invalid_argument.
  TokenStorage(const ScheduleStorage& rows, Sequence<const std::int64_t> x, Index vocabulary);

  Tokens tokens() const { return {slot_.data(), token_.data(), static_cast<Index>(token_.size())}; }

 private:
  std::vector<std::int32_t> slot_;
  std::vector<Index> token_;
};

}  // namespace rnnkern
