// SPDX-License-Identifier: Apache-2.0
// Which row of a batch is alive at which step: the memory behind a Schedule.
#pragma once

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
    return {static_cast<Index>(offset_.size()) - 1, static_cast<Index>(order_.size()), reverse,
            order_.data(), offset_.data()};
  }
  Index live_rows() const { return offset_.back(); }
  Index length(Index row) const { return lengths_[static_cast<std::size_t>(row)]; }
  bool ragged() const { return ragged_; }

 private:
  std::vector<Index> lengths_, order_, offset_;
  bool ragged_;
};

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
