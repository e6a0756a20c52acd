// SPDX-License-Identifier: Apache-2.0
// The backward time loop, one launch for a chunk of steps, from its end: cpu/recurrent/backward.h's
// loop with the exchange of recurrence.h. What the blocks exchange is the gate gradients; a slice
// of the weights is its units' columns of W_hh, and between layers of the upper W_ih. The gradients
// of weights and inputs follow as products over the chunk.
#pragma once

#include <utility>

#include "cuda/recurrence.h"

namespace rnnkern::cuda {

template <class Cell, class P>
class BackwardKernel {
  using V = Scalar<typename P::Element::Sum>;
  using T = typename V::value;
  using Loop = Recurrence<P, BackwardStrand<T>>;
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
        plan_(problem.plan),
        schedule_(problem.schedule),
        loop_(block, problem),
        strand_(loop_.strand()),
        units_(problem.units) {}

  RNNKERN_KERNEL void run() const {
    for (Index s = problem_.end - 1; s >= problem_.begin; --s) {
      run_phase<0>(s);
      if constexpr (kPhases > 1) run_phase<1>(s);
    }
    if (problem_.begin == 0) run_phase<0>(-1);
    static_assert(kPhases <= 2);
  }

  RNNKERN_KERNEL std::uint32_t phases_before(Index s, int p) const {
    return static_cast<std::uint32_t>((schedule_.steps - 1 - s) * kPhases + p);
  }

  RNNKERN_KERNEL Index live(Index s) const { return schedule_.live(s, strand_.reverse); }

  // Phase 0 multiplies what step s + 1 left, phase 1 what phase 0 of this step has. Rows that are
  // not live in step s, but in step s + 1, end here with ∂L/∂h_0; step -1 has only such rows.
  template <int N>
  RNNKERN_KERNEL void run_phase(Index s) const {
    const Index now = live(s), after = live(s + 1);
    loop_.run_phase(
        {.phase = N,
         .rows = loop_.share(N == 0 && after > now ? after : now),
         .fed_rows = N == 0 ? loop_.share(now) : 0,
         .offset = s < 0 ? 0 : schedule_.offset[schedule_.time_of(s, strand_.reverse)],
         .done = phases_before(s, N),
         .ahead = phases_before(s - 1, 0),
         .parity = N == 0 ? s + 1 : s},
        [&](const Place& at) { prefetch<N>(s, at, at.i < now); },
        [&](const Place& at) { receive(at); },
        [&](const Place& at) { apply<N>(s, at, at.i < now); });
  }

  // The order of the fields.
  enum { kDh, kPreviousH, kH, kDy, kDc, kPreviousC, kC, kSaved };

  template <int N>
  RNNKERN_KERNEL void prefetch(Index s, const Place& at, bool lives) const {
    const Index state = at.b * units_ + at.unit;
    block_.copy(loop_.field(kDh, at), strand_.dh + state);
    if (!lives) return;
    const Index t = schedule_.time_of(s, strand_.reverse);
    const Index before = schedule_.time_of(s - 1, strand_.reverse);
    const bool first = at.i >= live(s - 1);
    block_.copy(loop_.field(kPreviousH, at),
                first ? strand_.h_0 + state : strand_.y.at(before, at.b) + at.unit);
    block_.copy(loop_.field(kH, at), strand_.y.at(t, at.b) + at.unit);
    for (int k = 0; k < Cell::saved; ++k) {
      block_.copy(loop_.field(kSaved + k, at),
                  strand_.saved + (at.packed * Cell::saved + k) * units_ + at.unit);
    }
    const auto& dy = strand_.mask.data ? strand_.mask : strand_.dy;
    if (N == 0 && dy.data) block_.copy(loop_.field(kDy, at), dy.at(t, at.b) + at.unit);
    if constexpr (has_c<Cell>) {
      block_.copy(loop_.field(kDc, at), strand_.dc + state);
      block_.copy(loop_.field(kPreviousC, at),
                  first ? strand_.c_0 + state
                        : strand_.cells + (schedule_.offset[before] + at.i) * units_ + at.unit);
      block_.copy(loop_.field(kC, at), strand_.cells + at.packed * units_ + at.unit);
    }
  }

  // ∂L/∂y_t from the layer above's gates, in the place of its mask.
  RNNKERN_KERNEL void receive(const Place& at) const {
    const T sum = loop_.sum(kBetween, at.n, at.m);
    T* const dy = loop_.field(kDy, at);
    *dy = strand_.mask.data ? *dy * sum : sum;
  }

  template <int N>
  RNNKERN_KERNEL void apply(Index s, const Place& at, bool lives) const {
    const Index state = at.b * units_ + at.unit;
    const V product(loop_.sum(N, at.n, at.m)), dh(*loop_.field(kDh, at));
    if (!lives) {
      strand_.dh[state] = (dh + product).v;
      return;
    }
    T* const delta =
        strand_.delta + (at.packed - loop_.first_row()) * delta_count<Cell> * units_ + at.unit;
    BackwardStep<V, Cell> step;
#pragma unroll
    for (int k = 0; k < Cell::saved; ++k) step.saved[k] = V(*loop_.field(kSaved + k, at));
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
      if constexpr (kPhases > 1) strand_.dh_now[at.i * units_ + at.unit] = step.dh.v;
    } else {
      step.dh = V(strand_.dh_now[at.i * units_ + at.unit]);
      step.doperand = product;
      step.direct = dh;
      constexpr Range before = found_in<Cell>(N - 1);
#pragma unroll
      for (int d = before.first; d < before.first + before.count; ++d)
        step.delta[d] = V(delta[d * units_]);
    }

    Cell::backward(Phase<N>{}, step, OwnFunctions<V, Cell>{});

    strand_.dh[state] = step.direct.v;
    if constexpr (has_c<Cell>) strand_.dc[state] = step.dc.v;
    constexpr Range found = found_in<Cell>(N);
#pragma unroll
    for (int d = found.first; d < found.first + found.count; ++d)
      delta[d * units_] = step.delta[d].v;
    exchange<N>(s, at, step, std::make_integer_sequence<int, Cell::gates>());
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
  const RecurrentPlan& plan_;
  const DeviceSchedule& schedule_;
  const Loop loop_;
  const BackwardStrand<T>& strand_;
  const int units_;
};

}  // namespace rnnkern::cuda
