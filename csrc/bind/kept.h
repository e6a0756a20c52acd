// SPDX-License-Identifier: Apache-2.0
// What a network's forward pass keeps, and the backward pass over it.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "bind/callers.h"
#include "bind/gil.h"
#include "bind/merging.h"
#include "bind/row_marks.h"
#include "bind/stretches.h"
#include "bind/weights.h"
#include "core/schedule.h"
#include "cpu/engine.h"

namespace rnnkern {

inline Tokens view_of(const std::shared_ptr<const TokenStorage>& tokens) {
  return tokens ? tokens->tokens() : Tokens{};
}

// One direction's part of a (T, B, D·P) array.
template <class T>
Sequence<T> part(const Sequence<T>& whole, Index first) {
  return {whole.data ? whole.data + first : nullptr, whole.step, whole.row};
}

template <class T>
T* advanced(T* data, Index count) {
  return data ? data + count : nullptr;
}

template <class T>
Sequence<const T> constant(const Sequence<T>& sequence) {
  return {sequence.data, sequence.step, sequence.row};
}

// What the layers of a network have in common.
struct NetworkSizes {
  int cell;
  Compute compute;
  Index inputs, units, outputs, layers, directions;
  bool reverse;  // of one direction: whether it is the second one
  Merge merge;
  bool batch_first;  // how callers have x and y
  double zoneout = 0, cell_zoneout = 0;

  const CellFacts& facts() const { return cell_facts(cell); }
  // Whether y is another array than what the directions give, side by side.
  bool merges() const { return directions > 1 && merge != Merge::concat; }
  Index unmerged() const { return directions * outputs; }             // of the directions
  Index features() const { return merges() ? outputs : unmerged(); }  // of y
  bool backwards(Index direction) const { return reverse || direction == 1; }
  Index inputs_of(Index layer) const { return layer == 0 ? inputs : features(); }
  double flops(Index live) const {  // of a pass forward; those of every dtype are the same
    double sum = 0;
    for (Index k = 0; k < layers; ++k)
      sum += work_of<float>(cell, 1, 1, static_cast<double>(live), inputs_of(k), units, outputs,
                            compute)
                 .total_flops;
    return static_cast<double>(directions) * sum;
  }
};

// (T, B, D·P) memory of our own, which a layer hands to the next.
template <class T>
class Handed {
 public:
  Handed() = default;
  Handed(const ScheduleStorage& rows, Index features)
      : size_(rows.steps() * rows.batch() * features),
        step_(rows.batch() * features),
        row_(features),
        bytes_(size_ * static_cast<Index>(sizeof(T))) {}

  Sequence<T> view() const { return {reinterpret_cast<T*>(bytes_.get()), step_, row_}; }
  void clear() const { std::fill_n(view().data, size_, T(0)); }
  // Of another one, element by element, and of factors like it.
  void set_product(const Handed& other, const T* factors) const {
    std::transform(other.view().data, other.view().data + size_, factors, view().data,
                   [](T a, T b) { return a * b; });
  }

 private:
  Index size_ = 0, step_ = 0, row_ = 0;
  AlignedBytes bytes_;
};

// What backward needs of forward beside x and the last layer's y.
template <class T>
struct KeptOf {
  struct Direction {
    py::object saved = py::none(), cells = py::none(), inner = py::none();
    py::object fresh_c = py::none(), drawn_h = py::none(), drawn_c = py::none();
    std::shared_ptr<const PackedWeights<T>> weights;
    AlignedBytes norm_bytes{};
    NormKept<T> norm{};  // in there

    // Room for so many rows of parts from x and of recurrent ones.
    void keep_norm(const CellFacts& facts, Index inputs, Index live, Index units) {
      const auto carve = [&](Arena arena) {
        const Index row = facts.gates * units;
        norm = {arena.take<T>(inputs * row), arena.take<T>(live * row),
                arena.take<T>(inputs * kNormScales), arena.take<T>(live * kNormScales)};
        return arena.used();
      };
      norm_bytes = AlignedBytes(carve(Arena(nullptr)));
      carve(Arena(norm_bytes.get()));
    }
  };
  // Of every layer but the last: y, and what the next one got where there are masks.
  struct Between {
    Handed<T> y, masked;
    py::object mask = py::none();

