// SPDX-License-Identifier: Apache-2.0
// The backward time loop, one launch for a chunk of steps, from its end: cpu/recurrent/backward.h's
// loop with the exchange of recurrence.h. What the blocks exchange is the gate gradients; a slice
// of the weights is its units' columns of W_hh, and between layers of the upper W_ih. The gradients
// of weights and inputs follow as products over the chunk.
#pragma once

#include <utility>

#include "cuda/recurrence.h"

namespace rnnkern::cuda {

template <class Cell, class P, template <class, class> class Functions>
class BackwardKernel {
  using V = Scalar<typename P::Element::Sum>;
  using T = typename V::value;
  using Loop = Recurrence<P, BackwardStrand<T>>;
  using Span = DeviceSchedule::Span;
  static constexpr int kPhases = phase_count<Cell>;

 public:
  using Arguments = RecurrentProblem<BackwardStrand<T>>;

  RNNKERN_KERNEL static void run(Block block, const Arguments& problem) {
    BackwardKernel(block, problem).run();
  }

 private:
  RNNKERN_KERNEL BackwardKernel(Block block, const Arguments& problem)
      : block_(block),
        problem_(problem),
        schedule_(problem.schedule),
        loop_(block, problem),
        strand_(loop_.strand()),
        functions_(&loop_.strand().options),
        units_(problem.units) {}

  // What a step needs of the schedule, which is read a step ahead, and of the rows of the group
  // those that are live.
  struct Around {
    Span before, now, next;
    int rows, next_rows;
  };

  RNNKERN_KERNEL void run() const {
    const Index last = problem_.end - 1;
    Around around{span(last - 1), span(last), span(last + 1), 0, 0};
    around.rows = loop_.share(around.now.live());
    around.next_rows = loop_.share(around.next.live());
    for (Index s = last; s >= problem_.begin; --s) {
      const Span then = span(s - 2);
      run_phase<0>(s, around);
      if constexpr (kPhases > 1) run_phase<1>(s, around);
      const int rows = around.before.live() == around.now.live()
                           ? around.rows
                           : loop_.share(around.before.live());
      around = {then, around.before, around.now, rows, around.rows};
    }
    if (problem_.begin == 0) run_phase<0>(-1, around);
    static_assert(kPhases <= 2);
  }

  RNNKERN_KERNEL Span span(Index s) const { return schedule_.span(s, strand_.reverse); }

  RNNKERN_KERNEL std::uint32_t phases_before(Index s, int p) const {
    return static_cast<std::uint32_t>((schedule_.steps - 1 - s) * kPhases + p);
  }

  // Phase 0 multiplies what step s + 1 left, phase 1 what phase 0 of this step has. Rows that are
  // not live in step s, but in step s + 1, end here with ∂L/∂h_0; step -1 has only such rows.
  template <int N>
  RNNKERN_KERNEL void run_phase(Index s, const Around& around) const {
    const Index now = around.now.live();
    const bool ending = N == 0 && around.next_rows > around.rows;
    loop_.run_phase(
        {.phase = N,
         .rows = ending ? around.next_rows : around.rows,
         .fed_rows = N == 0 ? around.rows : 0,
         .offset = around.now.first,
         .done = phases_before(s, N),
         .ahead = phases_before(s - 1, 0),
         .parity = N == 0 ? s + 1 : s},
        [&](const Place& at) { prefetch<N>(s, around, at, at.i < now); },
        [&](const Place& at) { receive(at); },
        [&](const Place& at) { apply<N>(s, at, at.i < now); },
        [&](const Place& at) { store<N>(at, at.i < now); });
  }

  // The order of the fields. When the equations have been computed, ∂L/∂h_{t-1} (of phase 0 of two:
  // ∂L/∂h_t in the place of dy) and dc are where they were, and the gradients of the gates begin at
  // kFound.
  enum { kDh, kDc, kDy, kPreviousC, kC, kPreviousH, kH, kSaved, kFound = kPreviousC };
  static constexpr int kUnitWeights = kSaved + Cell::saved;
  // The factor of h, and whether h and c keep their values, then what of their gradients is put aside.
  static constexpr int kFactor = kUnitWeights + Cell::unit_weights;
  static constexpr int kZoneH = kFactor + 1, kZoneC = kFactor + 2;

