// SPDX-License-Identifier: Apache-2.0
// Layer normalisation inside a cell (Ba, Kiros and Hinton 2016, arXiv:1607.06450): rows of sums less their
// mean, over their standard deviation, and the way back. Each row is one thread's, from its first unit to its
// last, so that its bits do not depend on how rows are shared.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/cells.h"
#include "core/memory.h"
#include "core/problem.h"
#include "cpu/gemm/product.h"
#include "cpu/recurrent/equations.h"
#include "cpu/team/team.h"

namespace rnnkern {

// What is added to a variance.
inline constexpr double kNormEpsilon = 1e-5;

// Gains and shifts as a pass reads them, a copy beside its panels: of the part from x (the bias is its shift)
// and of the recurrent part (G·H each), and of c (H).
template <class T>
struct NormWeights {
  T *gain_ih = nullptr, *shift_ih = nullptr, *gain_hh = nullptr, *shift_hh = nullptr;
  T *gain_c = nullptr, *shift_c = nullptr;

  NormWeights() = default;
  [[gnu::always_inline]] NormWeights(const CellFacts& cell, Index units, Arena& arena) {
    if (!cell.layer_norm) return;
    const Index rows = cell.gates * units, of_c = cell.cell_state ? units : 0;
    gain_ih = arena.take<T>(rows), shift_ih = arena.take<T>(rows);
    gain_hh = arena.take<T>(rows), shift_hh = arena.take<T>(rows);
    gain_c = arena.take<T>(of_c), shift_c = arena.take<T>(of_c);
  }

