// SPDX-License-Identifier: Apache-2.0
#include "core/schedule.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace rnnkern {

ScheduleStorage::ScheduleStorage(Index steps, Index batch,
                                 std::optional<std::vector<Index>> lengths, const RowMarks& marks)
    : steps_(steps), batch_(batch), state_rows_(marks.states_anew ? 2 * batch : batch) {
  if (lengths) check_lengths(*lengths, steps);
  if (marks.any()) {
    constexpr Index kPartRows = 256;  // enough for the products over a step
    stretches_.emplace(steps, batch, lengths, marks, std::max(kPartRows, batch));
    auto all = stretches_->as_lengths();
    if (!all) return;
    stretches_.reset();
    const bool whole = std::ranges::all_of(*all, [&](Index length) { return length == steps; });
    lengths = whole ? std::nullopt : std::move(all);
  }
  numbers_.resize(static_cast<std::size_t>(batch + steps) + 1);
  Index* const order = numbers_.data();
  Index* const offset = order + batch;
  std::iota(order, offset, Index{0});
  if (!lengths) {
    for (Index t = 0; t <= steps; ++t) offset[t] = t * batch;
    return;
  }
  lengths_ = *std::move(lengths);
  std::vector<Index> ending(static_cast<std::size_t>(steps) + 1);  // rows of each length
  for (const Index length : lengths_) ++ending[static_cast<std::size_t>(length)];
  Index live = batch;
  for (Index t = 0; t < steps; ++t) {
    live -= ending[static_cast<std::size_t>(t)];
    offset[t + 1] = offset[t] + live;
  }
  std::stable_sort(order, offset, [&](Index a, Index b) { return length(a) > length(b); });
}

TokenStorage::TokenStorage(const ScheduleStorage& rows, Sequence<const std::int64_t> x,
                           Index vocabulary)
    : slot_(static_cast<std::size_t>(rows.live_rows())) {
  std::vector<std::int32_t> slot_of(static_cast<std::size_t>(vocabulary), -1);
  auto out = slot_.begin();
  for_places(rows, [&](Place place) {
    // Read once: it may change meanwhile.
    const std::int64_t token = *static_cast<const volatile std::int64_t*>(x.at(place));
    if (token < 0 || token >= vocabulary) {
      throw std::invalid_argument("x must hold tokens in 0.." + std::to_string(vocabulary - 1) +
                                  ", got " + std::to_string(token) + " at step " +
                                  std::to_string(place.t) + " of row " + std::to_string(place.b) +
                                  ": integers are tokens, features are floats");
    }
    auto& slot = slot_of[static_cast<std::size_t>(token)];
    if (slot < 0) {
      slot = static_cast<std::int32_t>(token_.size());
      token_.push_back(static_cast<Index>(token));
    }
    *out++ = slot;
  });
}

}  // namespace rnnkern