  template <int N>
  RNNKERN_KERNEL void prefetch(Index s, const Around& around, const Place& at, bool lives) const {
    const Index state = at.b * units_ + at.unit;
    block_.copy(loop_.field(kDh, at), strand_.dh + state);
    if (loop_.factored()) block_.copy(loop_.field(kFactor, at), loop_.h_factor(at.b, at.unit));
    if (!lives) return;
    const Index t = schedule_.time_of(s, strand_.reverse);
    const Index before = schedule_.time_of(s - 1, strand_.reverse);
    const bool first = at.i >= around.before.live();
    block_.copy(loop_.field(kPreviousH, at),
                first ? strand_.h_0 + state : strand_.y.at(before, at.b) + at.unit);
    block_.copy(loop_.field(kH, at), strand_.y.at(t, at.b) + at.unit);
    for (int k = 0; k < Cell::saved; ++k) {
      block_.copy(loop_.field(kSaved + k, at),
                  strand_.saved + (at.packed * Cell::saved + k) * units_ + at.unit);
    }
    for (int k = 0; k < Cell::unit_weights; ++k) {
      block_.copy(loop_.field(kUnitWeights + k, at), strand_.unit_weights + k * units_ + at.unit);
    }
    const Sequence<const T> dy = strand_.mask.data ? strand_.mask : strand_.dy;
    if (N == 0 && dy.data) block_.copy(loop_.field(kDy, at), dy.at(t, at.b) + at.unit);
    if constexpr (has_c<Cell>) {
      block_.copy(loop_.field(kDc, at), strand_.dc + state);
      block_.copy(loop_.field(kPreviousC, at),
                  first ? strand_.c_0 + state
                        : strand_.cells + (around.before.first + at.i) * units_ + at.unit);
      const T* c = strand_.cells;
      if (loop_.zoned() && loop_.strand().fresh_c) c = loop_.strand().fresh_c;
      block_.copy(loop_.field(kC, at), c + at.packed * units_ + at.unit);
    }
    if (N == 0 && loop_.zoned()) {
      loop_.read_zone(loop_.strand().zone_h, t, kZoneH, at);
      if constexpr (has_c<Cell>) loop_.read_zone(loop_.strand().zone_c, t, kZoneC, at);
    }
  }

  // ∂L/∂y_t from the layer above's gates, in the place of its mask.
  RNNKERN_KERNEL void receive(const Place& at) const {
    T sum[1];
    loop_.sums(kBetween, at, sum);
    T* const dy = loop_.field(kDy, at);
    *dy = strand_.mask.data ? *dy * sum[0] : sum[0];
  }

  template <int N>
  RNNKERN_KERNEL void apply(Index s, const Place& at, bool lives) const {
    T sum[1];
    loop_.sums(N, at, sum);
    const V product(loop_.times_factor(sum[0], kFactor, at)), dh(*loop_.field(kDh, at));
    if (!lives) {
      *loop_.field(kDh, at) = (dh + product).v;
      return;
    }
    BackwardStep<V, Cell> step;
#pragma unroll
    for (int k = 0; k < Cell::saved; ++k) step.saved[k] = V(*loop_.field(kSaved + k, at));
#pragma unroll
    for (int k = 0; k < Cell::unit_weights; ++k)
      step.unit[k] = V(*loop_.field(kUnitWeights + k, at));
    step.h_previous = V(*loop_.field(kPreviousH, at));
    step.h = V(*loop_.field(kH, at));
    if constexpr (has_c<Cell>) {
      step.dc = V(*loop_.field(kDc, at));
      step.c_previous = V(*loop_.field(kPreviousC, at));
      step.c = V(*loop_.field(kC, at));
    }
    if constexpr (N == 0) {
      step.dh = product + dh;
      if (strand_.dy.data || loop_.fed()) step.dh = step.dh + V(*loop_.field(kDy, at));
      if (loop_.zoned()) {
        put_aside(loop_.strand().zone_h, kZoneH, at, step.dh);
        if constexpr (has_c<Cell>) put_aside(loop_.strand().zone_c, kZoneC, at, step.dc);
      }
      if constexpr (kPhases > 1) *loop_.field(kDy, at) = step.dh.v;
    } else {
      step.dh = V(strand_.dh_now[at.i * units_ + at.unit]);
      step.doperand = product;
      step.direct = dh;
      constexpr Range before = found_in<Cell>(N - 1);
#pragma unroll
      for (int d = before.first; d < before.first + before.count; ++d)
        step.delta[d] = V(delta_of(at)[d * units_]);
    }

    Cell::backward(Phase<N>{}, step, functions_);
    if (N == 0 && loop_.zoned()) {
      step.direct = step.direct + V(*loop_.field(kZoneH, at));
      if constexpr (has_c<Cell>) step.dc = step.dc + V(*loop_.field(kZoneC, at));
    }

    exchange<N>(s, at, step, std::make_integer_sequence<int, Cell::gates>());
    *loop_.field(kDh, at) = step.direct.v;
    if constexpr (has_c<Cell>) *loop_.field(kDc, at) = step.dc.v;
    constexpr Range found = found_in<Cell>(N);
    static_assert(kFound + delta_count<Cell> <= kUnitWeights);
#pragma unroll
    for (int d = 0; d < found.count; ++d)
      *loop_.field(kFound + d, at) = step.delta[found.first + d].v;
  }

