// SPDX-License-Identifier: Apache-2.0
// rnnkern._core: arrays in, checked views out, one shape of function throughout; no mathematics.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "bind/gil.h"
#include "bind/views.h"
#include "core/engine.h"
#include "core/schedule.h"

namespace rnnkern {
namespace {

std::optional<std::vector<Index>> read_lengths(const py::object& lengths, Index batch) {
  if (lengths.is_none()) return std::nullopt;
  return copied(read<std::int64_t>(lengths, "lengths", {batch}), batch);
}

// The object that was built by its class's constructor: pybind11 gives the memory of one that has only
// seen __new__ out as if it had been.
template <class C>
C& built(const py::handle& object, const char* name) {
  if (!py::isinstance<C>(object) || !reinterpret_cast<py::detail::instance*>(object.ptr())
                                         ->get_value_and_holder()
                                         .holder_constructed()) {
    throw py::type_error(std::string(name) + " must be a " +
                         py::str(py::type::of<C>().attr("__name__")).template cast<std::string>() +
                         " that was built by its constructor, got " +
                         py::str(py::type::handle_of(object)).template cast<std::string>());
  }
  return py::cast<C&>(object);
}

// Sizes of a layer, from the arrays that must have them.
struct Sizes {
  Index inputs, units;

  Sizes(const py::array& weight_ih, const py::array& weight_hh, const std::string& kind) {
    if (weight_ih.ndim() != 2 || weight_hh.ndim() != 2) {
      throw std::invalid_argument(kind + "_ih and " + kind + "_hh must have 2 axes, got shapes " +
                                  shape_text(weight_ih) + " and " + shape_text(weight_hh));
    }
    inputs = weight_ih.shape(1), units = weight_hh.shape(1);
    if (inputs < 1 || units < 1) {
      throw std::invalid_argument(kind + "_ih and " + kind +
                                  "_hh must have at least one column, got shapes " +
                                  shape_text(weight_ih) + " and " + shape_text(weight_hh));
    }
  }
};

template <class T>
Parameters<T> read_parameters(const CellFacts& facts, const py::array& weight_ih,
                              const py::array& weight_hh, const py::object& bias,
                              const py::object& bias_hn) {
  const auto [inputs, units] = Sizes(weight_ih, weight_hh, "weight");
  const Index rows = facts.gates * units;
  return {.inputs = inputs,
          .units = units,
          .w_ih = read<T>(weight_ih, "weight_ih", {rows, inputs}),
          .w_hh = read<T>(weight_hh, "weight_hh", {rows, units}),
          .bias = read<T>(bias, "bias", {rows}),
          .bias_hn = read<T>(bias_hn, "bias_hn", {units})};
}

// What forward and backward share: sizes, the schedule, and x as an array of numbers or of tokens.
template <class T>
struct Input {
  Index steps, batch;
  ScheduleStorage schedule;
  std::optional<TokenStorage> tokens;
  Sequence<const T> dense;

  Input(const py::array& x, const py::object& lengths, Index inputs)
      : steps(shape(x, 0)),
        batch(shape(x, 1)),
        schedule(steps, batch, read_lengths(lengths, batch)) {
    if (x.ndim() == 2) {
      const auto view = sequence<const std::int64_t>(x, "x", steps, batch, 0);
      tokens.emplace(schedule.schedule(false), view, inputs);
    } else {
      dense = sequence<const T>(x, "x", steps, batch, inputs);
    }
  }

  Tokens token_view() const { return tokens ? tokens->tokens() : Tokens{}; }

