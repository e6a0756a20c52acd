// SPDX-License-Identifier: Apache-2.0
// The forward time loop, one launch for a chunk of steps: cpu/recurrent/forward.h's loop, with the
// exchange of recurrence.h in the place of its barriers. Each value of the state is read and
// written by one thread alone; what its equations need besides the product is on its way before the
// block waits for others.
#pragma once

#include "cuda/recurrence.h"

namespace rnnkern::cuda {

template <class Cell, class P, template <class, class> class Functions>
class ForwardKernel {
  using V = Scalar<typename P::Element::Sum>;
  using T = typename V::value;
  using Loop = Recurrence<P, ForwardStrand<T>>;
  using Span = DeviceSchedule::Span;
  static constexpr int kPhases = phase_count<Cell>;
  static constexpr int kGates = Cell::gates, kStates = has_c<Cell> ? 2 : 1;

 public:
  using Arguments = RecurrentProblem<ForwardStrand<T>>;

  RNNKERN_KERNEL static void run(Block block, const Arguments& problem) {
    ForwardKernel(block, problem).run();
  }

 private:
  RNNKERN_KERNEL ForwardKernel(Block block, const Arguments& problem)
      : block_(block),
        problem_(problem),
        plan_(problem.plan),
        schedule_(problem.schedule),
        loop_(block, problem),
        strand_(loop_.strand()),
        functions_(&loop_.strand().options),
        units_(problem.units) {}

  // What a step needs of the schedule, which is read a step ahead.
  struct Around {
    Span before, now, next;
    int rows;  // of the group that are live now
  };

  RNNKERN_KERNEL void run() const {
    if (problem_.begin == 0) begin_states();
    Around around{span(problem_.begin - 1), span(problem_.begin), span(problem_.begin + 1), 0};
    around.rows = loop_.share(around.now.live());
    for (Index s = problem_.begin; s < problem_.end; ++s) {
      const Span then = span(s + 2);
      run_phase<0>(s, around);
      if constexpr (kPhases > 1) run_phase<1>(s, around);
      const int rows =
          around.next.live() == around.now.live() ? around.rows : loop_.share(around.next.live());
      around = {around.now, around.next, then, rows};
    }
    static_assert(kPhases <= 2);
  }

  RNNKERN_KERNEL Span span(Index s) const { return schedule_.span(s, strand_.reverse); }

  RNNKERN_KERNEL static std::uint32_t phases_before(Index s, int p) {
    return static_cast<std::uint32_t>(1 + s * kPhases + p);
  }

  // h_0 into both halves, for a row of the reverse direction may begin at any step.
  RNNKERN_KERNEL void begin_states() const {
    const int rows = loop_.share(schedule_.batch);
    block_.each([&](int thread) {
      for (int local = 0; local < loop_.own_slices(); ++local) {
        for (Index e = thread; e < Index{rows} * plan_.units; e += kThreads) {
          const int j = static_cast<int>(e / plan_.units), m = static_cast<int>(e % plan_.units);
          const int unit = loop_.slice(local) * plan_.units + m;
          if (unit >= units_) continue;
          const Index b = schedule_.order[loop_.row(j)];
          T given = strand_.h[b * units_ + unit];
          if (loop_.factored()) given *= *loop_.h_factor(b, unit);
          const auto h = P::Element::round(given);
          loop_.operand(0, 0, j)[unit] = h;
          loop_.operand(0, 1, j)[unit] = h;
        }
      }
    });
    loop_.publish_phase(1, [](int) {});
  }

  template <int N>
  RNNKERN_KERNEL void run_phase(Index s, const Around& around) const {
    loop_.run_phase(
        {.phase = N,
         .rows = around.rows,
         .fed_rows = around.rows,
         .offset = around.now.first,
         .done = phases_before(s, N),
         .ahead = phases_before(s + 1, 0),
         .parity = s},
        [&](const Place& at) { prefetch<N>(s, around, at); },
        [&](const Place& at) { receive<N>(at); }, [&](const Place& at) { apply<N>(s, at); },
        [&](const Place& at) { store<N>(s, around, at); });
  }

  RNNKERN_KERNEL T* saved_row(const Place& at) const {
    return strand_.saved ? strand_.saved + at.packed * Cell::saved * units_
                         : strand_.scratch + at.i * Cell::saved * units_;
  }

