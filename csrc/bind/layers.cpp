// SPDX-License-Identifier: Apache-2.0
// A layer in all its directions over whole sequences: forward, and back over what that kept.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "bind/gil.h"
#include "bind/modules.h"
#include "bind/weights.h"
#include "core/schedule.h"
#include "cpu/engine.h"

namespace rnnkern {
namespace {

// Of a call whose x has these two first axes.
ScheduleStorage make_schedule(const py::handle& x, const py::handle& lengths) {
  const HostArray array(x, "x");
  if (array.axes != 2 && array.axes != 3)
    array.refuse("have shape (T, B, I), or (T, B) for tokens, got " + array.shape_text());
  const Index steps = array.shape[0], batch = array.shape[1];
  if (steps < 1 || batch < 1)
    array.refuse("have at least one step and one row, got shape " + array.shape_text());
  if (lengths.is_none()) return {steps, batch, std::nullopt};
  return {steps, batch, copied(read<std::int64_t>(lengths, "lengths", {batch}), batch)};
}

// The tokens that x holds now, if it does hold tokens.
std::shared_ptr<const TokenStorage> read_tokens(const py::handle& x, const Schedule& schedule,
                                                Index inputs) {
  if (HostArray(x, "x").axes != 2) return nullptr;
  const auto view =
      sequence<const std::int64_t, HostArray>(x, "x", schedule.steps, schedule.batch, 0);
  return std::make_shared<const TokenStorage>(schedule, view, inputs);
}

Tokens view_of(const std::shared_ptr<const TokenStorage>& tokens) {
  return tokens ? tokens->tokens() : Tokens{};
}

// Of a pass over so many live steps.
double flops_of(const CellFacts& facts, Index live, Index inputs, Index units) {
  return 2.0 * static_cast<double>(live) * static_cast<double>(facts.gates) *
         static_cast<double>(units) * (static_cast<double>(inputs) + static_cast<double>(units));
}

template <class T>
Sequence<T> part(const Sequence<T>& whole, Index first) {
  return {whole.data ? whole.data + first : nullptr, whole.step, whole.row};
}

template <class T>
T* advanced(T* data, Index count) {
  return data ? data + count : nullptr;
}

// What backward needs of forward beside x and y.
template <class T>
struct KeptOf {
  struct Direction {
    py::object saved = py::none(), cells = py::none();
    std::optional<PackedWeights<T>> weights;
  };

  int cell;
  Compute compute;
  Index inputs, units;
  py::object schedule;
  std::shared_ptr<const TokenStorage> tokens;
  AlignedBytes states;  // h_0 (D, B, H), then c_0
  std::vector<Direction> directions;

  const CellFacts& facts() const { return cell_facts(cell); }
  const ScheduleStorage& storage() const { return built<ScheduleStorage>(schedule, "schedule"); }

