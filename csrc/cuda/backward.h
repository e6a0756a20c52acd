// The backward time loop, one launch for a run of steps, from its end: cpu/backward.h's loop with the
// exchange of recurrence.h. What the blocks exchange is the gate gradients; a slice of the weights is
// its units' columns of W_hh. The gradients of weights and inputs follow as products over the run.
#pragma once

#include <utility>

#include "cuda/recurrence.h"

namespace rnnkern::cuda {

template <class Cell, class P>
class BackwardKernel {
  using V = Scalar<typename P::Element::Sum>;
  using T = typename V::value;
  using Loop = Recurrence<P, BackwardPass<T>>;
  static constexpr int kPhases = phase_count<Cell>;

 public:
  using Arguments = RecurrentProblem<BackwardPass<T>>;

  RNNKERN_KERNEL static void run(const Block& block, const Arguments& problem) {
    BackwardKernel(block, problem).run();
  }

 private:
  // One unit of one row of the batch in one step.
  struct Place {
    int e;        // of the tile
    int n, m;     // row and unit within the tile
    int j, unit;  // group row, unit of the layer
    Index b, i;   // batch row, its place in the sorted order
    Index packed;
    bool live;  // or else this row's first step was the one after
  };

  RNNKERN_KERNEL BackwardKernel(const Block& block, const Arguments& problem)
      : block_(block),
        problem_(problem),
        plan_(problem.plan),
        schedule_(problem.schedule),
        loop_(block, problem),
        pass_(loop_.pass()),
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

  RNNKERN_KERNEL Index live(Index s) const { return schedule_.live(s, pass_.reverse); }

  // Phase 0 multiplies what step s + 1 left, later ones what phase 0 of this step has.
  template <int Phase_>
  RNNKERN_KERNEL void run_phase(Index s) const {
    const Index now = live(s), after = live(s + 1);
    const int rows = loop_.share(Phase_ == 0 && after > now ? after : now);
    bool waited = false;
    for (int local = 0; local < loop_.own_slices(); ++local) {
      for (int first = 0; first < rows; first += plan_.tile_rows) {
        const int count = rows - first < plan_.tile_rows ? rows - first : plan_.tile_rows;
        block_.each([&](int thread) {
          each_place(s, local, first, count, thread,
                     [&](const Place& at) { prefetch<Phase_>(s, at); });
        });
        if (!waited) loop_.await_group(phases_before(s, Phase_));
        waited = true;
        loop_.multiply(Phase_, local, Phase_ == 0 ? s + 1 : s, first, count);
        block_.each([&](int thread) {
          each_place(s, local, first, count, thread,
                     [&](const Place& at) { apply<Phase_>(s, at); });
        });
      }
    }
    loop_.publish_phase(phases_before(s, Phase_) + 1);
  }

  template <class Visit>
  RNNKERN_KERNEL void each_place(Index s, int local, int first, int count, int thread,
                                 Visit visit) const {
    const Index now = live(s);
    const Index offset = s < 0 ? 0 : schedule_.offset[schedule_.time_of(s, pass_.reverse)];
    for (int e = thread; e < count * plan_.units; e += kThreads) {
      const int n = e / plan_.units, m = e % plan_.units;
      const int j = first + n, unit = loop_.slice(local) * plan_.units + m;
      const Index i = loop_.row(j);
      if (unit < units_) visit(Place{e, n, m, j, unit, schedule_.order[i], i, offset + i, i < now});
    }
  }

  RNNKERN_KERNEL T* field(int index, const Place& at) const {
    return loop_.template field<T>(index, at.e);
  }

  // The order of the fields.
  enum { kDh, kPreviousH, kH, kDy, kDc, kPreviousC, kC, kSaved };

