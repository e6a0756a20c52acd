// SPDX-License-Identifier: Apache-2.0
// Layers upon each other, in all their directions, over whole sequences.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "bind/kept.h"
#include "bind/modules.h"

namespace rnnkern {
namespace {

template <class T>
class NetworkOf {
 public:
  NetworkOf(NetworkSizes sizes, std::vector<CellOptions<T>> options,
            std::vector<HeldWeights> weights)
      : sizes_(sizes), options_(std::move(options)), weights_(std::move(weights)) {
    for (Index i = 0; i < count(); ++i) {
      const auto& w = weights_[static_cast<std::size_t>(i)];
      const auto own = w.template parameters<T>();  // all of one dtype
      if (w.inputs() != sizes_.inputs_of(i / sizes_.directions) || w.units() != sizes_.units ||
          w.outputs() != sizes_.outputs) {
        throw std::invalid_argument(
            "weights must fit those of the layer below, and be of one size in both directions");
      }
      biases_.push_back({own.bias != nullptr, own.bias_hn != nullptr, own.norm.shift_c != nullptr});
    }
    if constexpr (!std::is_same_v<T, float>) {
      if (sizes_.compute != Compute::exact)
        throw std::invalid_argument(
            "compute 'bfloat16' or 'int8' needs float32 weights, got float64");
    }
  }