 private:
  static Index shape(const py::array& x, Index axis) {
    if (x.ndim() != 2 && x.ndim() != 3) {
      throw std::invalid_argument("x must have shape (T, B, I), or (T, B) for tokens, got " +
                                  shape_text(x));
    }
    if (x.shape(axis) < 1) {
      throw std::invalid_argument("x must have at least one step and one row, got shape " +
                                  shape_text(x));
    }
    return x.shape(axis);
  }
};

template <class T>
py::object new_array(std::vector<Index> shape) {
  auto most = kMostBytes / static_cast<Index>(sizeof(T));
  for (const Index n : shape) {
    if (n > most) throw std::invalid_argument("the sizes give an array beyond any memory");
    most /= std::max<Index>(n, 1);
  }
  return py::array_t<T>(std::move(shape));
}

// Chooses the instantiation for the weights' dtype.
template <class F>
auto by_dtype(const py::array& array, const char* name, F f) {
  if (py::isinstance<py::array_t<float>>(array)) return f(float{});
  if (py::isinstance<py::array_t<double>>(array)) return f(double{});
  throw py::type_error(std::string(name) + " must be float32 or float64, got " +
                       py::str(array.dtype()).cast<std::string>());
}

Compute read_compute(const std::optional<std::string>& name) {
  if (!name) return Compute::exact;
  if (*name == "bfloat16") return Compute::bfloat16;
  throw std::invalid_argument("compute must be None or 'bfloat16', got '" + *name + "'");
}

// A snapshot of one layer's weights, packed for forward() or backward().
class Packed {
 public:
  Packed(const std::string& cell, const py::array& weight_ih, const py::array& weight_hh,
         const py::object& bias, const py::object& bias_hn,
         const std::optional<std::string>& compute, bool backward, bool with_input) {
    const int id = find_cell(cell);
    const auto& facts = all_cells()[static_cast<std::size_t>(id)];
    by_dtype(weight_hh, "weight_hh", [&]<class T>(T) {
      weights_ = PackedWeights<T>(
          id, read_parameters<T>(facts, weight_ih, weight_hh, bias, bias_hn),
          backward ? Pass::backward : Pass::forward, with_input, read_compute(compute));
    });
  }

  template <class T>
  const PackedWeights<T>& of_dtype() const {
    if (const auto* weights = std::get_if<PackedWeights<T>>(&weights_)) return *weights;
    throw std::invalid_argument("packed must have the dtype of the arrays");
  }

 private:
  std::variant<std::monostate, PackedWeights<float>, PackedWeights<double>> weights_;
};

// A stream's layers, step by step. Holds the state's arrays, which the Python side reads and sets.
class BoundStepper {
 public:
  BoundStepper(const std::string& cell, const std::vector<py::tuple>& layers, py::array h,
               py::object c, bool narrow, const std::optional<std::string>& compute, bool by_token)
      : h_(std::move(h)), c_(std::move(c)), stepper_(by_dtype(h_, "h", [&]<class T>(T) -> Any {
          return make<T>(find_cell(cell), layers, narrow, read_compute(compute), by_token);
        })) {
    if (by_token) first_ = layers[0];
  }

  // y (B, H), or None when x or out is not what can be taken as it stands: native, contiguous, of
  // the right shape. The caller then checks and converts at leisure.
  py::object step(const py::handle& x, const py::handle& out) {
    return std::visit([&](auto& stepper) { return step_with(stepper, x, out); }, stepper_);
  }

 private:
  using Any = std::variant<Stepper<float>, Stepper<double>>;

  template <class T>
  Stepper<T> make(int id, const std::vector<py::tuple>& layers, bool narrow, Compute compute,
                  bool by_token) const {
    if (layers.empty() || h_.ndim() != 3)
      throw std::invalid_argument("layers must not be empty, and h must have 3 axes");
    const auto& facts = all_cells()[static_cast<std::size_t>(id)];
    const Index batch = h_.shape(1), units = h_.shape(2);
    if (batch < 1)
      throw std::invalid_argument("h must have at least one row, got shape " + shape_text(h_));
    std::vector<Parameters<T>> parameters;
    for (const auto& layer : layers) {
      if (layer.size() != 4)
        throw std::invalid_argument("layers must be (weight_ih, weight_hh, bias, bias_hn) each");
      parameters.push_back(read_parameters<T>(facts, as_array(layer[0], "weight_ih"),
                                              as_array(layer[1], "weight_hh"), layer[2], layer[3]));
      const auto& p = parameters.back();
      if (p.units != units || (parameters.size() > 1 && p.inputs != units))
        throw std::invalid_argument("layers must fit each other and h, of shape " + shape_text(h_));
    }
    const auto count = static_cast<Index>(layers.size());
    T* const h = write<T>(h_, "h", {count, batch, units});
    T* const c = facts.cell_state ? write<T>(c_, "c", {count, batch, units}) : nullptr;
    if (facts.cell_state && !c) throw std::invalid_argument("c must be given for an LSTM");
    return Stepper<T>(id, parameters, batch, h, c, narrow, compute, by_token);
  }

