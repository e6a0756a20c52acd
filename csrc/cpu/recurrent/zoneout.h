// SPDX-License-Identifier: Apache-2.0
// Zoneout (Krueger et al. 2016, arXiv:1606.01305): units of h or c that keep their value of the step before.
#pragma once

#include "core/memory.h"
#include "core/problem.h"
#include "cpu/gemm/product.h"

namespace rnnkern {

// What is drawn of a row and step, from a column on; or null.
template <class T>
[[gnu::always_inline]] inline const unsigned char* drawn_at(const Zoneout<T>& zone, Place place,
                                                            Index column) {
  return zone.drawn.data ? zone.drawn.at(place) + column : nullptr;
}

// to = fresh, or `before` in units that keep it; without a draw both by their shares. `to` may be either.
template <class V, class T>
void zone_row(const Zoneout<T>& zone, const unsigned char* drawn, const T* fresh, const T* before,
              Index n, T* to) {
  if (drawn) {
#pragma omp simd
    for (Index j = 0; j < n; ++j) to[j] = drawn[j] ? before[j] : fresh[j];
    return;
  }
  const V share(zone.share), rest(T(1) - zone.share);
  for (Index j = 0; j < n; j += V::size) {
    const V of_fresh = rest * load_some<V>(fresh + j, n - j);
    store_some(to + j, of_fresh + share * load_some<V>(before + j, n - j), n - j);
  }
}

struct RowRange {
  Index begin, end;
};

// Of units [first, first + n) of rows at processed step s; arrays of pointers have one entry a row, to its first
// unit.
template <class V, class T>
[[gnu::always_inline]] inline void zone_rows(const Zoneout<T>& zone, const Schedule& schedule,
                                             Index s, RowRange rows, Index first, Index n,
                                             const T* const* fresh, const T* const* before,
                                             T* const* to) {
  if (!zone.on()) return;
  for (Index i = rows.begin; i < rows.end; ++i) {
    const Place place = schedule.at(schedule.time(s), i);
    zone_row<V>(zone, drawn_at(zone, place, first), fresh[i] + first, before[i] + first, n,
                to[i] + first);
  }
}

// The way back: what of a gradient goes to the step before alone is put aside, the rest is the cell's.
template <class V, class T>
void put_aside(const unsigned char* drawn, T* gradient, T* aside, Index n) {
#pragma omp simd
  for (Index j = 0; j < n; ++j) {
    aside[j] = drawn[j] ? gradient[j] : T(0);
    gradient[j] = drawn[j] ? T(0) : gradient[j];
  }
}

template <class V, class T>
void add_row(const T* from, Index n, T* to) {
  for (Index j = 0; j < n; j += V::size)
    store_some(to + j, load_some<V>(to + j, n - j) + load_some<V>(from + j, n - j), n - j);
}

// Around the equations of a step's phases, of an h that is no projection, and of c.
template <class V>
class ZonedGradients {
  using T = typename V::value;

 public:
  ZonedGradients() = default;
  ZonedGradients(const BackwardProblem<T>& problem, Arena& arena)
      : of_h_(problem.zone_h.on() && problem.outputs == problem.units), of_c_(problem.zone_c.on()) {
    const Index size = problem.schedule.batch * problem.units;
    h_aside_ = arena.take<T>(of_h_ ? size : 0);
    c_aside_ = arena.take<T>(of_c_ ? size : 0);
  }

  bool of_h() const { return of_h_; }

  // Before the first phase: the whole ∂L/∂h_t is then in problem.dh, and nothing of it in the sums, of which a
  // row stands sums_row after the one before (0 for none), or in dy (null for none).
  void before(const BackwardProblem<T>& problem, Index s, RowRange rows, Index first, Index n,
              T* sums, Index sums_row, const T* const* dy) const {
    if (!of_h_ && !of_c_) return;
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Place place = problem.schedule.at(problem.schedule.time(s), i);
      const Index at = problem.schedule.order[i] * problem.units + first;
      const Index aside = i * problem.units + first;
      if (of_h_) {
        if (sums_row > 0) {
          T* const row = sums + (i - rows.begin) * sums_row;
          add_row<V>(row, n, problem.dh + at);
          for (Index j = 0; j < n; ++j) row[j] = T(0);
        }
        if (dy) add_row<V>(dy[i] + first, n, problem.dh + at);
        put_aside<V>(drawn_at(problem.zone_h, place, first), problem.dh + at, h_aside_ + aside, n);
      }
      if (of_c_)
        put_aside<V>(drawn_at(problem.zone_c, place, first), problem.dc + at, c_aside_ + aside, n);
    }
  }

  // After the last phase; what it told of h and c was the cell's, and becomes that of the states.
  void after(const BackwardProblem<T>& problem, Index s, RowRange rows, Index first, Index n,
             T* const* told) const {
    if (!of_h_ && !of_c_) return;
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Index at = problem.schedule.order[i] * problem.units + first;
      const Index aside = i * problem.units + first;
      T* const own = problem.state_gradients ? told[i] + first : nullptr;
      if (of_h_) {
        add_row<V>(h_aside_ + aside, n, problem.dh + at);
        if (own) add_row<V>(h_aside_ + aside, n, own);
      }
      if (!of_c_) continue;
      add_row<V>(c_aside_ + aside, n, problem.dc + at);
      if (!own) continue;
      const Place place = problem.schedule.at(problem.schedule.time(s), i);
      const unsigned char* const drawn = drawn_at(problem.zone_c, place, first);
      for (Index j = 0; j < n; ++j)
        if (drawn[j]) own[problem.units + j] = c_aside_[aside + j];
    }
  }

 private:
  bool of_h_ = false, of_c_ = false;
  T *h_aside_ = nullptr, *c_aside_ = nullptr;  // (B, H)
};

}  // namespace rnnkern
