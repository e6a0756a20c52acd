// SPDX-License-Identifier: Apache-2.0
// The way back of layer normalisation over a part of a chunk: the gradients of gains and shifts, and from the
// gradients of what equations saw of W_ih x those of W_ih x itself.
#pragma once

#include "core/problem.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/normalization.h"
#include "cpu/team/team.h"

namespace rnnkern {

// Σ load(k) over [begin, end). Several sums side by side keep the units busy.
template <class V, Index kSums, class Load>
[[gnu::always_inline]] inline V column_sums(Index begin, Index end, Load load) {
  using T = typename V::value;
  V sums[kSums];
  for (auto& sum : sums) sum = V(T(0));
  Index k = begin;
  for (; end - k >= kSums; k += kSums) {
#pragma GCC unroll 8
    for (Index i = 0; i < kSums; ++i) sums[i] = sums[i] + load(k + i);
  }
  for (; k < end; ++k) sums[0] = sums[0] + load(k);
  for (Index half = kSums / 2; half > 0; half /= 2) {
    for (Index i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
  }
  return sums[0];
}

// Adds Σ load(k) over `rows` rows to the first n of V::size sums. Equal addends lose the same again and again:
// 16 in a row, then a tree, and what that comes to is added in float64.
template <class V, class Load>
[[gnu::always_inline]] inline void add_column(Index rows, Index n, double* sums, Load load) {
  constexpr Index kSums = 8, kRows = 16 * kSums;
  for (Index begin = 0; begin < rows; begin += kRows) {
    typename V::value sum[V::size];
    column_sums<V, kSums>(begin, begin + kRows < rows ? begin + kRows : rows, load).store(sum);
    for (Index k = 0; k < V::size && k < n; ++k) sums[k] += static_cast<double>(sum[k]);
  }
}

// ∂L/∂(recurrent sums) of those gates' blocks, to their place among a row's deltas; `normed` (G·H) and `scales` are
// what the forward pass kept of the row.
template <class V, class T>
void denormalize_deltas(const CellFacts& cell, Range gates, Index units, const T* normed,
                        const T* scales, const T* gain, T* deltas) {
  for_norm_blocks(cell, gates, [&](int k, Range block) {
    const Index first = block.first * units;
    T* const to = deltas + cell.recurrent_delta(block.first) * units;
    denormalize_row<V>(deltas + cell.preactivation_delta(block.first) * units, normed + first,
                       gain + first, block.count * units, scales[k],
                       [&](V v, Index j, Index left)
                           __attribute__((always_inline)) { store_some(to + j, v, left); });
  });
}

template <class V>
class NormGradients {
  using T = typename V::value;

 public:
  // Rows of sums (H): of each of the cell's own gradients, of the gains of the recurrent parts and of those
  // from x, and of c's gain and shift.
  static Index sum_rows(const CellFacts& cell) {
    return cell.own_deltas + 2 * cell.gates + (cell.cell_state ? 2 : 0);
  }

  NormGradients(const CellFacts& cell, const BackwardProblem<T>& problem, const Worker& worker,
                const NormWeights<T>& weights, Index delta_size, double* sums)
      : cell_(cell),
        problem_(problem),
        worker_(worker),
        weights_(weights),
        units_(problem.units),
        row_(cell.gates * problem.units),
        delta_size_(delta_size),
        sums_(sums) {}

  // The part's rows of deltas are there, all threads'; of the gates' they become ∂L/∂(W_ih x), all threads'
  // too.
  void add(const Chunk& part, T* delta) const {
    add_sums(part, delta);
    worker_.wait_team();
    const auto share = worker_.share(part.rows());
    for (Index k = share.begin; k < share.end; ++k)
      pass_input(input_row(part, k), delta + k * delta_size_);
    worker_.wait_team();
  }

  // Hands each gradient's sums to visit(gradient, sums, n).
  template <class Visit>
  void for_sums(Visit visit) const {
    const Index own = cell_.own_deltas * units_;
    visit(problem_.dbias, sums_, row_);
    if (own > row_) visit(problem_.dbias_hn, sums_ + row_, units_);
    visit(problem_.dnorm.gain_hh, sums_ + own, row_);
    visit(problem_.dnorm.gain_ih, sums_ + own + row_, row_);
    if (!cell_.cell_state) return;
    visit(problem_.dnorm.gain_c, sums_ + own + 2 * row_, units_);
    visit(problem_.dnorm.shift_c, sums_ + own + 2 * row_ + units_, units_);
  }

 private:
  // Which of the rows that were kept of W_ih x is that of a part's row k.
  Index input_row(const Chunk& part, Index k) const {
    const Index p = part.first_row + k;
    return problem_.tokens.slot ? problem_.tokens.slot[p] : p;
  }

  void add_sums(const Chunk& part, const T* delta) const {
    const Index lanes = (units_ + V::size - 1) / V::size;
    const auto share = worker_.share(sum_rows(cell_) * lanes);
    for (Index j = share.begin; j < share.end; ++j) {
      const int which = static_cast<int>(j / lanes);
      const Index unit = j % lanes * V::size;
      add_lane(part, delta, which, unit, sums_ + which * units_ + unit);
    }
  }

  void add_lane(const Chunk& part, const T* delta, int which, Index unit, double* sums) const {
    const Index n = units_ - unit, rows = part.rows(), row = delta_size_;
    const int own = cell_.own_deltas, gates = cell_.gates;
    const auto from = [&](int d) { return delta + d * units_ + unit; };
    if (which < own) {
      const T* d = from(which);
      return add_column<V>(rows, n, sums, [&](Index k) __attribute__((always_inline)) {
        return load_some<V>(d + k * row, n);
      });
    }
    if (which < own + gates) {
      const int gate = which - own;
      const T *d = from(cell_.preactivation_delta(gate)),
              *normed = problem_.norm.hh + part.first_row * row_ + gate * units_ + unit;
      return add_column<V>(rows, n, sums, [&](Index k) __attribute__((always_inline)) {
        return load_some<V>(d + k * row, n) * load_some<V>(normed + k * row_, n);
      });
    }
    if (which < own + 2 * gates) {
      const int gate = which - own - gates;
      const T *d = from(gate), *normed = problem_.norm.ih + gate * units_ + unit;
      return add_column<V>(rows, n, sums, [&](Index k) __attribute__((always_inline)) {
        return load_some<V>(d + k * row, n) * load_some<V>(normed + input_row(part, k) * row_, n);
      });
    }
    const T *d = from(own + gates), *c = problem_.cells + part.first_row * units_ + unit;
    const T* scales = problem_.norm.scales_hh + part.first_row * kNormScales + kNormScaleOfC;
    const bool of_gain = which == own + 2 * gates;
    add_column<V>(rows, n, sums, [&](Index k) __attribute__((always_inline)) {
      const V value = load_some<V>(d + k * row, n);
      if (!of_gain) return value;
      const T* const by = scales + k * kNormScales;
      return value * ((load_some<V>(c + k * units_, n) - V(by[0])) * V(by[1]));
    });
  }

  void pass_input(Index kept, T* delta) const {
    const T* const scales = problem_.norm.scales_ih + kept * kNormScales;
    for_norm_blocks(cell_, {0, cell_.gates}, [&](int k, Range block) {
      const Index first = block.first * units_;
      T* const d = delta + first;
      denormalize_row<V>(d, problem_.norm.ih + kept * row_ + first, weights_.gain_ih + first,
                         block.count * units_, scales[k],
                         [&](V v, Index j, Index left)
                             __attribute__((always_inline)) { store_some(d + j, v, left); });
    });
  }

  const CellFacts& cell_;
  const BackwardProblem<T>& problem_;
  const Worker& worker_;
  const NormWeights<T> weights_;
  const Index units_, row_;  // row_: of what was kept
  const Index delta_size_;
  double* const sums_;
};

}  // namespace rnnkern
