// SPDX-License-Identifier: Apache-2.0
#include "core/stretches.h"

#include <numeric>
#include <utility>

namespace rnnkern {
namespace {

// Read once: it may change meanwhile.
bool marked(const Sequence<const unsigned char>& marks, Index t, Index b) {
  return *static_cast<const volatile unsigned char*>(marks.at(t, b)) != 0;
}

}  // namespace

struct Stretches::Found {
  struct Stretch {
    Index row, first, length;  // `first` among the steps
    bool anew[2];              // by direction
  };
  std::vector<Stretch> stretches;
  std::vector<Index> steps;  // live ones, row after row
};

Stretches::Stretches(Index steps, Index batch, const std::optional<std::vector<Index>>& lengths,
                     const RowMarks& marks, Index most_rows)
    : batch_(batch),
      states_anew_(marks.states_anew),
      live_(static_cast<std::size_t>(steps * batch)) {
  Found found;
  found.steps.reserve(live_.size());
  for (Way& way : way_) way.leaving.assign(static_cast<std::size_t>(batch), kGiven);
  for (Index b = 0; b < batch; ++b)
    add_row(b, lengths ? (*lengths)[static_cast<std::size_t>(b)] : steps, marks, found);
  sort(found, most_rows);
}

// A reset lies between two steps, and a direction meets it on its way from the one to the other: that
// before the first step is met by the forward direction alone, before all else.
void Stretches::add_row(Index b, Index length, const RowMarks& marks, Found& found) {
  auto& all = found.stretches;
  const auto own = all.size();
  bool pending = false;  // a reset since the last live step
  bool crossed = false;  // one of the reverse direction, behind all its live steps
  for (Index t = 0; t < length; ++t) {
    if (marks.resets.data && marked(marks.resets, t, b)) {
      pending = resets_ = true;
      if (all.size() == own && t > 0) crossed = true;
    }
    if (marks.mask.data && !marked(marks.mask, t, b)) continue;
    if (all.size() == own || pending) {
      if (all.size() > own) all.back().anew[1] = true;
      all.push_back({b, static_cast<Index>(found.steps.size()), 0, {pending, false}});
      pending = false;
    }
    live_[static_cast<std::size_t>(t * batch_ + b)] = 1;
    found.steps.push_back(t);
    ++all.back().length;
  }
  auto& forward = way_[0].leaving[static_cast<std::size_t>(b)];
  auto& reverse = way_[1].leaving[static_cast<std::size_t>(b)];
  const bool lives = all.size() > own;
  if (lives) all.back().anew[1] = pending;
  const Index anew = states_anew_ ? kAnew : kNothing;
  if (pending) {
    forward = anew;
  } else if (lives) {
    forward = static_cast<Index>(all.size()) - 1;
  }
  if (crossed) {
    reverse = anew;
  } else if (lives) {
    reverse = static_cast<Index>(own);
  }
}

// By falling length, those of one length in the order of the batch.
void Stretches::sort(const Found& found, Index most_rows) {
  const auto& all = found.stretches;
  const auto count = static_cast<Index>(all.size());
  Index longest = 1;
  for (const auto& stretch : all) longest = std::max(longest, stretch.length);
  std::vector<Index> next(static_cast<std::size_t>(longest) +
                          1);  // the place of one of that length
  for (const auto& stretch : all) ++next[static_cast<std::size_t>(stretch.length)];
  Index before = 0;
  for (Index length = longest; length > 0; --length)
    before += std::exchange(next[static_cast<std::size_t>(length)], before);
  std::vector<Index> lengths(all.size()), sorted;  // in the new order; where each stands now
  for (const auto& stretch : all) {
    sorted.push_back(next[static_cast<std::size_t>(stretch.length)]++);
    lengths[static_cast<std::size_t>(sorted.back())] = stretch.length;
  }

  numbers_.resize(static_cast<std::size_t>(std::min(count, most_rows)));
  std::iota(numbers_.begin(), numbers_.end(), Index{0});
  Index first = 0, live = 0;
  do {
    const Index rows = std::min(most_rows, count - first);
    const Index steps = rows > 0 ? lengths[static_cast<std::size_t>(first)] : 1;
    Part part{first, rows, live, 0, steps, numbers_.size()};
    Index going_on = rows;
    for (Index s = 0; s <= steps; ++s) {
      numbers_.push_back(part.live);
      while (going_on > 0 && lengths[static_cast<std::size_t>(first + going_on - 1)] <= s)
        --going_on;
      part.live += going_on;
    }
    parts_.push_back(part);
    first += rows, live += part.live;
  } while (first < count);

  row_.resize(all.size());
  for (Way& way : way_) way.anew.resize(all.size());
  places_.resize(found.steps.size());
  for (std::size_t k = 0; k < all.size(); ++k) {
    const auto& stretch = all[k];
    const Index v = sorted[k];
    const auto at = static_cast<std::size_t>(v);
    row_[at] = stretch.row;
    for (int d = 0; d < 2; ++d) way_[d].anew[at] = stretch.anew[d];
    const Part& part = parts_[static_cast<std::size_t>(v / most_rows)];
    const Index* const offset = numbers_.data() + part.offsets;
    for (Index s = 0; s < stretch.length; ++s) {
      places_[static_cast<std::size_t>(part.first_live + offset[s] + v - part.first_row)] = {
          found.steps[static_cast<std::size_t>(stretch.first + s)], stretch.row};
    }
  }
  for (Way& way : way_) {
    for (Index& from : way.leaving)
      if (from >= 0) from = sorted[static_cast<std::size_t>(from)];
  }
}

std::optional<std::vector<Index>> Stretches::as_lengths() const {
  if (resets_) return std::nullopt;
  std::vector<Index> lengths(static_cast<std::size_t>(batch_));
  for (const Place place : places_) ++lengths[static_cast<std::size_t>(place.b)];
  for (const Place place : places_)
    if (place.t >= lengths[static_cast<std::size_t>(place.b)]) return std::nullopt;
  return lengths;
}

}  // namespace rnnkern