  template <class T>
  static bool plain(const py::handle& object, Index rows, Index columns) {
    if (py::type::handle_of(object).ptr() !=
        reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_))
      return false;
    const auto array = py::reinterpret_borrow<py::array>(object);
    static const py::handle native = py::dtype::of<T>().release();
    const Index axes = columns > 0 ? 2 : 1;
    return py::detail::array_proxy(object.ptr())->descr == native.ptr() && array.ndim() == axes &&
           array.shape(0) == rows && (axes == 1 || array.shape(1) == columns) &&
           (array.flags() & kPlainFlags) == kPlainFlags;
  }

  template <class T>
  static py::object step_with(Stepper<T>& stepper, const py::handle& x, const py::handle& out) {
    const Index batch = stepper.batch(), units = stepper.units(), inputs = stepper.inputs();
    const bool dense = !stepper.by_token() && plain<T>(x, batch, inputs);
    if (!dense && !plain<std::int64_t>(x, batch, 0)) return py::none();
    if (!out.is_none() && !plain<T>(out, batch, units)) return py::none();
    const void* data = py::detail::array_proxy(x.ptr())->data;
    std::vector<Index> tokens;
    if (!dense) tokens = copied(static_cast<const std::int64_t*>(data), batch);
    for (const Index token : tokens) {
      if (token < 0 || token >= inputs) return py::none();
    }
    py::object y =
        out.is_none() ? new_array<T>({batch, units}) : py::reinterpret_borrow<py::object>(out);
    auto& y_array = *py::detail::array_proxy(y.ptr());
    if (!(y_array.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) return py::none();
    std::optional<GilReleased> release;
    if (stepper.flops() > kWorthReleasing) release.emplace();
    stepper.step(dense ? static_cast<const T*>(data) : nullptr, dense ? nullptr : tokens.data(),
                 reinterpret_cast<T*>(y_array.data));
    release.reset();
    return y;
  }

  static constexpr int kPlainFlags =
      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

  // Flops of a step above which other Python threads shall run meanwhile.
  static constexpr double kWorthReleasing = 1e6;

  py::array h_;
  py::object c_;
  py::tuple first_;  // the first layer's arrays, where they are read by token
  Any stepper_;
};

// A matrix and a bias, packed for many products with them.
class BoundMatrix {
 public:
  BoundMatrix(const py::array& matrix, const py::object& bias)
      : matrix_(by_dtype(matrix, "matrix", [&]<class T>(T) -> Any {
          if (matrix.ndim() != 2 || matrix.shape(0) < 1) {
            throw std::invalid_argument("matrix must have 2 axes and at least one row, got shape " +
                                        shape_text(matrix));
          }
          const Index rows = matrix.shape(0), columns = matrix.shape(1);
          return PackedMatrix<T>(read<T>(matrix, "matrix", {rows, columns}),
                                 read<T>(bias, "bias", {rows}), rows, columns);
        })) {}

  py::object times(const py::array& x) const {
    return std::visit(
        [&]<class T>(const PackedMatrix<T>& matrix) {
          const Index count = x.ndim() > 0 ? x.shape(0) : 0;
          const T* const data = read<T>(x, "x", {count, matrix.columns()});
          py::object y = new_array<T>({count, matrix.rows()});
          T* const out = write<T>(y, "y", {count, matrix.rows()});
          if (count > 0) without_gil([&] { matrix.times(data, count, out); });
          return y;
        },
        matrix_);
  }

 private:
  using Any = std::variant<PackedMatrix<float>, PackedMatrix<double>>;