  void backward(const py::object& given_x, const py::object& y, const py::object& dy,
                const py::object& dh, const py::object& dc, const py::object& dx,
                const py::sequence& gradients, const py::object& traces) const {
    const auto& storage = this->storage();
    const Schedule whole = storage.schedule(false);
    const Index batch = whole.batch, live = storage.live_rows(), rows = facts().gates * units;
    const auto count = static_cast<Index>(directions.size());
    const bool has_c = facts().cell_state;
    if (static_cast<Index>(gradients.size()) != count ||
        (!traces.is_none() && static_cast<Index>(py::len(traces)) != count)) {
      throw std::invalid_argument("gradients and state_gradients must be one for each direction");
    }
    if (!dx.is_none() && tokens) throw std::invalid_argument("dx must be None where x is tokens");
    Sequence<const T> x;
    if (!tokens) {
      x = sequence<const T, HostArray>(required(given_x, "x"), "x", whole.steps, batch, inputs);
    }
    const auto out =
        sequence<const T, HostArray>(required(y, "y"), "y", whole.steps, batch, count * units);
    const auto upstream = sequence<const T, HostArray>(dy, "dy", whole.steps, batch, count * units);
    const auto below = sequence<T, HostArray>(dx, "dx", whole.steps, batch, inputs);
    T* const dh_data = write<T>(required(dh, "dh"), "dh", {count, batch, units});
    T* const dc_data = has_c ? write<T>(required(dc, "dc"), "dc", {count, batch, units}) : nullptr;
    const T* const h_0 = reinterpret_cast<const T*>(states.get());
    const Index size = batch * units;
    std::vector<BackwardProblem<T>> problems;
    for (Index d = 0; d < count; ++d) {
      const auto& direction = directions[static_cast<std::size_t>(d)];
      const py::object own = gradients[static_cast<std::size_t>(d)];
      if (!py::isinstance<py::tuple>(own) || py::len(own) != 4)
        throw std::invalid_argument("gradients must be as many as the weights of a direction");
      const auto grads = py::reinterpret_borrow<py::tuple>(own);
      const py::object trace = traces.is_none() ? py::none() : py::object(traces[py::int_(d)]);
      problems.push_back(
          {.schedule = storage.schedule(d == 1),
           .inputs = inputs,
           .units = units,
           .x = x,
           .tokens = view_of(tokens),
           .h_0 = h_0 + d * size,
           .c_0 = has_c ? h_0 + (count + d) * size : nullptr,
           .y = part(out, d * units),
           .saved = read<T>(direction.saved, "saved", {live, facts().saved, units}),
           .cells = read<T>(direction.cells, "cells", {live, units}),
           .dy = part(upstream, d * units),
           .dh = dh_data + d * size,
           .dc = advanced(dc_data, d * size),
           .dx = below,
           .dw_ih = write<T>(required(grads[0], "dweight_ih"), "dweight_ih", {rows, inputs}),
           .dw_hh = write<T>(required(grads[1], "dweight_hh"), "dweight_hh", {rows, units}),
           .dbias = write<T>(grads[2], "dbias", {rows}),
           .dbias_hn = write<T>(grads[3], "dbias_hn", {units}),
           .state_gradients =
               write<T>(trace, "state_gradients",
                        {live, static_cast<Index>(facts().states.size()) + facts().gates, units})});
    }
    without_gil(2 * flops_of(facts(), live * count, inputs, units), [&] {
      for (std::size_t d = 0; d < problems.size(); ++d)
        rnnkern::backward(cell, problems[d], compute, *directions[d].weights);
    });
  }
};

// Its class in Python.
class Kept {
 public:
  template <class T>
  explicit Kept(KeptOf<T> kept) : kept_(std::move(kept)) {}
  Kept(Kept&&) = default;

  py::tuple saved() const {
    return of_directions([](const auto& direction) { return direction.saved; });
  }
  py::tuple cells() const {
    return of_directions([](const auto& direction) { return direction.cells; });
  }

  void backward(const py::object& x, const py::object& y, const py::object& dy,
                const py::object& dh, const py::object& dc, const py::object& dx,
                const py::sequence& gradients, const py::object& traces) const {
    std::visit([&](const auto& kept) { kept.backward(x, y, dy, dh, dc, dx, gradients, traces); },
               kept_);
  }

 private:
  template <class F>
  py::tuple of_directions(F f) const {
    return std::visit(
        [&](const auto& kept) {
          py::list list;
          for (const auto& direction : kept.directions) list.append(f(direction));
          return py::tuple(list);
        },
        kept_);
  }

  std::variant<KeptOf<float>, KeptOf<double>> kept_;
};

template <class T>
class LayerOf {
 public:
  LayerOf(int cell, Compute compute, std::vector<HeldWeights> weights)
      : cell_(cell), compute_(compute), weights_(std::move(weights)) {
    for (const auto& w : weights_) {
      w.template parameters<T>();  // all of one dtype
      if (w.inputs() != inputs() || w.units() != units())
        throw std::invalid_argument("weights must be of one size in both directions");
    }
    if constexpr (!std::is_same_v<T, float>) {
      if (compute != Compute::exact)
        throw std::invalid_argument("compute 'bfloat16' needs float32 weights, got float64");
    }
  }

  // The same, with panels of the weights as they are now.
  LayerOf packed(bool with_input) const {
    LayerOf twin(cell_, compute_, weights_);
    for (const auto& w : weights_) {
      twin.panels_.emplace_back(cell_, w.template parameters<T>(), Pass::forward, with_input,
                                compute_);
    }
    return twin;
  }