    const Handed<T>& below() const { return mask.is_none() ? y : masked; }
    const T* factors(const ScheduleStorage& rows, Index features) const {
      return read<T>(mask, "mask", {rows.steps(), rows.batch(), features});
    }
  };
  // ∂L/∂(one layer's parameters in one direction).
  struct Gradient {
    T *ih, *hh, *bias, *bias_hn, *unit_weights, *hr;
    NormParameters<T> norm{};
  };

  NetworkSizes sizes;
  std::vector<CellOptions<T>> options;  // one a direction, or none
  ScheduleStorage schedule;
  std::shared_ptr<const TokenStorage> tokens;
  py::object h_factors;               // (L·D, B, P), or None
  AlignedBytes states;                // h_0 (L·D, state rows, P), then c_0 (L·D, state rows, H)
  std::vector<Direction> directions;  // by layer
  std::vector<Between> between;
  std::vector<Handed<T>> both;  // of every layer what its directions gave, where they are merged
  std::vector<std::array<bool, 3>> biases;  // bias, bias_hn and shift_c: whether there are any

  Index count() const { return sizes.layers * sizes.directions; }
  Sequence<const T> x_of(const py::handle& x) const {
    if (tokens) return {};
    return sequence<const T, HostArray>(required(x, "x"), "x", schedule.steps(), schedule.batch(),
                                        sizes.inputs);
  }
  Sequence<const T> out_of(const py::handle& array, const char* name) const {
    return sequence<const T, HostArray>(array, name, schedule.steps(), schedule.batch(),
                                        sizes.features());
  }