  Any matrix_;
};

py::tuple run_forward(const std::string& cell, const py::array& x, const py::object& h,
                      const py::object& c, const py::array& weight_ih, const py::array& weight_hh,
                      const py::object& bias, const py::object& bias_hn, const py::object& lengths,
                      bool reverse, const py::array& y, bool keep, const py::object& packed,
                      const std::optional<std::string>& compute_name) {
  const Compute compute = read_compute(compute_name);
  const int id = find_cell(cell);
  const auto& facts = all_cells()[static_cast<std::size_t>(id)];
  return by_dtype(weight_hh, "weight_hh", [&]<class T>(T) {
    const auto parameters = read_parameters<T>(facts, weight_ih, weight_hh, bias, bias_hn);
    const Index units = parameters.units;
    const Input<T> input(x, lengths, parameters.inputs);
    const Index live = input.schedule.live_rows();
    const PackedWeights<T>* ready =
        packed.is_none() ? nullptr : &built<Packed>(packed, "packed").of_dtype<T>();
    py::object saved = py::none(), cells = py::none();
    if (keep && facts.saved > 0) saved = new_array<T>({live, facts.saved, units});
    if (keep && facts.cell_state) cells = new_array<T>({live, units});
    const ForwardProblem<T> problem{
        .schedule = input.schedule.schedule(reverse),
        .parameters = parameters,
        .x = input.dense,
        .tokens = input.token_view(),
        .h = write<T>(h, "h", {input.batch, units}),
        .c = facts.cell_state ? write<T>(c, "c", {input.batch, units}) : nullptr,
        .y = sequence<T>(y, "y", input.steps, input.batch, units),
        .saved = write<T>(saved, "saved", {live, facts.saved, units}),
        .cells = write<T>(cells, "cells", {live, units})};
    if (!problem.h || (facts.cell_state && !problem.c)) {
      throw std::invalid_argument("h (and c for an LSTM) must be given");
    }
    without_gil([&] {
      for (Index b = 0; b < input.batch && input.schedule.ragged(); ++b) {
        for (Index t = input.schedule.length(b); t < input.steps; ++t) {
          std::fill_n(problem.y.at(t, b), units, T(0));
        }
      }
      forward(id, problem, compute, ready);
    });
    return py::make_tuple(saved, cells);
  });
}

void run_backward(const std::string& cell, const py::array& x, const py::object& h_0,
                  const py::object& c_0, const py::object& packed, const py::object& lengths,
                  bool reverse, const py::array& y, const py::object& saved,
                  const py::object& cells, const py::object& dy, const py::object& dh,
                  const py::object& dc, const py::object& dx, const py::array& dweight_ih,
                  const py::array& dweight_hh, const py::object& dbias, const py::object& dbias_hn,
                  const py::object& state_gradients,
                  const std::optional<std::string>& compute_name) {
  const Compute compute = read_compute(compute_name);
  const int id = find_cell(cell);
  const auto& facts = all_cells()[static_cast<std::size_t>(id)];
  by_dtype(dweight_hh, "dweight_hh", [&]<class T>(T) {
    const auto [inputs, units] = Sizes(dweight_ih, dweight_hh, "dweight");
    const Index rows = facts.gates * units;
    const Input<T> input(x, lengths, inputs);
    const Index live = input.schedule.live_rows(), batch = input.batch;
    BackwardProblem<T> problem{
        .schedule = input.schedule.schedule(reverse),
        .inputs = inputs,
        .units = units,
        .x = input.dense,
        .tokens = input.token_view(),
        .h_0 = read<T>(h_0, "h_0", {batch, units}),
        .c_0 = facts.cell_state ? read<T>(c_0, "c_0", {batch, units}) : nullptr,
        .y = sequence<const T>(y, "y", input.steps, batch, units),
        .saved = read<T>(saved, "saved", {live, facts.saved, units}),
        .cells = read<T>(cells, "cells", {live, units}),
        .dy = {},
        .dh = write<T>(dh, "dh", {batch, units}),
        .dc = facts.cell_state ? write<T>(dc, "dc", {batch, units}) : nullptr,
        .dx = {},
        .dw_ih = write<T>(dweight_ih, "dweight_ih", {rows, inputs}),
        .dw_hh = write<T>(dweight_hh, "dweight_hh", {rows, units}),
        .dbias = write<T>(dbias, "dbias", {rows}),
        .dbias_hn = write<T>(dbias_hn, "dbias_hn", {units}),
        .state_gradients = write<T>(state_gradients, "state_gradients",
                                    {live, 1 + facts.cell_state + facts.gates, units})};
    if (!problem.h_0 || !problem.dh || (facts.saved > 0 && !problem.saved) ||
        (facts.cell_state && (!problem.c_0 || !problem.dc || !problem.cells))) {
      throw std::invalid_argument("h_0, dh and what the forward pass kept must be given");
    }
    if (!dy.is_none()) problem.dy = sequence<const T>(dy, "dy", input.steps, batch, units);
    if (!dx.is_none() && input.tokens)
      throw std::invalid_argument("dx must be None where x is tokens");
    if (!dx.is_none()) problem.dx = sequence<T>(dx, "dx", input.steps, batch, inputs);
    const auto& weights = built<Packed>(packed, "packed").of_dtype<T>();
    without_gil([&] { backward(id, problem, compute, weights); });
  });
}

py::array run_matmul(const py::array& a, const py::array& b, const py::object& out,
                     bool transpose_a, bool transpose_b, const py::object& bias, bool accumulate) {
  if (a.ndim() != 2 || b.ndim() != 2) {
    throw std::invalid_argument("a and b must have 2 axes, got shapes " + shape_text(a) + " and " +
                                shape_text(b));
  }
  return by_dtype(a, "a", [&]<class T>(T) {
    const Index rows = a.shape(transpose_a ? 1 : 0), depth = a.shape(transpose_a ? 0 : 1);
    const Index columns = b.shape(transpose_b ? 0 : 1);
    const T* left = read<T>(a, "a", {a.shape(0), a.shape(1)});
    const T* right =
        transpose_b ? read<T>(b, "b", {columns, depth}) : read<T>(b, "b", {depth, columns});
    if (accumulate && (out.is_none() || !bias.is_none())) {
      throw std::invalid_argument("accumulate needs out, and no bias");
    }
    const py::object result = out.is_none() ? new_array<T>({rows, columns}) : out;
    const MatmulProblem<T> problem{.rows = rows,
                                   .columns = columns,
                                   .depth = depth,
                                   .a = left,
                                   .a_row = transpose_a ? 1 : depth,
                                   .a_depth = transpose_a ? rows : 1,
                                   .b = right,
                                   .b_depth = transpose_b ? 1 : columns,
                                   .b_column = transpose_b ? depth : 1,
                                   .bias = read<T>(bias, "bias", {columns}),
                                   .c = write<T>(result, "out", {rows, columns}),
                                   .c_row = columns,
                                   .accumulate = accumulate};
    const auto apart = [&](const py::array& read) {
      const auto* from = static_cast<const T*>(read.data());
      return problem.c + rows * columns <= from || from + read.size() <= problem.c;
    };
    if (!apart(a) || !apart(b)) throw std::invalid_argument("out must share no memory with a or b");
    if (rows > 0 && columns > 0) without_gil([&] { matmul(problem); });
    return py::cast<py::array>(result);
  });
}

py::array run_activation(const std::string& name, const py::array& x) {
  if (name != "tanh" && name != "sigmoid" && name != "exp_negative") {
    throw std::invalid_argument("name must be 'tanh', 'sigmoid' or 'exp_negative', got '" + name +
                                "'");
  }
  return by_dtype(x, "x", [&]<class T>(T) {
    const T* in = read<T>(x, "x", {x.size()});
    const py::object out = new_array<T>({x.size()});
    const auto& kernels = chosen_backend().backend->kernels<T>();
    const auto run = name == "tanh"      ? kernels.tanh
                     : name == "sigmoid" ? kernels.sigmoid
                                         : kernels.exp_negative;
    run(in, write<T>(out, "out", {x.size()}), x.size());
    return py::cast<py::array>(out);
  });
}

void run_adam(const py::array& p, const py::array& g, const py::array& first,
              const py::array& second, double decay, double first_beta, double second_beta,
              double epsilon, double rate) {
  by_dtype(p, "p", [&]<class T>(T) {
    AdamProblem<T> problem{.size = p.size(),
                           .p = write_flat<T>(p, "p", p.size()),
                           .g = read_flat<T>(g, "g", p.size()),
                           .first = write_flat<T>(first, "first", p.size()),
                           .second = write_flat<T>(second, "second", p.size()),
                           .decay = static_cast<T>(decay),
                           .first_beta = static_cast<T>(first_beta),
                           .second_beta = static_cast<T>(second_beta),
                           .epsilon = static_cast<T>(epsilon),
                           .rate = static_cast<T>(rate)};
    const GilReleased release;
    chosen_backend().backend->kernels<T>().adam(problem);
  });
}

double sum_of_squares(const py::array& x) {
  return by_dtype(x, "x", [&]<class T>(T) {
    const T* data = read_flat<T>(x, "x", x.size());
    const Index size = x.size();
    const GilReleased release;
    return chosen_backend().backend->kernels<T>().sum_of_squares(data, size);
  });
}

// Like the targets, what decides whether a target is looked at; a byte that is not 0 is true.
std::unique_ptr<bool[]> copied_mask(const py::object& mask, Index rows) {
  if (mask.is_none()) return nullptr;
  const auto* bytes = static_cast<const volatile unsigned char*>(
      static_cast<const void*>(read<bool>(mask, "mask", {rows})));
  std::unique_ptr<bool[]> copy(new bool[static_cast<std::size_t>(rows)]);
  std::transform(bytes, bytes + rows, copy.get(), [](unsigned char byte) { return byte != 0; });
  return copy;
}

double run_softmax_cross_entropy(const py::array& logits, const py::array& targets,
                                 const py::object& mask, double weight, const py::array& gradient) {
  if (logits.ndim() != 2) {
    throw std::invalid_argument("logits must have 2 axes, got shape " + shape_text(logits));
  }
  return by_dtype(logits, "logits", [&]<class T>(T) {
    const Index rows = logits.shape(0), classes = logits.shape(1);
    const auto target = copied(read<std::int64_t>(targets, "targets", {rows}), rows);
    const auto counts = copied_mask(mask, rows);
    const SoftmaxProblem<T> problem{.rows = rows,
                                    .classes = classes,
                                    .logits = read<T>(logits, "logits", {rows, classes}),
                                    .targets = target.data(),
                                    .mask = counts.get(),
                                    .weight = static_cast<T>(weight),
                                    .gradient = write<T>(gradient, "gradient", {rows, classes})};
    for (Index i = 0; i < rows; ++i) {
      const Index wanted = problem.targets[i];
      if ((!problem.mask || problem.mask[i]) && (wanted < 0 || wanted >= classes)) {
        throw std::invalid_argument("targets must be in 0.." + std::to_string(classes - 1) +
                                    ", got " + std::to_string(wanted));
      }
    }
    const GilReleased release;
    return chosen_backend().backend->kernels<T>().softmax_cross_entropy(problem);
  });
}

py::tuple plan(const std::string& cell, Index inputs, Index units, Index steps, Index batch,
               bool float64, const std::optional<std::string>& compute_name) {
  const Compute compute = read_compute(compute_name);
  const int id = find_cell(cell);
  const auto positive = [](const char* name, Index value) {
    if (value < 1) {
      throw std::invalid_argument(std::string(name) + " must be at least 1, got " +
                                  std::to_string(value));
    }
  };
  positive("inputs", inputs), positive("units", units);
  positive("steps", steps), positive("batch", batch);
  const auto with = [&]<class T>(T) {
    return make_plan(
        work_of<T>(id, steps, batch, static_cast<double>(steps) * static_cast<double>(batch),
                   inputs, units, compute),
        thread_limit(cores_now()));
  };
  const Plan chosen = float64 ? with(double{}) : with(float{});
  return py::make_tuple(chosen.row_groups, chosen.unit_groups, chosen.reason);
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto* backend : supported_backends()) names.emplace_back(backend->name);
  return names;
}

}  // namespace
}  // namespace rnnkern

