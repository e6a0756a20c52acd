// SPDX-License-Identifier: Apache-2.0
// Batch rows whose state begins anew now and then, or which skip steps, cut into stretches: what lies
// between two such places, without the steps that are skipped, is a row of the schedule of its own.
// Kernels compute them as the rows of a ragged batch; here is what they begin with and leave behind.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "core/problem.h"

namespace rnnkern {

// What a call says of the steps of its rows; null where it says nothing. Numbers other than 0 are true.
struct RowMarks {
  Sequence<const unsigned char> resets;  // (T, B): before that step the row's state begins anew
  Sequence<const unsigned char> mask;    // (T, B): where it is false the row keeps its state
  // Anew from states that stand behind those of the batch, as many of them; or from zero.
  bool states_anew = false;

  bool any() const { return resets.data || mask.data; }
};

class Stretches {
 public:
  // `lengths` as ScheduleStorage has them, already checked. Parts have at most so many rows.
  Stretches(Index steps, Index batch, const std::optional<std::vector<Index>>& lengths,
            const RowMarks& marks, Index most_rows);

  // The lengths that say all of it: every row is one stretch from its first step on, and begins with
  // the state that it was given.
  std::optional<std::vector<Index>> as_lengths() const;

  // Stretches are computed some at a time, the longest first: a step of very many rows would not stay in
  // cache. There is always a part, which has no rows where no step is live.
  struct Part {
    Index first_row, rows;   // among the stretches
    Index first_live, live;  // among the packed rows, which stand part after part
    Index steps;
    std::size_t offsets;  // among the numbers
  };
  const std::vector<Part>& parts() const { return parts_; }
  Schedule schedule(bool reverse, const Part& part) const {
    const Index* const numbers = numbers_.data();
    return {part.steps,
            part.rows,
            reverse,
            numbers,
            numbers + part.offsets,
            places_.data() + part.first_live};
  }

  Index rows() const { return static_cast<Index>(row_.size()); }
  Index live_rows() const { return static_cast<Index>(places_.size()); }
  bool has_gaps() const { return live_rows() < static_cast<Index>(live_.size()); }
  bool live(Index t, Index b) const { return live_[static_cast<std::size_t>(t * batch_ + b)]; }

  static constexpr Index kGiven = -1, kNothing = -2, kAnew = -3;

  // The given state that stretch v begins with, of its batch row or B rows behind it; or -1 for none.
  Index source(bool reverse, Index v) const {
    const auto at = static_cast<std::size_t>(v);
    if (!way_[reverse].anew[at]) return row_[at];
    return states_anew_ ? batch_ + row_[at] : Index{-1};
  }
  // The stretch that leaves the last state of a batch row; kGiven where it is the one given, kNothing
  // where it is zero, kAnew where it is the one that the row begins anew with.
  Index leaving(bool reverse, Index b) const {
    return way_[reverse].leaving[static_cast<std::size_t>(b)];
  }

  // Of states (B, H), or (2·B, H), that a call is given, those (rows, H) that the stretches begin with.
  template <class T>
  void begin(bool reverse, const T* given, Index units, T* states) const {
    for (Index v = 0; v < rows(); ++v) {
      T* const to = states + v * units;
      if (const Index b = source(reverse, v); b >= 0) {
        std::copy_n(given + b * units, units, to);
      } else {
        std::fill_n(to, units, T(0));
      }
    }
  }

  // Of those (rows, H) that the stretches have left the last ones of the batch, in the place of the
  // given ones.
  template <class T>
  void end(bool reverse, const T* states, Index units, T* state) const {
    for (Index b = 0; b < batch_; ++b) {
      const Index from = leaving(reverse, b);
      if (from >= 0) {
        std::copy_n(states + from * units, units, state + b * units);
      } else if (from == kNothing) {
        std::fill_n(state + b * units, units, T(0));
      } else if (from == kAnew) {
        std::copy_n(state + (batch_ + b) * units, units, state + b * units);
      }
    }
  }

  // The gradients of end(): ∂L/∂(what each stretch leaves).
  template <class T>
  void begin_backward(bool reverse, const T* dstate, Index units, T* dstates) const {
    std::fill_n(dstates, rows() * units, T(0));
    for (Index b = 0; b < batch_; ++b) {
      if (const Index to = leaving(reverse, b); to >= 0)
        std::copy_n(dstate + b * units, units, dstates + to * units);
    }
  }

  // And of begin(): ∂L/∂(the states given), in the place of ∂L/∂(the last ones); those to begin anew
  // with are added to.
  template <class T>
  void end_backward(bool reverse, const T* dstates, Index units, T* dstate) const {
    const auto add = [&](const T* from, Index to) {
      for (Index j = 0; j < units; ++j) dstate[to * units + j] += from[j];
    };
    for (Index b = 0; b < batch_; ++b) {
      const Index from = leaving(reverse, b);
      if (from == kAnew) add(dstate + b * units, batch_ + b);
      if (from != kGiven) std::fill_n(dstate + b * units, units, T(0));
    }
    for (Index v = 0; v < rows(); ++v) {
      if (const Index to = source(reverse, v); to >= 0) add(dstates + v * units, to);
    }
  }

 private:
  // How one direction goes through the stretches.
  struct Way {
    std::vector<char> anew;      // (rows) whether it begins anew
    std::vector<Index> leaving;  // (B)
  };

  struct Found;  // the stretches in the order of the batch
  void add_row(Index b, Index length, const RowMarks& marks, Found& found);
  void sort(const Found& found, Index most_rows);

  Index batch_;
  bool states_anew_, resets_ = false;  // whether there is any reset
  std::vector<char> live_;             // (T, B)
  std::vector<Index> row_;  // (rows) the batch row of a stretch; they stand by falling length
  std::vector<Part> parts_;
  std::vector<Index> numbers_;  // the order of the rows of any part, then the parts' offsets
  std::vector<Place> places_;   // by part, as in `Schedule`
  Way way_[2];
};

}  // namespace rnnkern
