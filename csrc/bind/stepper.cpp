// SPDX-License-Identifier: Apache-2.0
// Stacked layers that go one step at a time.
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "bind/gil.h"
#include "bind/modules.h"
#include "bind/weights.h"
#include "cpu/engine.h"

namespace rnnkern {
namespace {

// Holds the state's arrays, which the Python side reads and sets.
class BoundStepper {
 public:
  BoundStepper(const py::handle& given, const py::sequence& weights, py::object h, py::object c,
               bool narrow, bool by_token)
      : h_(std::move(h)),
        c_(std::move(c)),
        stepper_(by_type(HostArray(h_, "h"), [&]<class T>(T) -> Any {
          return make<T>(read_spec(given), weights, narrow, by_token);
        })) {}

  // y (B, P), or None when x or out is not what can be taken as it stands: native, contiguous, of
  // the right shape. The caller then checks and converts at leisure.
  py::object step(const py::handle& x, const py::handle& out) {
    return std::visit([&](auto& stepper) { return step_with(stepper, x, out); }, stepper_);
  }

 private:
  using Any = std::variant<Stepper<float>, Stepper<double>>;

  template <class T>
  Stepper<T> make(const LayerSpec& spec, const py::sequence& weights, bool narrow, bool by_token) {
    const py::tuple each(weights);  // a sequence may be another each time it is asked
    const HostArray state(h_, "h");
    if (each.empty() || state.axes != 3)
      throw std::invalid_argument("weights must not be empty, and h must have 3 axes");
    const Index batch = state.shape[1], outputs = state.shape[2];
    if (batch < 1) state.refuse("have at least one row, got shape " + state.shape_text());
    const bool has_c = spec.facts().cell_state;
    std::vector<Parameters<T>> parameters;
    for (const auto& layer : each) {
      parameters.push_back(HeldWeights(spec.facts(), layer).parameters<T>());
      const auto& p = parameters.back();
      if (p.outputs != outputs || p.units != parameters[0].units ||
          (parameters.size() > 1 && p.inputs != outputs)) {
        throw std::invalid_argument("weights must fit each other and h, of shape " +
                                    state.shape_text());
      }
    }
    const auto count = static_cast<Index>(each.size());
    const Index units = parameters[0].units;
    T* const h = write<T>(h_, "h", {count, batch, outputs});
    T* const c = has_c ? write<T>(required(c_, "c"), "c", {count, batch, units}) : nullptr;
    if (by_token) first_ = each[0];
    return Stepper<T>(
        spec.cell, parameters, batch, h, c, narrow, read_compute(spec.compute), by_token,
        spec.options.empty() ? std::nullopt
                             : std::optional(static_cast<CellOptions<T>>(spec.options[0])),
        static_cast<T>(spec.zoneout), static_cast<T>(spec.cell_zoneout));
  }

  template <class T>
  static py::object step_with(Stepper<T>& stepper, const py::handle& x, const py::handle& out) {
    const Index batch = stepper.batch(), outputs = stepper.outputs(), inputs = stepper.inputs();
    const bool dense = !stepper.by_token() && plain<T>(x, {batch, inputs});
    if (!dense && !plain<std::int64_t>(x, {batch})) return py::none();
    if (!out.is_none() && !plain<T>(out, {batch, outputs})) return py::none();
    const void* data = data_of(x);
    std::vector<Index> tokens;
    if (!dense) tokens = copied(static_cast<const std::int64_t*>(data), batch);
    for (const Index token : tokens) {
      if (token < 0 || token >= inputs) return py::none();
    }
    py::object y =
        out.is_none() ? new_array<T>({batch, outputs}) : py::reinterpret_borrow<py::object>(out);
    auto& y_array = *py::detail::array_proxy(y.ptr());
    if (!(y_array.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) return py::none();
    std::optional<GilReleased> release;
    if (stepper.flops() > kWorthReleasing) release.emplace();
    stepper.step(dense ? static_cast<const T*>(data) : nullptr, dense ? nullptr : tokens.data(),
                 reinterpret_cast<T*>(y_array.data));
    release.reset();
    return y;
  }

  py::object h_, c_;
  py::object first_;  // the first layer's arrays, where they are read by token
  Any stepper_;
};

}  // namespace

void bind_stepper(py::module_& m) {
  py::class_<BoundStepper>(m, "Stepper", "Layers upon each other that go one step at a time.")
      .def(py::init<const py::handle&, const py::sequence&, py::object, py::object, bool, bool>(),
           py::arg("spec"), py::arg("weights"), py::arg("h"), py::arg("c"), py::kw_only(),
           py::arg("narrow") = false, py::arg("by_token") = false,
           "weights: those of each layer as Network takes them, packed here and now; h (L, B, P) "
           "and c (L, B, H) are the state, which step() advances in place. narrow keeps the "
           "weights as bfloat16. With by_token x is tokens alone, and the first weight_ih must "
           "stay as it is: of it a column is packed when its token comes first.")
      .def(
          "step",
          [](const py::handle& self, const py::handle& x, const py::handle& out) {
            return built<BoundStepper>(self, "self").step(x, out);
          },
          py::arg("x"), py::arg("out"),
          "y (B, P) of x (B, I) or tokens (B,); None where x or out would need converting.");
}

}  // namespace rnnkern