// By these threadpoolctl knows and limits us (python/rnnkern/machine.py).
extern "C" {
[[gnu::visibility("default")]] int rnnkern_get_num_threads() {
  return rnnkern::thread_limit(rnnkern::cores_now());
}
[[gnu::visibility("default")]] void rnnkern_set_num_threads(int count) {
  rnnkern::set_process_threads(count, "threadpoolctl");
}
}

namespace rnnkern {

PYBIND11_MODULE(_core, m) {
  m.doc() = "Kernels of rnnkern, private: the layers are the interface.";
  const auto& choice = chosen_backend();

  py::class_<Packed>(m, "Packed",
                     "A snapshot of one layer's weights, packed for forward() or backward().")
      .def(py::init<const std::string&, const py::array&, const py::array&, const py::object&,
                    const py::object&, const std::optional<std::string>&, bool, bool>(),
           py::arg("cell"), py::arg("weight_ih"), py::arg("weight_hh"), py::arg("bias"),
           py::arg("bias_hn"), py::arg("compute") = py::none(), py::kw_only(),
           py::arg("backward") = false, py::arg("with_input") = true,
           "Without weight_ih where x will be tokens.");

  py::class_<BoundStepper>(m, "Stepper", "Layers upon each other that go one step at a time.")
      .def(
          py::init<const std::string&, const std::vector<py::tuple>&, py::array, py::object, bool,
                   const std::optional<std::string>&, bool>(),
          py::arg("cell"), py::arg("layers"), py::arg("h"), py::arg("c"), py::arg("narrow"),
          py::arg("compute") = py::none(), py::arg("by_token") = false,
          "layers: (weight_ih, weight_hh, bias, bias_hn) of each, packed here and now; h and c (L, "
          "B, H) are the state, which step() advances in place. narrow keeps the weights as "
          "bfloat16. With by_token x is tokens alone, and the first weight_ih must stay as it is: "
          "of it a column is packed when its token comes first.")
      .def(
          "step",
          [](const py::handle& self, const py::handle& x, const py::handle& out) {
            return built<BoundStepper>(self, "self").step(x, out);
          },
          py::arg("x"), py::arg("out"),
          "y (B, H) of x (B, I) or tokens (B,); None where x or out would need converting.");

  py::class_<BoundMatrix>(m, "PackedMatrix", "A matrix and a bias, packed for many products.")
      .def(py::init<const py::array&, const py::object&>(), py::arg("matrix"), py::arg("bias"),
           "matrix (N, K) and bias (N,) or None.")
      .def(
          "times",
          [](const py::handle& self, const py::array& x) {
            return built<BoundMatrix>(self, "self").times(x);
          },
          py::arg("x"), "x @ matrix.T + bias of x (M, K).");

  m.def("forward", run_forward, py::arg("cell"), py::arg("x"), py::arg("h"), py::arg("c"),
        py::arg("weight_ih"), py::arg("weight_hh"), py::arg("bias"), py::arg("bias_hn"),
        py::arg("lengths"), py::arg("reverse"), py::arg("y"), py::arg("keep"),
        py::arg("packed") = py::none(), py::arg("compute") = py::none(),
        "One layer in one direction. h and c go in as h_0, c_0 and come out as h_n, c_n; y is "
        "written. Returns (saved, cells), what backward() needs when keep is true. compute None is "
        "the weights' dtype; 'bfloat16' rounds the operands of products.");
  m.def("backward", run_backward, py::arg("cell"), py::arg("x"), py::arg("h_0"), py::arg("c_0"),
        py::arg("packed"), py::arg("lengths"), py::arg("reverse"), py::arg("y"), py::arg("saved"),
        py::arg("cells"), py::arg("dy"), py::arg("dh"), py::arg("dc"), py::arg("dx"),
        py::arg("dweight_ih"), py::arg("dweight_hh"), py::arg("dbias"), py::arg("dbias_hn"),
        py::arg("state_gradients") = py::none(), py::arg("compute") = py::none(),
        "Gradients of forward(). dh and dc go in for the last state and come out for the first; dx "
        "and the gradients of the parameters are added to; state_gradients (live steps, states + "
        "gates, H), in the packed order of saved, is written.");
  m.def("matmul", run_matmul, py::arg("a"), py::arg("b"), py::arg("out") = py::none(),
        py::kw_only(), py::arg("transpose_a") = false, py::arg("transpose_b") = false,
        py::arg("bias") = py::none(), py::arg("accumulate") = false,
        "a @ b + bias for C-contiguous 2-D arrays; with accumulate, out += a @ b.");
  m.def("activation", run_activation, py::arg("name"), py::arg("x"),
        "tanh, sigmoid or exp of numbers up to 0, for a 1-D array, as the kernels compute it.");
  m.def(
      "adam", run_adam, py::arg("p"), py::arg("g"), py::arg("first"), py::arg("second"),
      py::kw_only(), py::arg("decay"), py::arg("first_beta"), py::arg("second_beta"),
      py::arg("epsilon"), py::arg("rate"),
      "first = first_beta first + g; second = second_beta second + g^2; p = decay p - rate first / "
      "(sqrt(second) + epsilon), for C-contiguous arrays of one size.");
  m.def("sum_of_squares", sum_of_squares, py::arg("x"),
        "In the array's dtype block by block, the blocks in float64.");
  m.def("softmax_cross_entropy", run_softmax_cross_entropy, py::arg("logits"), py::arg("targets"),
        py::arg("mask"), py::arg("weight"), py::arg("gradient"),
        "The sum of -log softmax(logits)[target] over the rows that mask (or None) lets count; "
        "weight times its gradient is written.");
  m.def("plan", plan, py::arg("cell"), py::arg("inputs"), py::arg("units"), py::arg("steps"),
        py::arg("batch"), py::arg("float64"), py::arg("compute") = py::none(),
        "(row groups, unit groups, reason): how a call of that size is shared by threads.");
  m.def(
      "isa", [name = std::string(choice.backend->name)] { return name; },
      "The instruction set in use.");
  m.def("isa_reason", [reason = choice.reason] { return reason; }, "Why it is in use.");
  m.def(
      "bfloat16_product", [product = choice.backend->bfloat16_product] { return product; },
      "What computes products with compute 'bfloat16', in words.");
  m.def("supported_isas", supported_isas, "Those that were built and run here, best first.");
  set_interrupt_check(GilReleased::interrupted);
  m.def(
      "thread_limit", [] { return thread_limit(cores_now()); },
      "How many threads a call from this thread may use.");
  m.def("thread_limit_reason", thread_limit_reason, "Why it is so many.");
  m.def("process_threads", process_threads,
        "How many the process asks for; 0 for as many as there are.");
  m.def(
      "set_process_threads", [](int count) { set_process_threads(count, "set_num_threads"); },
      py::arg("count"), "Sets that.");
  m.def("own_threads", own_threads,
        "How many this thread asks for, which goes before the process's; 0 for no such wish.");
  m.def("set_own_threads", set_own_threads, py::arg("count"), "Sets that.");
  m.def("cpu_quota", cpu_quota, py::arg("root") = "",
        "CPUs' worth of time that the control groups allow, inf for no limit; root stands before "
        "every path.");
  m.def("pretend_cores", pretend_cores, py::arg("count"), py::arg("root") = "",
        "For tests: as if the process had so many cores (0: its own), all of them free, and its "
        "control groups' files below root.");
  m.def("pretend_teams", pretend_teams, py::arg("sizes"),
        "For tests: threads of the segments of calls, in turns, each segment as short as can be; "
        "empty: as needed.");
}

}  // namespace rnnkern