  void backward(const py::object& given_x, const py::object& y, const py::object& dy,
                const py::object& dh, const py::object& dc, const py::object& dx,
                const py::sequence& gradients, const py::object& traces) const {
    const Index live = schedule.live_rows(), rows = sizes.facts().gates * sizes.units;
    // A sequence may be another each time it is asked.
    const py::tuple arrays(gradients), own_traces(traces.is_none() ? py::tuple() : traces);
    const auto wanted = static_cast<std::size_t>(count());
    if (arrays.size() != wanted || (!traces.is_none() && own_traces.size() != wanted)) {
      throw std::invalid_argument(
          "gradients and state_gradients must be one for each layer and direction");
    }
    if (!dx.is_none() && tokens) throw std::invalid_argument("dx must be None where x is tokens");
    const auto x = x_of(given_x);
    const auto out = out_of(required(y, "y"), "y");
    const auto upstream = out_of(dy, "dy");
    const auto below =
        sequence<T, HostArray>(dx, "dx", schedule.steps(), schedule.batch(), sizes.inputs);
    T* const dh_data =
        write<T>(required(dh, "dh"), "dh", {count(), schedule.state_rows(), sizes.outputs});
    T* const dc_data =
        sizes.facts().cell_state
            ? write<T>(required(dc, "dc"), "dc", {count(), schedule.state_rows(), sizes.units})
            : nullptr;
    std::vector<Gradient> grads;
    std::vector<T*> told;
    for (Index i = 0; i < count(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const Index inputs = sizes.inputs_of(i / sizes.directions);
      const auto& facts = sizes.facts();
      const py::object own = arrays[at];
      if (!py::isinstance<py::tuple>(own) || py::len(own) < 4 || py::len(own) > 10)
        throw std::invalid_argument("gradients must be as many as the weights of a direction");
      const auto of = py::reinterpret_borrow<py::tuple>(own);
      grads.push_back(
          {.ih = write<T>(required(of[0], "dweight_ih"), "dweight_ih", {rows, inputs}),
           .hh = sizes.facts().recurrent_product
                     ? write<T>(required(of[1], "dweight_hh"), "dweight_hh", {rows, sizes.outputs})
                     : nullptr,
           .bias = write<T>(of[2], "dbias", {rows}),
           .bias_hn = write<T>(of[3], "dbias_hn", {sizes.units}),
           .unit_weights = facts.unit_weights > 0
                               ? write<T>(part_of(of, 4), "dunit_weights",
                                          {Index{facts.unit_weights}, sizes.units})
                               : nullptr,
           .hr = sizes.outputs != sizes.units ? write<T>(required(part_of(of, 5), "dweight_hr"),
                                                         "dweight_hr", {sizes.outputs, sizes.units})
                                              : nullptr});
      if (facts.layer_norm) {
        auto& norm = grads.back().norm;
        norm.gain_ih = write<T>(required(part_of(of, 6), "dgain_ih"), "dgain_ih", {rows});
        norm.gain_hh = write<T>(required(part_of(of, 7), "dgain_hh"), "dgain_hh", {rows});
        if (facts.cell_state) {
          norm.gain_c = write<T>(required(part_of(of, 8), "dgain_c"), "dgain_c", {sizes.units});
          norm.shift_c = write<T>(part_of(of, 9), "dshift_c", {sizes.units});
        }
      }
      const py::object trace = traces.is_none() ? py::none() : py::object(own_traces[at]);
      const Index numbers = static_cast<Index>(facts.states.size()) + facts.gates;
      told.push_back(
          sizes.outputs == sizes.units
              ? write<T>(trace, "state_gradients", {live, numbers, sizes.units})
              : write<T>(trace, "state_gradients", {live, numbers * sizes.units + sizes.outputs}));
    }
    run(x, out, upstream, dh_data, dc_data, below, grads, told);
  }

  // The same for what a caller gives, in new arrays: (dx, dstate, gradients of what parameters there
  // are); None where dy or dstate would have to be converted or rows begin anew with states of their own,
  // and for dx without `with_dx`.
  py::object direct(const py::object& given_x, const py::object& y, const py::object& dy,
                    const py::object& dstate, bool unbatched, bool with_dx) const {
    if (unbatched && schedule.batch() > 1)
      throw std::invalid_argument("unbatched must be False where there are several rows");
    if (schedule.state_rows() != schedule.batch()) return py::none();
    const StateShape<T> shape{.states = count(),
                              .batch = schedule.batch(),
                              .units = sizes.units,
                              .outputs = sizes.outputs,
                              .has_c = sizes.facts().cell_state,
                              .unbatched = unbatched};
    const CallersAxes axes{schedule.steps(), schedule.batch(), sizes.batch_first, unbatched};
    py::handle parts[2];
    if (!dy.is_none() && !axes.plain<T>(dy, sizes.features())) return py::none();
    if (!shape.taken(dstate, parts)) return py::none();
    const auto x = x_of(given_x);
    const auto out = out_of(required(y, "y"), "y");
    T *dh = nullptr, *dc = nullptr;
    py::object state = shape.copy(parts, dh, dc);
    py::object dx = py::none();
    Sequence<T> below;
    if (with_dx && !tokens) {
      dx = axes.template empty<T>(sizes.inputs);
      below = axes.template view<T>(dx, sizes.inputs);
      std::fill_n(below.data, schedule.steps() * schedule.batch() * sizes.inputs, T(0));
    }
    const Index rows = sizes.facts().gates * sizes.units;
    py::list arrays;
    const auto zeros = [&](std::initializer_list<Index> shape) {
      const py::object array = new_zeros<T>(shape);
      arrays.append(array);
      return static_cast<T*>(data_of(array));
    };
    std::vector<Gradient> grads;
    for (Index i = 0; i < count(); ++i) {
      const auto [bias, bias_hn, shift_c] = biases[static_cast<std::size_t>(i)];
      const auto& facts = sizes.facts();
      Gradient own{};
      own.ih = zeros({rows, sizes.inputs_of(i / sizes.directions)});
      if (sizes.facts().recurrent_product) own.hh = zeros({rows, sizes.outputs});
      if (bias) own.bias = zeros({rows});
      if (bias_hn) own.bias_hn = zeros({sizes.units});
      if (const Index count = sizes.facts().unit_weights; count > 0)
        own.unit_weights = zeros({count, sizes.units});
      if (sizes.outputs != sizes.units) own.hr = zeros({sizes.outputs, sizes.units});
      if (facts.layer_norm) own.norm.gain_ih = zeros({rows}), own.norm.gain_hh = zeros({rows});
      if (facts.norms_c()) own.norm.gain_c = zeros({sizes.units});
      if (shift_c) own.norm.shift_c = zeros({sizes.units});
      grads.push_back(own);
    }
    run(x, out, dy.is_none() ? Sequence<const T>{} : axes.view<const T>(dy, sizes.features()), dh,
        dc, below, grads, std::vector<T*>(grads.size()));
    return py::make_tuple(dx, state, arrays);
  }

 private:
  void run(Sequence<const T> x, Sequence<const T> y, Sequence<const T> dy, T* dh, T* dc,
           Sequence<T> dx, const std::vector<Gradient>& grads,
           const std::vector<T*>& traces) const {
    const Index live = schedule.live_rows(), units = sizes.units, outputs = sizes.outputs;
    const Index h_size = schedule.state_rows() * outputs;
    const Index c_size = schedule.state_rows() * units;
    const auto& facts = sizes.facts();
    const T* const h_0 = reinterpret_cast<const T*>(states.get());
    const auto zone = [&](const py::object& drawn, const char* name, Index features) {
      return Zoneout<T>{.drawn =
                            read_marks(drawn, name, schedule.steps(), schedule.batch(), features)};
    };
    std::vector<BackwardProblem<T>> problems;
    for (Index k = 0; k < sizes.layers; ++k) {
      const auto layer = static_cast<std::size_t>(k);
      const bool last = k + 1 == sizes.layers;
      for (Index d = 0; d < sizes.directions; ++d) {
        const Index i = k * sizes.directions + d;
        const auto at = static_cast<std::size_t>(i);
        const auto below = k == 0 ? x : constant(between[layer - 1].below().view());
        const auto out = sizes.merges() ? constant(both[layer].view())
                         : last         ? y
                                        : constant(between[layer].y.view());
        problems.push_back(
            {.schedule = schedule.schedule(sizes.backwards(d)),
             .inputs = sizes.inputs_of(k),
             .units = units,
             .outputs = outputs,
             .x = below,
             .tokens = k == 0 ? view_of(tokens) : Tokens{},
             .h_0 = h_0 + i * h_size,
             .c_0 = dc ? h_0 + count() * h_size + i * c_size : nullptr,
             .y = part(out, d * outputs),
             .saved = read<T>(directions[at].saved, "saved", {live, facts.saved, units}),
             .cells = read<T>(directions[at].cells, "cells", {live, units}),
             .dy = {},
             .dh = dh + i * h_size,
             .dc = advanced(dc, i * c_size),
             .dx = k == 0 ? dx : Sequence<T>{},
             .dw_ih = grads[at].ih,
             .dw_hh = grads[at].hh,
             .dbias = grads[at].bias,
             .dbias_hn = grads[at].bias_hn,
             .dunit_weights = grads[at].unit_weights,
             .state_gradients = traces[at],
             .options = options.empty() ? nullptr : &options[static_cast<std::size_t>(d)],
             .inner = read<T>(directions[at].inner, "inner", {live, units}),
             .dw_hr = grads[at].hr,
             .norm = {directions[at].norm.ih, directions[at].norm.hh, directions[at].norm.scales_ih,
                      directions[at].norm.scales_hh},
             .dnorm = grads[at].norm,
             .zone_h = zone(directions[at].drawn_h, "zoneout_h", outputs),
             .zone_c = zone(directions[at].drawn_c, "zoneout_c", units),
             .fresh_c = read<T>(directions[at].fresh_c, "fresh_c", {live, units})});
      }
    }
    if (const T* const own =
            read<T>(h_factors, "h_factors", {count(), schedule.batch(), outputs})) {
      for (Index i = 0; i < count(); ++i)
        problems[static_cast<std::size_t>(i)].h_factors = own + i * schedule.batch() * outputs;
    }
    std::vector<const T*> factors;
    for (const auto& layer : between) factors.push_back(layer.factors(schedule, sizes.features()));
    without_gil(2 * sizes.flops(live), [&] { run_layers(dy, problems, factors); });
  }

  void run_layers(Sequence<const T> dy, std::vector<BackwardProblem<T>>& problems,
                  const std::vector<const T*>& factors) const {
    Handed<T> above, own;  // ∂L/∂x of a layer, and that of the one above
    Handed<T> split;       // ∂L/∂(what two directions gave) of a layer that merges them
    if (sizes.merges()) split = Handed<T>(schedule, sizes.unmerged());
    for (Index k = sizes.layers; k-- > 0;) {
      if (k + 1 < sizes.layers) dy = constant(above.view());
      if (sizes.merges() && dy.data) {
        const auto given = constant(both[static_cast<std::size_t>(k)].view());
        split_gradient(sizes.merge, schedule, given, sizes.outputs, dy, split.view());
        dy = constant(split.view());
      }
      if (k > 0) {
        own = Handed<T>(schedule, sizes.features());
        own.clear();
      }
      for (Index d = 0; d < sizes.directions; ++d) {
        const auto i = static_cast<std::size_t>(k * sizes.directions + d);
        auto& problem = problems[i];
        problem.dy = part(dy, d * sizes.outputs);
        if (k > 0) problem.dx = own.view();
        run_stretches(sizes.facts(), schedule, problem, [&](const BackwardProblem<T>& part) {
          rnnkern::backward(sizes.cell, part, sizes.compute, *directions[i].weights);
        });
      }
      if (k == 0) break;
      if (const T* const mask = factors[static_cast<std::size_t>(k - 1)])
        own.set_product(own, mask);
      std::swap(above, own);
    }
  }
};

// Its class in Python.
class Kept {
 public:
  template <class T>
  explicit Kept(KeptOf<T> kept) : kept_(std::move(kept)) {}
  Kept(Kept&&) = default;