  py::object forward(const py::object& schedule, const py::object& x, const py::object& h,
                     const py::object& c, const py::object& y, bool keep) const {
    const auto& storage = built<ScheduleStorage>(schedule, "schedule");
    const Schedule whole = storage.schedule(false);
    const Index steps = whole.steps, batch = whole.batch, live = storage.live_rows();
    const auto count = static_cast<Index>(weights_.size());
    const bool has_c = facts().cell_state;
    const auto tokens = read_tokens(required(x, "x"), whole, inputs());
    Sequence<const T> dense;
    if (!tokens) dense = sequence<const T, HostArray>(x, "x", steps, batch, inputs());
    T* const h_data = write<T>(required(h, "h"), "h", {count, batch, units()});
    T* const c_data = has_c ? write<T>(required(c, "c"), "c", {count, batch, units()}) : nullptr;
    const auto out = sequence<T, HostArray>(required(y, "y"), "y", steps, batch, count * units());
    const Index size = batch * units();
    std::optional<KeptOf<T>> kept;
    if (keep) kept.emplace(keep_of(schedule, tokens, h_data, c_data, live));
    std::vector<ForwardProblem<T>> problems;
    for (Index d = 0; d < count; ++d) {
      const auto i = static_cast<std::size_t>(d);
      problems.push_back({.schedule = storage.schedule(d == 1),
                          .parameters = weights_[i].template parameters<T>(),
                          .x = dense,
                          .tokens = view_of(tokens),
                          .h = h_data + d * size,
                          .c = advanced(c_data, d * size),
                          .y = part(out, d * units()),
                          .saved = nullptr,
                          .cells = nullptr});
      if (!keep) continue;
      const auto& own = kept->directions[i];
      problems.back().saved = write<T>(own.saved, "saved", {live, facts().saved, units()});
      problems.back().cells = write<T>(own.cells, "cells", {live, units()});
    }
    without_gil(flops_of(facts(), live * count, inputs(), units()), [&] {
      for (Index b = 0; b < batch && storage.ragged(); ++b) {
        for (Index t = storage.length(b); t < steps; ++t)
          std::fill_n(out.at(t, b), count * units(), T(0));
      }
      for (std::size_t d = 0; d < problems.size(); ++d) {
        rnnkern::forward(cell_, problems[d], compute_, panels_.empty() ? nullptr : &panels_[d]);
        if (keep) {
          kept->directions[d].weights.emplace(cell_, problems[d].parameters, Pass::backward,
                                              !tokens, compute_);
        }
      }
    });
    if (!keep) return py::none();
    return py::cast(Kept(std::move(*kept)));
  }

 private:
  Index inputs() const { return weights_[0].inputs(); }
  Index units() const { return weights_[0].units(); }
  const CellFacts& facts() const { return cell_facts(cell_); }

  // With room for what forward keeps, and the initial states.
  KeptOf<T> keep_of(const py::object& schedule, std::shared_ptr<const TokenStorage> tokens,
                    const T* h, const T* c, Index live) const {
    const auto count = static_cast<Index>(weights_.size());
    const Index size =
        count * built<ScheduleStorage>(schedule, "schedule").schedule(false).batch * units();
    AlignedBytes states((c ? 2 : 1) * size * static_cast<Index>(sizeof(T)));
    T* const h_0 = reinterpret_cast<T*>(states.get());
    std::copy_n(h, size, h_0);
    if (c) std::copy_n(c, size, h_0 + size);
    std::vector<typename KeptOf<T>::Direction> directions(weights_.size());
    for (auto& direction : directions) {
      if (facts().saved > 0) direction.saved = new_array<T>({live, facts().saved, units()});
      if (c) direction.cells = new_array<T>({live, units()});
    }
    return {.cell = cell_,
            .compute = compute_,
            .inputs = inputs(),
            .units = units(),
            .schedule = schedule,
            .tokens = std::move(tokens),
            .states = std::move(states),
            .directions = std::move(directions)};
  }

  int cell_;
  Compute compute_;
  std::vector<HeldWeights> weights_;      // by direction
  std::vector<PackedWeights<T>> panels_;  // likewise, or none
};

// Its class in Python.
class Layer {
 public:
  Layer(const py::handle& given, const py::sequence& weights) : layer_(make(given, weights)) {}
  Layer(Layer&&) = default;

  Layer packed(bool with_input) const {
    return std::visit([&](const auto& layer) { return Layer(Any(layer.packed(with_input))); },
                      layer_);
  }