  // The same, with panels of the weights as they are now; `with_backward` also for the way back, which
  // all that calls keep then shares.
  NetworkOf packed(bool with_input, bool with_backward) const {
    NetworkOf twin(sizes_, options_, weights_);
    for (Index i = 0; i < count(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const bool whole = with_input || i >= sizes_.directions;
      twin.panels_.emplace_back(sizes_.cell, weights_[at].template parameters<T>(), Pass::forward,
                                whole, sizes_.compute);
      if (with_backward)
        twin.backward_panels_.push_back(
            backward_panels(weights_[at].template parameters<T>(), whole));
    }
    return twin;
  }

  py::object forward(const py::object& x, const py::object& lengths, const py::object& h,
                     const py::object& c, const py::object& y, const py::sequence& masks, bool keep,
                     const py::object& resets, const py::object& mask, bool states_anew,
                     const py::object& h_factors, const py::sequence& zoneout_h,
                     const py::sequence& zoneout_c) const {
    const HostArray array(required(x, "x"), "x");
    const bool tokens = array.axes == 2;
    if (!tokens && array.axes != 3)
      array.refuse("have shape (T, B, I), or (T, B) for tokens, got " + array.shape_text());
    const Index steps = array.shape[0], batch = array.shape[1];
    if (steps < 1 || batch < 1)
      array.refuse("have at least one step and one row, got shape " + array.shape_text());
    const RowMarks marks{.resets = read_marks(resets, "resets", steps, batch),
                         .mask = read_marks(mask, "mask", steps, batch),
                         .states_anew = states_anew};
    Given given{.schedule = {steps, batch, read_lengths(lengths, batch), marks}};
    if (tokens) {
      given.set_tokens(sequence<const std::int64_t, HostArray>(x, "x", steps, batch, 0),
                       sizes_.inputs);
    } else {
      given.x = sequence<const T, HostArray>(x, "x", steps, batch, sizes_.inputs);
    }
    const Index states = given.schedule.state_rows();
    given.h = write<T>(required(h, "h"), "h", {count(), states, sizes_.outputs});
    if (has_c()) given.c = write<T>(required(c, "c"), "c", {count(), states, sizes_.units});
    given.y = sequence<T, HostArray>(required(y, "y"), "y", steps, batch, sizes_.features());
    given.masks = read_each(masks, "masks", sizes_.layers - 1, "layer but the last", false);
    given.h_factors = h_factors;
    constexpr auto kWay = "layer and direction";
    given.drawn_h = read_each(zoneout_h, "zoneout_h", count(), kWay, keep && sizes_.zoneout > 0);
    given.drawn_c =
        read_each(zoneout_c, "zoneout_c", count(), kWay, keep && sizes_.cell_zoneout > 0);
    return run(std::move(given), keep);
  }

  py::object direct(const py::object& x, const py::object& state, const py::object& lengths,
                    bool keep) const {
    const bool needs_draws = keep && (sizes_.zoneout > 0 || sizes_.cell_zoneout > 0);
    if (needs_draws || !py::isinstance<py::array>(x)) return py::none();
    const auto& array = *py::detail::array_proxy(x.ptr());
    const bool tokens = array.descr != native_dtype<T>();
    const int inner = tokens ? 0 : 1;
    const bool unbatched = array.nd == 1 + inner;
    if (!unbatched && array.nd != 2 + inner) return py::none();
    const bool swapped = sizes_.batch_first && !unbatched;
    const Index batch = unbatched ? 1 : array.dimensions[swapped ? 0 : 1];
    const CallersAxes axes{array.dimensions[swapped ? 1 : 0], batch, sizes_.batch_first, unbatched};
    const StateShape<T> shape{.states = count(),
                              .batch = batch,
                              .units = sizes_.units,
                              .outputs = sizes_.outputs,
                              .has_c = has_c(),
                              .unbatched = unbatched};
    py::handle parts[2];
    if (axes.steps < 1 || batch < 1 || !shape.taken(state, parts) ||
        !(tokens ? plain<std::int64_t>(x) : axes.template plain<T>(x, sizes_.inputs)) ||
        !(lengths.is_none() || plain<std::int64_t>(lengths, {batch})))
      return py::none();
    auto rows = read_lengths(lengths, batch);
    if (rows && wrong_length(*rows, axes.steps) >= 0) return py::none();
    Given given{.schedule = {axes.steps, batch, std::move(rows)}};
    if (tokens) {
      given.set_tokens(axes.template view<const std::int64_t>(x, 1), sizes_.inputs);
    } else {
      given.x = axes.template view<const T>(x, sizes_.inputs);
    }
    py::object last = shape.copy(parts, given.h, given.c);
    py::object y = axes.template empty<T>(sizes_.features());
    given.y = axes.template view<T>(y, sizes_.features());
    py::object kept = run(std::move(given), keep);
    if (keep) return py::make_tuple(y, last, kept);
    return py::make_tuple(y, last);
  }

 private:
  // What a call gets: x or tokens, and what it writes.
  struct Given {
    ScheduleStorage schedule;
    Sequence<const T> x{};
    std::shared_ptr<const TokenStorage> tokens{};
    T *h = nullptr, *c = nullptr;  // (L·D, state rows, P) and (L·D, state rows, H), in place
    Sequence<T> y{};
    std::vector<py::object> masks{};
    py::object h_factors = py::none();             // (L·D, B, P)
    std::vector<py::object> drawn_h{}, drawn_c{};  // by layer and direction, or none

    void set_tokens(Sequence<const std::int64_t> given, Index vocabulary) {
      tokens = std::make_shared<const TokenStorage>(schedule, given, vocabulary);
    }
  };
  using Between = typename KeptOf<T>::Between;

  Index count() const { return sizes_.layers * sizes_.directions; }
  bool has_c() const { return sizes_.facts().cell_state; }

  // None, or with `keep` what a backward pass needs.
  py::object run(Given given, bool keep) const {
    if (keep && sizes_.compute == Compute::int8)
      throw std::invalid_argument("compute 'int8' is for inference alone");
    const ScheduleStorage& rows = given.schedule;
    const Index live = rows.live_rows(), units = sizes_.units, outputs = sizes_.outputs;
    const Index h_size = rows.state_rows() * outputs, c_size = rows.state_rows() * units;
    std::vector<Between> between(static_cast<std::size_t>(sizes_.layers - 1));
    std::vector<const T*> factors;
    for (std::size_t k = 0; k < between.size(); ++k) {
      between[k].y = Handed<T>(rows, sizes_.features());
      if (!given.masks.empty()) {
        between[k].masked = Handed<T>(rows, sizes_.features());
        between[k].mask = given.masks[k];
      }
      factors.push_back(between[k].factors(rows, sizes_.features()));
    }
    const T* const h_factors =
        read<T>(given.h_factors, "h_factors", {count(), rows.batch(), outputs});
    if (sizes_.facts().layer_norm &&
        (h_factors || !given.drawn_h.empty() || !given.drawn_c.empty()))
      throw std::invalid_argument(
          "h_factors, zoneout_h and zoneout_c must be left out: the cell normalises");
    if (!given.drawn_c.empty() && !has_c())
      throw std::invalid_argument("zoneout_c must be empty: the cell has no c");
    if (h_factors && !sizes_.facts().recurrent_product)
      throw std::invalid_argument("h_factors must be None: the cell has no recurrent product");
    std::vector<Handed<T>> both;
    for (Index k = 0; sizes_.merges() && k < sizes_.layers; ++k)
      both.emplace_back(rows, sizes_.unmerged());
    std::vector<typename KeptOf<T>::Direction> kept(keep ? static_cast<std::size_t>(count())
                                                         : std::size_t{0});
    AlignedBytes states;
    if (keep) states = copy_of_states(given);
    std::vector<ForwardProblem<T>> problems;
    problems.reserve(static_cast<std::size_t>(count()));
    for (Index i = 0; i < count(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto layer = static_cast<std::size_t>(i / sizes_.directions);
      const Index d = i % sizes_.directions;
      const auto out = sizes_.merges()          ? both[layer].view()
                       : layer < between.size() ? between[layer].y.view()
                                                : given.y;
      problems.push_back(
          {.schedule = rows.schedule(sizes_.backwards(d)),
           .parameters =
               parameters(at, (keep && backward_panels_.empty()) || (given.tokens && layer == 0)),
           .x = layer == 0 ? given.x : constant(between[layer - 1].below().view()),
           .tokens = layer == 0 ? view_of(given.tokens) : Tokens{},
           .h = given.h + i * h_size,
           .c = advanced(given.c, i * c_size),
           .y = part(out, d * outputs),
           .saved = nullptr,
           .cells = nullptr,
           .options = options_.empty() ? nullptr : &options_[static_cast<std::size_t>(d)],
           .h_factors = h_factors ? h_factors + i * rows.batch() * outputs : nullptr,
           .zone_h = zone(sizes_.zoneout, given.drawn_h, at, "zoneout_h", rows, outputs),
           .zone_c = zone(sizes_.cell_zoneout, given.drawn_c, at, "zoneout_c", rows, units)});
      if (!keep) continue;
      const Index saved = sizes_.facts().saved;
      if (saved > 0) {
        kept[at].saved = new_array<T>({live, saved, units});
        problems[at].saved = static_cast<T*>(data_of(kept[at].saved));
      }
      if (given.c) {
        kept[at].cells = new_array<T>({live, units});
        problems[at].cells = static_cast<T*>(data_of(kept[at].cells));
      }
      if (!given.drawn_h.empty()) kept[at].drawn_h = given.drawn_h[at];
      if (!given.drawn_c.empty()) {
        kept[at].drawn_c = given.drawn_c[at];
        kept[at].fresh_c = new_array<T>({live, units});
        problems[at].fresh_c = static_cast<T*>(data_of(kept[at].fresh_c));
      }
      if (outputs != units) {
        kept[at].inner = new_array<T>({live, units});
        problems[at].inner = static_cast<T*>(data_of(kept[at].inner));
      }
      if (sizes_.facts().layer_norm) {
        const auto& slots = problems[at].tokens;
        kept[at].keep_norm(sizes_.facts(), slots.slot ? slots.count : live, live, units);
        problems[at].norm = kept[at].norm;
      }
    }
    without_gil(sizes_.flops(live), [&] {
      for (Index k = 0; k < sizes_.layers; ++k) {
        const auto layer = static_cast<std::size_t>(k);
        const bool last = layer == between.size();
        const auto y = last ? given.y : between[layer].y.view();
        clear_dead(rows, sizes_.merges() ? both[layer].view() : y, sizes_.unmerged());
        for (Index d = 0; d < sizes_.directions; ++d) {
          const auto i = static_cast<std::size_t>(k * sizes_.directions + d);
          const PackedWeights<T>* panels = panels_.empty() ? nullptr : &panels_[i];
          std::optional<PackedWeights<T>> own;
          if (!panels && rows.stretches() && rows.stretches()->parts().size() > 1) {
            own.emplace(sizes_.cell, problems[i].parameters, Pass::forward,
                        !problems[i].tokens.slot, sizes_.compute);
            panels = &*own;
          }
          run_stretches(sizes_.facts(), rows, problems[i], [&](const ForwardProblem<T>& part) {
            rnnkern::forward(sizes_.cell, part, sizes_.compute, panels);
          });
          if (keep) {
            kept[i].weights = backward_panels_.empty() ? backward_panels(problems[i].parameters,
                                                                         !problems[i].tokens.slot)
                                                       : backward_panels_[i];
          }
        }
        if (sizes_.merges())
          merge_directions(sizes_.merge, rows, constant(both[layer].view()), sizes_.outputs, y);
        if (!last && factors[layer])
          between[layer].masked.set_product(between[layer].y, factors[layer]);
      }
    });
    if (!keep) return py::none();
    return py::cast(Kept(KeptOf<T>{.sizes = sizes_,
                                   .options = options_,
                                   .schedule = std::move(given.schedule),
                                   .tokens = std::move(given.tokens),
                                   .h_factors = std::move(given.h_factors),
                                   .states = std::move(states),
                                   .directions = std::move(kept),
                                   .between = std::move(between),
                                   .both = std::move(both),
                                   .biases = biases_}));
  }

  static Zoneout<T> zone(double share, const std::vector<py::object>& draws, std::size_t at,
                         const char* name, const ScheduleStorage& rows, Index features) {
    if (draws.empty()) return {.share = static_cast<T>(share)};
    return {.drawn = read_marks(draws[at], name, rows.steps(), rows.batch(), features)};
  }

  // Of weights that are packed a call may need the sizes alone; the arrays are then not looked at.
  Parameters<T> parameters(std::size_t i, bool raw) const {
    if (panels_.empty() || raw) return weights_[i].template parameters<T>();
    return {.inputs = weights_[i].inputs(),
            .units = sizes_.units,
            .outputs = sizes_.outputs,
            .w_ih = nullptr,
            .w_hh = nullptr,
            .bias = nullptr,
            .bias_hn = nullptr,
            .unit_weights = nullptr};
  }

  std::shared_ptr<const PackedWeights<T>> backward_panels(const Parameters<T>& parameters,
                                                          bool with_input) const {
    return std::make_shared<const PackedWeights<T>>(sizes_.cell, parameters, Pass::backward,
                                                    with_input, sizes_.compute);
  }

  AlignedBytes copy_of_states(const Given& given) const {
    const Index rows = count() * given.schedule.state_rows(), of_h = rows * sizes_.outputs;
    const Index of_c = given.c ? rows * sizes_.units : 0;
    AlignedBytes states((of_h + of_c) * static_cast<Index>(sizeof(T)));
    T* const h_0 = reinterpret_cast<T*>(states.get());
    std::copy_n(given.h, of_h, h_0);
    if (given.c) std::copy_n(given.c, of_c, h_0 + of_h);
    return states;
  }

  NetworkSizes sizes_;
  std::vector<CellOptions<T>> options_;  // one a direction, or none
  std::vector<HeldWeights> weights_;     // by layer and direction
  std::vector<std::array<bool, 3>> biases_;
  std::vector<PackedWeights<T>> panels_;                                  // likewise, or none
  std::vector<std::shared_ptr<const PackedWeights<T>>> backward_panels_;  // likewise
};

// Its class in Python.
class Network {
 public:
  Network(const py::handle& spec, const py::sequence& weights, bool batch_first)
      : network_(make(spec, weights, batch_first)) {}
  Network(Network&&) = default;

  // f of the network that has the weights' dtype.
  template <class F>
  auto visit(F f) const {
    return std::visit(f, network_);
  }

  Network packed(bool with_input, bool with_backward) const {
    return visit([&](const auto& network) {
      return Network(Any(network.packed(with_input, with_backward)));
    });
  }

 private:
  using Any = std::variant<NetworkOf<float>, NetworkOf<double>>;

  explicit Network(Any network) : network_(std::move(network)) {}

  static Any make(const py::handle& given, const py::sequence& weights, bool batch_first) {
    const LayerSpec spec = read_spec(given);
    const py::tuple each(weights);  // likewise
    const auto count = static_cast<Index>(each.size());
    if (count != spec.layers * spec.directions) {
      throw std::invalid_argument("weights must be one for each layer and direction, " +
                                  std::to_string(spec.layers * spec.directions) + ", got " +
                                  std::to_string(count));
    }
    std::vector<HeldWeights> held;
    for (const auto& w : each) held.emplace_back(spec.facts(), w);
    const NetworkSizes sizes{.cell = spec.cell,
                             .compute = read_compute(spec.compute),
                             .inputs = held[0].inputs(),
                             .units = held[0].units(),
                             .outputs = held[0].outputs(),
                             .layers = spec.layers,
                             .directions = spec.directions,
                             .reverse = spec.reverse,
                             .merge = spec.merge,
                             .batch_first = batch_first,
                             .zoneout = spec.zoneout,
                             .cell_zoneout = spec.cell_zoneout};
    if (held[0].type() == Type::float32) {
      std::vector<CellOptions<float>> options;
      for (const auto& own : spec.options) options.push_back(static_cast<CellOptions<float>>(own));
      return NetworkOf<float>(sizes, std::move(options), std::move(held));
    }
    return NetworkOf<double>(sizes, spec.options, std::move(held));
  }

  Any network_;
};

}  // namespace

void bind_network(py::module_& m) {
  m.def(
      "stretches", find_stretches, py::arg("steps"), py::arg("batch"), py::arg("lengths"),
      py::arg("resets"), py::arg("mask"), py::arg("states_anew"),
      "The rows of a batch cut where they begin anew, without the steps that they skip, by falling "
      "length: (t·B + b of each live step in packed order, lengths, (by direction the row "
      "of the states given that each begins with, or -1 for zero), (by direction and batch row the "
      "one that leaves its last state, or -1 for the initial one, -2 for zero, -3 for that of row "
      "B + b)). With states_anew rows b begin anew with those of rows B + b, else from zero.");
  py::class_<Kept>(m, "Kept", "What Network.forward() kept of one call.")
      .def_property_readonly(
          "saved", [](const py::handle& self) { return built<Kept>(self, "self").saved(); },
          "What each layer and direction saved at every step (live steps, saved, H), or None.")
      .def_property_readonly(
          "cells", [](const py::handle& self) { return built<Kept>(self, "self").cells(); },
          "Every c_t of each layer and direction (live steps, H), or None.")
      .def_property_readonly(
          "fresh_c", [](const py::handle& self) { return built<Kept>(self, "self").fresh_c(); },
          "Likewise before its zoneout.")
      .def_property_readonly(
          "places", [](const py::handle& self) { return built<Kept>(self, "self").places(); },
          "t·B + b of each live step (live steps,), in the packed order of saved.")
      .def_property_readonly(
          "between", [](const py::handle& self) { return built<Kept>(self, "self").between(); },
          "Copies of y (T, B, D·P) of every layer but the last; where directions are merged, of "
          "what they gave before, of all layers.")
      .def(
          "backward",
          [](const py::handle& self, const py::object& x, const py::object& y, const py::object& dy,
             const py::object& dh, const py::object& dc, const py::object& dx,
             const py::sequence& gradients, const py::object& state_gradients) {
            built<Kept>(self, "self").visit([&](const auto& kept) {
              kept.backward(x, y, dy, dh, dc, dx, gradients, state_gradients);
            });
          },
          py::arg("x"), py::arg("y"), py::arg("dy"), py::arg("dh"), py::arg("dc"), py::arg("dx"),
          py::arg("gradients"), py::arg("state_gradients") = py::none(),
          "x and y are those of the call; tokens were copied. dh (L·D, B, P) and dc (L·D, B, H) go "
          "in for the "
          "last state and come out for the first; dx and the "
          "gradients, for each layer and direction (dweight_ih, dweight_hh, dbias, dbias_hn, "
          "dunit_weights, dweight_hr, dgain_ih, dgain_hh, dgain_c, dshift_c), are "
          "added to; state_gradients, for each (live steps, states + gates, H) in the packed order "
          "of saved, are written. dy None is zero.")
      .def(
          "direct",
          [](const py::handle& self, const py::object& x, const py::object& y, const py::object& dy,
             const py::object& dstate, bool unbatched, bool with_dx) {
            return built<Kept>(self, "self").visit([&](const auto& kept) {
              return kept.direct(x, y, dy, dstate, unbatched, with_dx);
            });
          },
          py::arg("x"), py::arg("y"), py::arg("dy"), py::arg("dstate"), py::arg("unbatched"),
          py::arg("with_dx") = true,
          "What a caller asks for: (dx, dstate, [gradients of the parameters there are]), in the "
          "caller's axes but for x and y. None where dy or dstate cannot be taken as they stand.");

  py::class_<Network>(m, "Network", "Layers upon each other, in all their directions.")
      .def(py::init<const py::handle&, const py::sequence&, bool>(), py::arg("spec"),
           py::arg("weights"), py::arg("batch_first") = false,
           "weights: for each layer and direction (weight_ih, weight_hh, bias, bias_hn, "
           "unit_weights, weight_hr, gain_ih, gain_hh, gain_c, shift_c), which are held; from the "
           "fifth on for cells that have them. The "
           "sizes are theirs; spec says the cell, the compute and how many there are.")
      .def(
          "packed",
          [](const py::handle& self, bool with_input, bool with_backward) {
            return built<Network>(self, "self").packed(with_input, with_backward);
          },
          py::kw_only(), py::arg("with_input") = true, py::arg("with_backward") = false,
          "A network of these weights as they are now, packed for many calls: they must stay so. "
          "Without the first weight_ih where x will be tokens; with_backward also for what calls "
          "keep, which then share the weights.")
      .def(
          "forward",
          [](const py::handle& self, const py::object& x, const py::object& lengths,
             const py::object& h, const py::object& c, const py::object& y,
             const py::sequence& masks, bool keep, const py::object& resets, const py::object& mask,
             bool states_anew, const py::object& h_factors, const py::sequence& zoneout_h,
             const py::sequence& zoneout_c) {
            return built<Network>(self, "self").visit([&](const auto& network) {
              return network.forward(x, lengths, h, c, y, masks, keep, resets, mask, states_anew,
                                     h_factors, zoneout_h, zoneout_c);
            });
          },
          py::arg("x"), py::arg("lengths"), py::arg("h"), py::arg("c"), py::arg("y"),
          py::arg("masks"), py::arg("keep"), py::arg("resets") = py::none(),
          py::arg("mask") = py::none(), py::arg("states_anew") = false,
          py::arg("h_factors") = py::none(), py::arg("zoneout_h") = py::tuple(),
          py::arg("zoneout_c") = py::tuple(),
          "x (T, B, I) or tokens (T, B); lengths (B,) or None. h (L·D, B, P) and c (L·D, B, H) go "
          "in as the initial states and come out as the last ones; y (T, B, D·P) is written. "
          "masks: "
          "factors (T, B, D·P) of what each layer hands to the next, or none. resets and mask (T, "
          "B) "
          "are booleans or None: before a step that is reset a row begins anew, from zero or, with "
          "states_anew, from row B + b of h and c, which then have 2·B; where mask is False it "
          "keeps its state, and y is 0. "
          "h_factors (L·D, B, P) or None: of what recurrent products take of h, at all steps. "
          "zoneout_h (T, B, P) and zoneout_c (T, B, H) are booleans by layer and direction: which "
          "units keep their "
          "value; without keep there may be none, and then the spec's shares count. "
          "Gives with keep what a backward pass needs beside x and y.")
      .def(
          "direct",
          [](const py::handle& self, const py::object& x, const py::object& state,
             const py::object& lengths, bool keep) {
            return built<Network>(self, "self").visit([&](const auto& network) {
              return network.direct(x, state, lengths, keep);
            });
          },
          py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("keep"),
          "What a caller asks for: (y, last state), and with keep what forward() gives, in new "
          "arrays. None where an argument cannot be taken as it stands.");
}

}  // namespace rnnkern