  // What stands in the fields: W_ih x + b of the phase's gates, h, c, what phase 0 saved, the mask,
  // the unit's own weights, the factor of h, and whether h and c keep their values.
  template <int N>
  static constexpr int kSavedBefore = saved_in<Cell>(N).first;
  template <int N>
  static constexpr int kMask = Cell::phases[N].count + kStates + kSavedBefore<N>;
  template <int N>
  static constexpr int kUnitWeights = kMask<N> + 1;
  template <int N>
  static constexpr int kFactor = kUnitWeights<N> + Cell::unit_weights;
  template <int N>
  static constexpr int kZoneH = kFactor<N> + 1;
  template <int N>
  static constexpr int kZoneC = kZoneH<N> + 1;
  // And when the equations have been computed: what the phase saves; of the last one also h and c.
  template <int N>
  static constexpr int kNewState = saved_in<Cell>(N).count;

  template <int N>
  RNNKERN_KERNEL void prefetch(Index s, const Around& around, const Place& at) const {
    constexpr Range phase = Cell::phases[N];
    const bool first = at.i >= around.before.live();
    const T* x = strand_.bias;
    if (strand_.x_part) x = strand_.x_part + (at.packed - loop_.first_row()) * kGates * units_;
    for (int g = 0; g < phase.count; ++g) {
      if (x) {
        block_.copy(loop_.field(g, at), x + (phase.first + g) * units_ + at.unit);
      } else {
        *loop_.field(g, at) = T(0);
      }
    }
    const T* h = first ? strand_.h + at.b * units_
                       : strand_.y.at(schedule_.time_of(s - 1, strand_.reverse), at.b);
    block_.copy(loop_.field(phase.count, at), h + at.unit);
    if constexpr (has_c<Cell>) {
      const T* c = strand_.c + at.b * units_;
      if (!first && strand_.cells) c = strand_.cells + (around.before.first + at.i) * units_;
      block_.copy(loop_.field(phase.count + 1, at), c + at.unit);
    }
    for (int k = 0; k < kSavedBefore<N>; ++k)
      block_.copy(loop_.field(phase.count + kStates + k, at), saved_row(at) + k * units_ + at.unit);
    if (N + 1 == kPhases && strand_.mask.data) {
      block_.copy(loop_.field(kMask<N>, at),
                  strand_.mask.at(schedule_.time_of(s, strand_.reverse), at.b) + at.unit);
    }
    for (int k = 0; k < Cell::unit_weights; ++k) {
      block_.copy(loop_.field(kUnitWeights<N> + k, at),
                  strand_.unit_weights + k * units_ + at.unit);
    }
    if (loop_.factored()) block_.copy(loop_.field(kFactor<N>, at), loop_.h_factor(at.b, at.unit));
    if (N + 1 == kPhases && loop_.zoned()) {
      const Index t = schedule_.time_of(s, strand_.reverse);
      loop_.read_zone(loop_.strand().zone_h, t, kZoneH<N>, at);
      if constexpr (has_c<Cell>) loop_.read_zone(loop_.strand().zone_c, t, kZoneC<N>, at);
    }
  }

  // The layer below's y_t has come through W_ih.
  template <int N>
  RNNKERN_KERNEL void receive(const Place& at) const {
    constexpr Range phase = Cell::phases[N];
    T sums[phase.count];
    loop_.sums(kBetween + N, at, sums);
#pragma unroll
    for (int g = 0; g < phase.count; ++g) *loop_.field(g, at) += sums[g];
  }