  template <int Phase_>
  RNNKERN_KERNEL void prefetch(Index s, const Place& at) const {
    const Index state = at.b * units_ + at.unit;
    block_.copy(field(kDh, at), pass_.dh + state);
    if (!at.live) return;
    const Index t = schedule_.time_of(s, pass_.reverse);
    const Index before = schedule_.time_of(s - 1, pass_.reverse);
    const bool first = at.i >= live(s - 1);
    block_.copy(field(kPreviousH, at),
                first ? pass_.h_0 + state : pass_.y.at(before, at.b) + at.unit);
    block_.copy(field(kH, at), pass_.y.at(t, at.b) + at.unit);
    for (int k = 0; k < Cell::saved; ++k) {
      block_.copy(field(kSaved + k, at),
                  pass_.saved + (at.packed * Cell::saved + k) * units_ + at.unit);
    }
    if (Phase_ == 0 && pass_.dy.data) block_.copy(field(kDy, at), pass_.dy.at(t, at.b) + at.unit);
    if constexpr (Cell::cell_state) {
      block_.copy(field(kDc, at), pass_.dc + state);
      block_.copy(field(kPreviousC, at),
                  first ? pass_.c_0 + state
                        : pass_.cells + (schedule_.offset[before] + at.i) * units_ + at.unit);
      block_.copy(field(kC, at), pass_.cells + at.packed * units_ + at.unit);
    }
  }

  template <int Phase_>
  RNNKERN_KERNEL void apply(Index s, const Place& at) const {
    const Index state = at.b * units_ + at.unit;
    const V product(loop_.sum(Phase_, at.n, at.m)), dh(*field(kDh, at));
    if (!at.live) {
      pass_.dh[state] = (dh + product).v;
      return;
    }
    BackwardStep<V, Cell> step;
#pragma unroll
    for (int k = 0; k < Cell::saved; ++k) step.saved[k] = V(*field(kSaved + k, at));
    step.h_previous = V(*field(kPreviousH, at));
    step.h = V(*field(kH, at));
    if constexpr (Cell::cell_state) {
      step.dc = V(*field(kDc, at));
      step.c_previous = V(*field(kPreviousC, at));
      step.c = V(*field(kC, at));
    }
    if constexpr (Phase_ == 0) {
      step.dh = product + dh;
      if (pass_.dy.data) step.dh = step.dh + V(*field(kDy, at));
    } else {
      step.dh = product;
      step.direct = dh;
    }

    Cell::backward(Phase<Phase_>{}, step);

    pass_.dh[state] = step.direct.v;
    if constexpr (Cell::cell_state) pass_.dc[state] = step.dc.v;
    constexpr Range written = Cell::writes[Phase_];
    T* delta = pass_.delta + (at.packed - loop_.first_row()) * Cell::deltas * units_ + at.unit;
#pragma unroll
    for (int d = written.first; d < written.first + written.count; ++d)
      delta[d * units_] = step.delta[d].v;
    exchange<Phase_>(s, at, step, std::make_integer_sequence<int, Cell::gates>());
  }

  // The gates' recurrent gradients that this phase knows, to the phases that multiply them.
  template <int Phase_, int... Gate>
  RNNKERN_KERNEL void exchange(Index s, const Place& at, const BackwardStep<V, Cell>& step,
                               std::integer_sequence<int, Gate...>) const {
    (exchange_gate<Phase_, Gate>(s, at, step), ...);
  }
  template <int Phase_, int Gate>
  RNNKERN_KERNEL void exchange_gate(Index s, const Place& at,
                                    const BackwardStep<V, Cell>& step) const {
    constexpr Range written = Cell::writes[Phase_];
    constexpr int delta = Cell::state_delta[Gate];
    constexpr int reader = kPhases > 1 && Gate >= Cell::phases[kPhases - 1].first ? kPhases - 1 : 0;
    constexpr int place = Gate - Cell::phases[reader].first;
    if constexpr (delta >= written.first && delta < written.first + written.count) {
      loop_.operand(reader, s, at.j)[place * units_ + at.unit] =
          P::Element::round(step.delta[delta].v);
    }
  }

  const Block& block_;
  const Arguments& problem_;
  const RecurrentPlan& plan_;
  const DeviceSchedule& schedule_;
  const Loop loop_;
  const BackwardPass<T>& pass_;
  const int units_;
};

}  // namespace rnnkern::cuda