  // f of what was kept, which has the weights' dtype.
  template <class F>
  auto visit(F f) const {
    return std::visit(f, kept_);
  }

  py::tuple saved() const {
    return of_directions([](const auto& direction) { return direction.saved; });
  }
  py::tuple cells() const {
    return of_directions([](const auto& direction) { return direction.cells; });
  }
  py::tuple fresh_c() const {
    return of_directions([](const auto& direction) { return direction.fresh_c; });
  }
  py::tuple between() const {
    return visit([]<class T>(const KeptOf<T>& kept) {
      const ScheduleStorage& rows = kept.schedule;
      const Index outputs = kept.sizes.unmerged(), size = rows.steps() * rows.batch() * outputs;
      py::list list;
      const auto add = [&](const Handed<T>& given) {
        py::object copy = new_array<T>({rows.steps(), rows.batch(), outputs});
        std::copy_n(given.view().data, size, static_cast<T*>(data_of(copy)));
        list.append(copy);
      };
      if (kept.sizes.merges()) {
        for (const auto& layer : kept.both) add(layer);
      } else {
        for (const auto& layer : kept.between) add(layer.y);
      }
      return py::tuple(list);
    });
  }

  py::object places() const {
    return visit([](const auto& kept) {
      const ScheduleStorage& rows = kept.schedule;
      py::object array = new_array<std::int64_t>({rows.live_rows()});
      auto* out = static_cast<std::int64_t*>(data_of(array));
      for_places(rows, [&](Place place) { *out++ = place.t * rows.batch() + place.b; });
      return array;
    });
  }

 private:
  template <class F>
  py::tuple of_directions(F f) const {
    return visit([&](const auto& kept) {
      py::list list;
      for (const auto& direction : kept.directions) list.append(f(direction));
      return py::tuple(list);
    });
  }

  std::variant<KeptOf<float>, KeptOf<double>> kept_;
};

}  // namespace rnnkern