  template <int N>
  RNNKERN_KERNEL void apply(Index s, const Place& at) const {
    constexpr Range phase = Cell::phases[N];
    constexpr Range saves = saved_in<Cell>(N);
    ForwardStep<V, Cell> step;
    T sums[phase.count];
    loop_.sums(N, at, sums);
#pragma unroll
    for (int g = 0; g < phase.count; ++g) {
      if (phase.first + g == Cell::recurrent_bias_gate && strand_.bias_hn)
        sums[g] += strand_.bias_hn[at.unit];
      step.x[phase.first + g] = V(*loop_.field(g, at));
      step.product[phase.first + g] = V(sums[g]);
    }
    step.h = V(*loop_.field(phase.count, at));
    if constexpr (has_c<Cell>) step.c = V(*loop_.field(phase.count + 1, at));
#pragma unroll
    for (int k = 0; k < saves.first; ++k)
      step.saved[k] = V(*loop_.field(phase.count + kStates + k, at));
#pragma unroll
    for (int k = 0; k < Cell::unit_weights; ++k)
      step.unit[k] = V(*loop_.field(kUnitWeights<N> + k, at));

    Cell::forward(Phase<N>{}, step, functions_);
    if (N + 1 == kPhases && loop_.zoned()) keep_zones<N>(at, step);

    if constexpr (N + 1 < kPhases) {
      const V next = step.saved[Cell::operand_gate] * step.h;
      loop_.operand(N + 1, s, at.j)[at.unit] =
          P::Element::round(loop_.times_factor(next.v, kFactor<N>, at));
    } else {
      hand_over(s, at, step.h.v);
    }
#pragma unroll
    for (int k = 0; k < saves.count; ++k) *loop_.field(k, at) = step.saved[saves.first + k].v;
    static_assert(N + 1 < kPhases || kNewState<N> <= kGates + 1);  // of the fields that a plan has
    if constexpr (N + 1 == kPhases) {
      *loop_.field(kNewState<N>, at) = step.h.v;
      if constexpr (has_c<Cell>) *loop_.field(kNewState<N> + 1, at) = step.c.v;
    }
  }

  // The state of what the step gave and what was before; in the place of c's zone is then the c that it gave.
  template <int N>
  RNNKERN_KERNEL void keep_zones(const Place& at, ForwardStep<V, Cell>& step) const {
    constexpr int h = Cell::phases[N].count, c = h + 1;
    step.h =
        V(zoned(loop_.strand().zone_h, step.h.v, *loop_.field(h, at), *loop_.field(kZoneH<N>, at)));
    if constexpr (has_c<Cell>) {
      static_assert(kNewState<N> + 1 < kZoneC<N>);
      T* const zone = loop_.field(kZoneC<N>, at);
      const T fresh = step.c.v;
      step.c = V(zoned(loop_.strand().zone_c, fresh, *loop_.field(c, at), *zone));
      *zone = fresh;
    }
  }
  RNNKERN_KERNEL static T zoned(const Zoneout<T>& zone, T fresh, T before, T drawn) {
    if (zone.drawn.data) return drawn != T(0) ? before : fresh;
    return zone.on() ? (T(1) - zone.share) * fresh + zone.share * before : fresh;
  }

  // The new h to the other blocks and to the layer above.
  RNNKERN_KERNEL void hand_over(Index s, const Place& at, T h) const {
    constexpr int last = kPhases - 1;
    loop_.operand(0, s + 1, at.j)[at.unit] =
        P::Element::round(loop_.times_factor(h, kFactor<last>, at));
    if (loop_.hands_on()) {
      const T handed = strand_.mask.data ? h * *loop_.field(kMask<last>, at) : h;
      loop_.handed(at.packed)[at.unit] = P::Element::round(handed);
    }
  }

  // What the phase saves, and the new state: to the caller, and where the row ends as its last.
  template <int N>
  RNNKERN_KERNEL void store(Index s, const Around& around, const Place& at) const {
    constexpr Range saves = saved_in<Cell>(N);
    if (strand_.saved || kPhases > 1) {
#pragma unroll
      for (int k = 0; k < saves.count; ++k)
        saved_row(at)[(saves.first + k) * units_ + at.unit] = *loop_.field(k, at);
    }
    if constexpr (N + 1 == kPhases) {
      const bool ends = at.i >= around.next.live();
      const T h = *loop_.field(kNewState<N>, at);
      strand_.y.at(schedule_.time_of(s, strand_.reverse), at.b)[at.unit] = h;
      if (ends) strand_.h[at.b * units_ + at.unit] = h;
      if constexpr (has_c<Cell>) {
        const T c = *loop_.field(kNewState<N> + 1, at);
        if (strand_.cells) strand_.cells[at.packed * units_ + at.unit] = c;
        if (ends || !strand_.cells) strand_.c[at.b * units_ + at.unit] = c;
        if (loop_.zoned() && loop_.strand().fresh_c)
          loop_.strand().fresh_c[at.packed * units_ + at.unit] = *loop_.field(kZoneC<N>, at);
      }
    }
  }

  const Block block_;
  const Arguments& problem_;
  const RecurrentPlan& plan_;
  const DeviceSchedule& schedule_;
  const Loop loop_;
  const ForwardStrand<T> strand_;  // by value: so that it is not read anew behind each flag
  const Functions<V, Cell> functions_;
  const int units_;
};

}  // namespace rnnkern::cuda