  py::object forward(const py::object& schedule, const py::object& x, const py::object& h,
                     const py::object& c, const py::object& y, bool keep) const {
    return std::visit([&](const auto& layer) { return layer.forward(schedule, x, h, c, y, keep); },
                      layer_);
  }

 private:
  using Any = std::variant<LayerOf<float>, LayerOf<double>>;

  explicit Layer(Any layer) : layer_(std::move(layer)) {}

  static Any make(const py::handle& given, const py::sequence& weights) {
    const LayerSpec spec = read_spec(given);
    if (weights.size() < 1 || weights.size() > 2) {
      throw std::invalid_argument("weights must be of one or two directions, got " +
                                  std::to_string(weights.size()));
    }
    std::vector<HeldWeights> held;
    for (const auto& w : weights) held.emplace_back(spec.facts(), w);
    const Compute compute = read_compute(spec.compute);
    if (held[0].type() == Type::float32) return LayerOf<float>(spec.cell, compute, std::move(held));
    return LayerOf<double>(spec.cell, compute, std::move(held));
  }

  Any layer_;
};

}  // namespace

void bind_layers(py::module_& m) {
  py::class_<ScheduleStorage>(m, "Schedule", "Which rows are alive at which step.")
      .def(py::init(&make_schedule), py::arg("x"), py::arg("lengths"),
           "Of x (T, B, ...) and lengths (B,) or None: one for all layers and passes of a call.")
      .def_property_readonly(
          "live",
          [](const py::handle& self) { return built<ScheduleStorage>(self, "self").live_rows(); },
          "Steps of all rows.");

  py::class_<Kept>(m, "Kept", "What Layer.forward() kept of one call.")
      .def_property_readonly(
          "saved", [](const py::handle& self) { return built<Kept>(self, "self").saved(); },
          "What each direction saved at every step (live steps, saved, H), or None.")
      .def_property_readonly(
          "cells", [](const py::handle& self) { return built<Kept>(self, "self").cells(); },
          "Every c_t of each direction (live steps, H), or None.")
      .def(
          "backward",
          [](const py::handle& self, const py::object& x, const py::object& y, const py::object& dy,
             const py::object& dh, const py::object& dc, const py::object& dx,
             const py::sequence& gradients, const py::object& state_gradients) {
            built<Kept>(self, "self").backward(x, y, dy, dh, dc, dx, gradients, state_gradients);
          },
          py::arg("x"), py::arg("y"), py::arg("dy"), py::arg("dh"), py::arg("dc"), py::arg("dx"),
          py::arg("gradients"), py::arg("state_gradients") = py::none(),
          "x and y are those of the call; tokens were copied. dh and dc (D, B, H) go in for the "
          "last state and come out for the first; dx and the "
          "gradients, for each direction (dweight_ih, dweight_hh, dbias, dbias_hn), are added to; "
          "state_gradients, for each direction (live steps, states + gates, H) in the packed order "
          "of saved, are written. dy None is zero.");

  py::class_<Layer>(m, "Layer", "One layer of a network in all its directions.")
      .def(py::init<const py::handle&, const py::sequence&>(), py::arg("spec"), py::arg("weights"),
           "weights: for each direction (weight_ih, weight_hh, bias, bias_hn), which are held. "
           "The sizes are theirs; spec says the cell and the compute.")
      .def(
          "packed",
          [](const py::handle& self, bool with_input) {
            return built<Layer>(self, "self").packed(with_input);
          },
          py::kw_only(), py::arg("with_input") = true,
          "A layer of these weights as they are now, packed for many calls: they must stay so. "
          "Without weight_ih where x will be tokens.")
      .def(
          "forward",
          [](const py::handle& self, const py::object& schedule, const py::object& x,
             const py::object& h, const py::object& c, const py::object& y,
             bool keep) { return built<Layer>(self, "self").forward(schedule, x, h, c, y, keep); },
          py::arg("schedule"), py::arg("x"), py::arg("h"), py::arg("c"), py::arg("y"),
          py::arg("keep"),
          "x (T, B, I) or tokens (T, B). h and c (D, B, H) go in as the initial states and come "
          "out as the last ones; y (T, B, D·H) is written. Gives with keep what a backward pass "
          "needs beside x and y.");
}

}  // namespace rnnkern