  // Of a unit that kept its value the gradient is that of the step before, and not the equations'.
  RNNKERN_KERNEL void put_aside(const Zoneout<T>& zone, int index, const Place& at,
                                V& gradient) const {
    T* const field = loop_.field(index, at);
    const bool keeps = zone.drawn.data && *field != T(0);
    *field = keeps ? gradient.v : T(0);
    if (keeps) gradient = V(0);
  }

  RNNKERN_KERNEL T* delta_of(const Place& at) const {
    return strand_.delta + (at.packed - loop_.first_row()) * delta_count<Cell> * units_ + at.unit;
  }

  template <int N>
  RNNKERN_KERNEL void store(const Place& at, bool lives) const {
    const Index state = at.b * units_ + at.unit;
    strand_.dh[state] = *loop_.field(kDh, at);
    if (!lives) return;
    if constexpr (has_c<Cell>) strand_.dc[state] = *loop_.field(kDc, at);
    if constexpr (N == 0 && kPhases > 1)
      strand_.dh_now[at.i * units_ + at.unit] = *loop_.field(kDy, at);
    constexpr Range found = found_in<Cell>(N);
#pragma unroll
    for (int d = 0; d < found.count; ++d)
      delta_of(at)[(found.first + d) * units_] = *loop_.field(kFound + d, at);
  }

  // The gates' gradients that this phase knows: the recurrent ones to the phases that multiply
  // them, those of W_ih x to the layer below.
  template <int N, int... Gate>
  RNNKERN_KERNEL void exchange(Index s, const Place& at, const BackwardStep<V, Cell>& step,
                               std::integer_sequence<int, Gate...>) const {
    (exchange_gate<N, Gate>(s, at, step), ...);
  }
  template <int N, int Gate>
  RNNKERN_KERNEL void exchange_gate(Index s, const Place& at,
                                    const BackwardStep<V, Cell>& step) const {
    constexpr Range found = found_in<Cell>(N);
    constexpr int delta = recurrent_delta<Cell>(Gate);
    constexpr int reader = kPhases > 1 && Gate >= Cell::phases[kPhases - 1].first ? kPhases - 1 : 0;
    constexpr int place = Gate - Cell::phases[reader].first;
    if constexpr (delta >= found.first && delta < found.first + found.count) {
      loop_.operand(reader, s, at.j)[place * units_ + at.unit] =
          P::Element::round(step.delta[delta].v);
    }
    if constexpr (Gate >= found.first && Gate < found.first + found.count) {
      if (loop_.hands_on())
        loop_.handed(at.packed)[Gate * units_ + at.unit] = P::Element::round(step.delta[Gate].v);
    }
  }

  const Block block_;
  const Arguments& problem_;
  const DeviceSchedule& schedule_;
  const Loop loop_;
  const BackwardStrand<T> strand_;  // by value: so that it is not read anew behind each flag
  const Functions<V, Cell> functions_;
  const int units_;
};

}  // namespace rnnkern::cuda