  [[gnu::always_inline]] void pack(const CellFacts& cell, const Parameters<T>& parameters) const {
    if (!cell.layer_norm) return;
    const Index units = parameters.units, rows = cell.gates * units;
    const auto copy = [](const T* from, T* to, Index n) {
      for (Index j = 0; j < n; ++j) to[j] = from ? from[j] : T(0);
    };
    copy(parameters.norm.gain_ih, gain_ih, rows);
    copy(parameters.bias, shift_ih, rows);
    copy(parameters.norm.gain_hh, gain_hh, rows);
    copy(nullptr, shift_hh, rows);
    if (parameters.bias_hn)
      copy(parameters.bias_hn, shift_hh + cell.recurrent_bias_gate * units, units);
    if (!cell.cell_state) return;
    copy(parameters.norm.gain_c, gain_c, units);
    copy(parameters.norm.shift_c, shift_c, units);
  }
};

template <class T>
struct RowScale {
  T mean, scale;
};

// Σ of lanes(j, n) for the lanes of [0, n): j is where one begins, n what is left from there on.
template <class V, class Lanes>
[[gnu::always_inline]] inline typename V::value sum_of_lanes(Index n, Lanes lanes) {
  using T = typename V::value;
  constexpr Index kSums = 4;
  V sums[kSums];
  for (auto& sum : sums) sum = V(T(0));
  Index j = 0;
  for (; j + kSums * V::size <= n; j += kSums * V::size) {
#pragma GCC unroll 4
    for (Index k = 0; k < kSums; ++k)
      sums[k] = sums[k] + lanes(j + k * V::size, n - j - k * V::size);
  }
  for (; j < n; j += V::size) sums[0] = sums[0] + lanes(j, n - j);
  T each[V::size], sum = T(0);
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(each);
  for (const T v : each) sum += v;
  return sum;
}

// 1 where a lane of which n are left is real, else 0.
template <class V>
[[gnu::always_inline]] inline V real_lanes(Index n) {
  using T = typename V::value;
  if (n >= V::size) return V(T(1));
  T ones[V::size];
  for (Index k = 0; k < V::size; ++k) ones[k] = k < n ? T(1) : T(0);
  return V::load(ones);
}

template <class V>
RowScale<typename V::value> scale_of_row(const typename V::value* row, Index n) {
  using T = typename V::value;
  const T count = static_cast<T>(n);
  const T mean =
      sum_of_lanes<V>(n, [&](Index j, Index left) { return load_some<V>(row + j, left); }) / count;
  const V minus(-mean);
  const T squares = sum_of_lanes<V>(n, [&](Index j, Index left) {
    const V centred = left >= V::size ? V::load(row + j) + minus
                                      : (V::load(row + j, left) + minus) * real_lanes<V>(left);
    return centred * centred;
  });
  return {mean, T(1) / std::sqrt(squares / count + static_cast<T>(kNormEpsilon))};
}

// The normalised row n, and of it gain·n + shift: either may be where the row is, and `normed` null.
template <class V>
void normalize_row(const typename V::value* row, Index n, RowScale<typename V::value> by,
                   const typename V::value* gain, const typename V::value* shift,
                   typename V::value* normed, typename V::value* out) {
  const V minus(-by.mean), scale(by.scale);
  for (Index j = 0; j < n; j += V::size) {
    const Index left = n - j;
    const V value = (load_some<V>(row + j, left) + minus) * scale;
    if (normed) store_some(normed + j, value, left);
    store_some(out + j, fma(load_some<V>(gain + j, left), value, load_some<V>(shift + j, left)),
               left);
  }
}

// ∂L/∂row from `d`, ∂L/∂(gain·n + shift): what changes the row's mean or its length has no part in it. `use`
// is handed it lane by lane: (lane, where, how many are left).
template <class V, class Use>
[[gnu::always_inline]] inline void denormalize_row(const typename V::value* d,
                                                   const typename V::value* normed,
                                                   const typename V::value* gain, Index n,
                                                   typename V::value scale, Use use) {
  using T = typename V::value;
  const auto scaled = [&](Index j, Index left) __attribute__((always_inline)) {
    return load_some<V>(d + j, left) * load_some<V>(gain + j, left);
  };
  const T count = static_cast<T>(n);
  const V mean(sum_of_lanes<V>(n, scaled) / count);
  const V along(sum_of_lanes<V>(n,
                                [&](Index j, Index left) __attribute__((always_inline)) {
                                  return scaled(j, left) * load_some<V>(normed + j, left);
                                }) /
                count);
  for (Index j = 0; j < n; j += V::size) {
    const Index left = n - j;
    use((scaled(j, left) - mean - load_some<V>(normed + j, left) * along) * V(scale), j, left);
  }
}

// The blocks of the gates of a phase.
template <class Visit>
[[gnu::always_inline]] inline void for_norm_blocks(const CellFacts& cell, Range gates,
                                                   Visit visit) {
  for (int k = 0; k < static_cast<int>(cell.norm_blocks.size()); ++k) {
    const Range block = cell.norm_blocks[static_cast<std::size_t>(k)];
    if (block.first >= gates.first && block.first < gates.first + gates.count) visit(k, block);
  }
}

// Of the gates of a phase the parts from x of one row (G·H): out come gain·n + bias in their place, and n and
// its scales where they are kept.
template <class V>
void normalize_input(const CellFacts& cell, Range gates, Index units,
                     const NormWeights<typename V::value>& weights, typename V::value* row,
                     typename V::value* normed, typename V::value* scales) {
  for_norm_blocks(cell, gates, [&](int k, Range block) {
    const Index first = block.first * units, n = block.count * units;
    const auto by = scale_of_row<V>(row + first, n);
    if (scales) scales[k] = by.scale;
    normalize_row<V>(row + first, n, by, weights.gain_ih + first, weights.shift_ih + first,
                     normed ? normed + first : nullptr, row + first);
  });
}

// Recurrent parts of one row and the gates of a phase: n is left in their place, and gain·n + shift in `out`
// as equations read sums: the gates of each lane of units side by side.
template <class V>
void normalize_sums(const CellFacts& cell, Range gates, Index units,
                    const NormWeights<typename V::value>& weights, typename V::value* row,
                    typename V::value* scales, typename V::value* out) {
  for_norm_blocks(cell, gates, [&](int k, Range block) {
    const auto by = scale_of_row<V>(row + block.first * units, block.count * units);
    if (scales) scales[k] = by.scale;
    const V minus(-by.mean), scale(by.scale);
    for (int g = block.first; g < block.first + block.count; ++g) {
      auto* sums = row + g * units;
      const auto *gain = weights.gain_hh + g * units, *shift = weights.shift_hh + g * units;
      auto* to = out + (g - gates.first) * V::size;
      for (Index j = 0; j < units; j += V::size, to += gates.count * V::size) {
        const Index left = units - j;
        const V value = (load_some<V>(sums + j, left) + minus) * scale;
        store_some(sums + j, value, left);
        fma(load_some<V>(gain + j, left), value, load_some<V>(shift + j, left)).store(to);
      }
    }
  });
}

// h of a c that is normalised, by a row's gates; its mean and scale are kept where there is room.
template <class V>
void finish_output(const CellFacts& cell, const CellEquations<typename V::value>& equations,
                   const NormWeights<typename V::value>& weights,
                   const CellOptions<typename V::value>* options, Index units,
                   const typename V::value* saved, const typename V::value* c,
                   typename V::value* scales, typename V::value* h) {
  const auto by = scale_of_row<V>(c, units);
  if (scales) scales[kNormScaleOfC] = by.mean, scales[kNormScaleOfC + 1] = by.scale;
  equations.output({.units = units,
                    .gate = saved + cell.output_gate * units,
                    .c = c,
                    .mean = by.mean,
                    .scale = by.scale,
                    .gain = weights.gain_c,
                    .shift = weights.shift_c,
                    .options = options,
                    .h = h});
}

}  // namespace rnnkern
