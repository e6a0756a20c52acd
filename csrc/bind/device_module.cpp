// SPDX-License-Identifier: Apache-2.0
// rnnkern._cuda and, of the same text, rnnkern._emulation: device arrays in, checked pointers out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bind/device_arrays.h"
#include "bind/gil.h"
#include "core/backend.h"
#include "cuda/engine.h"
#include "cuda/kernels.h"

#ifdef RNNKERN_EMULATION
#include "cuda/block.h"
#include "cuda/emulation.h"
#endif

namespace rnnkern {
namespace {

using cuda::Compute;
using cuda::Shape;

const CellFacts& cell_facts(int cell) { return all_cells()[static_cast<std::size_t>(cell)]; }

Compute read_compute(const std::optional<std::string>& name) {
  if (!name) return Compute::exact;
  if (*name == "tfloat32") return Compute::tfloat32;
  if (*name == "bfloat16") return Compute::bfloat16;
  if (*name == "float16") return Compute::float16;
  throw std::invalid_argument("compute must be None, 'tfloat32', 'bfloat16' or 'float16', got '" +
                              *name + "'");
}

// Calls f(float{}) or f(double{}).
template <class F>
auto by_type(const std::string& type, const char* name, F f) {
  if (type == kTypeText<float> || type == "float32") return f(float{});
  if (type == kTypeText<double> || type == "float64") return f(double{});
  throw py::type_error(std::string(name) + " must be float32 or float64, got " + type);
}

// Lengths lie on the host, for the work is laid out there.
std::optional<std::vector<Index>> read_lengths(const py::object& lengths, Index steps,
                                               Index batch) {
  if (lengths.is_none()) return std::nullopt;
  std::vector<Index> values;
  try {
    values = lengths.cast<std::vector<Index>>();
  } catch (const py::cast_error&) {
    throw py::type_error("lengths must be integers, got " +
                         py::str(py::type::of(lengths)).cast<std::string>());
  }
  if (static_cast<Index>(values.size()) != batch) {
    throw std::invalid_argument("lengths must have " + std::to_string(batch) + " entries, got " +
                                std::to_string(values.size()));
  }
  for (const Index length : values) {
    if (length < 0 || length > steps) {
      throw std::invalid_argument("lengths must lie in 0.." + std::to_string(steps) + ", got " +
                                  std::to_string(length));
    }
  }
  return values;
}

Shape make_shape(const std::string& cell, Index passes, bool stacked, Index inputs, Index units,
                 Index steps, Index batch, const py::object& lengths, bool tokens,
                 const std::optional<std::string>& compute) {
  // The kernels count in 32 bits.
  constexpr Index most = std::numeric_limits<std::int32_t>::max();
  const auto check = [](const char* name, Index value, Index end) {
    if (value < 1 || value >= end) {
      const auto wanted = value < 1 ? "at least 1" : "below " + std::to_string(end);
      throw std::invalid_argument(std::string(name) + " must be " + wanted + ", got " +
                                  std::to_string(value));
    }
  };
  check("inputs", inputs, most), check("units", units, most / 64);
  check("steps", steps, most), check("batch", batch, most);
  if (steps * batch >= most) {
    throw std::invalid_argument("x has too many elements for one call: " + std::to_string(steps) +
                                " steps of " + std::to_string(batch) + " rows");
  }
  if (passes < 1 || passes > (stacked ? cuda::kMaxPasses : 2)) {
    const auto allowed = stacked ? "1 to " + std::to_string(cuda::kMaxPasses) + " stacked layers"
                                 : std::string("1 or 2");
    throw std::invalid_argument("passes must be " + allowed + ", got " + std::to_string(passes));
  }
  return {.cell = find_cell(cell),
          .inputs = inputs,
          .units = units,
          .steps = steps,
          .batch = batch,
          .passes = static_cast<int>(passes),
          .stacked = stacked && passes > 1,
          .tokens = tokens,
          .compute = read_compute(compute),
          .lengths = read_lengths(lengths, steps, batch)};
}

// A pass's argument of that name, None where it is absent.
py::object get(const py::dict& pass, const char* name) {
  return pass.contains(name) ? py::object(pass[name]) : py::none();
}

py::object require(const py::dict& pass, const char* name) {
  auto object = get(pass, name);
  if (object.is_none()) throw std::invalid_argument(std::string(name) + " must be given");
  return object;
}

bool is_reverse(const py::dict& pass) {
  const auto reverse = get(pass, "reverse");
  if (!reverse.is_none() && !py::isinstance<py::bool_>(reverse))
    throw py::type_error("reverse must be True or False");
  return !reverse.is_none() && reverse.cast<bool>();
}

// What stacked layers hand each other is no argument; what they hand on may have a mask.
void check_stacked(const std::vector<py::dict>& layers, bool backward) {
  const auto absent = [&](const char* name, std::size_t first, std::size_t end, const char* why) {
    for (std::size_t k = first; k < end; ++k) {
      if (!get(layers[k], name).is_none()) {
        throw std::invalid_argument(std::string(name) + " of stacked layer " + std::to_string(k) +
                                    " must be None: " + why);
      }
    }
  };
  if (!backward) absent("x", 1, layers.size(), "it is the y of the layer below");
  absent("dx", 1, layers.size(), "it goes to the layer below");
  absent("dy", 0, layers.size() - 1, "it comes from the layer above");
  absent("mask", layers.size() - 1, layers.size(), "no layer is above");
  for (const auto& layer : layers) {
    if (is_reverse(layer) != is_reverse(layers[0]))
      throw std::invalid_argument("reverse must be the same for all stacked layers, got both");
  }
}

// The sizes of a call, from its first pass; the other passes are held against them.
Shape call_shape(const std::string& cell, const std::vector<py::dict>& passes,
                 const py::object& lengths, const std::optional<std::string>& compute, bool stacked,
                 bool backward) {
  if (passes.empty()) throw std::invalid_argument("passes must not be empty");
  const DeviceArray x(require(passes[0], "x"), "x");
  const DeviceArray weight_ih(require(passes[0], "weight_ih"), "weight_ih");
  const DeviceArray weight_hh(require(passes[0], "weight_hh"), "weight_hh");
  if (x.shape.size() != 2 && x.shape.size() != 3) {
    throw std::invalid_argument("x must have shape (T, B, I), or (T, B) for tokens, got " +
                                shape_text(x.shape));
  }
  if (weight_ih.shape.size() != 2 || weight_hh.shape.size() != 2) {
    throw std::invalid_argument("weight_ih and weight_hh must have 2 axes, got shapes " +
                                shape_text(weight_ih.shape) + " and " +
                                shape_text(weight_hh.shape));
  }
  const Shape shape =
      make_shape(cell, static_cast<Index>(passes.size()), stacked, weight_ih.shape[1],
                 weight_hh.shape[1], x.shape[0], x.shape[1], lengths, x.shape.size() == 2, compute);
  if (shape.stacked) check_stacked(passes, backward);
  return shape;
}

template <class T>
Parameters<T> read_parameters(const Shape& shape, const py::dict& pass, Index inputs) {
  const Index rows = cell_facts(shape.cell).gates * shape.units;
  return {
      .inputs = inputs,
      .units = shape.units,
      .w_ih = device_pointer<const T>(require(pass, "weight_ih"), "weight_ih", {rows, inputs}),
      .w_hh = device_pointer<const T>(require(pass, "weight_hh"), "weight_hh", {rows, shape.units}),
      .bias = device_pointer<const T>(get(pass, "bias"), "bias", {rows}),
      .bias_hn = device_pointer<const T>(get(pass, "bias_hn"), "bias_hn", {shape.units})};
}

std::byte* read_workspace(const py::object& workspace, Index bytes) {
  const DeviceArray array(workspace, "workspace");
  array.check_contiguous();
  if (array.shape.size() != 1 || array.size() * array.item_size < bytes ||
      array.address % 64 != 0 || array.read_only) {
    throw std::invalid_argument(
        "workspace must be writable, of one axis, aligned to 64 bytes and have " +
        std::to_string(bytes) + " of them, got " + std::to_string(array.size() * array.item_size));
  }
  return reinterpret_cast<std::byte*>(array.address);
}

// What forward and backward read alike of pass k: x as numbers or as tokens, mask and parameters.
template <class T, class Layer>
void read_input(const Shape& shape, const py::dict& pass, std::size_t k, bool backward,
                Layer& layer) {
  const bool above = shape.stacked && k > 0;
  const Index inputs = above ? shape.units : shape.inputs;
  if (!above && shape.tokens) {
    layer.tokens =
        device_sequence<const std::int64_t>(require(pass, "x"), "x", shape.steps, shape.batch, 0);
  } else if (!above || backward) {
    layer.x = device_sequence<const T>(require(pass, "x"), "x", shape.steps, shape.batch, inputs);
  }
  if (shape.stacked) {
    layer.mask =
        device_sequence<const T>(get(pass, "mask"), "mask", shape.steps, shape.batch, shape.units);
  }
  layer.reverse = is_reverse(pass);
  layer.parameters = read_parameters<T>(shape, pass, inputs);
}

void run_forward(const std::string& cell, const std::vector<py::dict>& passes,
                 const py::object& lengths, const std::optional<std::string>& compute,
                 const py::object& workspace, std::uintptr_t stream, bool stacked) {
  const Shape shape = call_shape(cell, passes, lengths, compute, stacked, false);
  const auto& facts = cell_facts(shape.cell);
  const Index batch = shape.batch, units = shape.units, live = shape.live_rows();
  const DeviceArray weights(require(passes[0], "weight_hh"), "weight_hh");
  by_type(weights.type, "weight_hh", [&]<class T>(T) {
    std::vector<cuda::ForwardLayer<T>> layers;
    for (const auto& pass : passes) {
      cuda::ForwardLayer<T> layer{};
      read_input<T>(shape, pass, layers.size(), false, layer);
      layer.h = device_pointer<T>(require(pass, "h"), "h", {batch, units});
      layer.y = device_sequence<T>(require(pass, "y"), "y", shape.steps, batch, units);
      if (facts.saved > 0)
        layer.saved = device_pointer<T>(get(pass, "saved"), "saved", {live, facts.saved, units});
      if (facts.cell_state) {
        layer.c = device_pointer<T>(require(pass, "c"), "c", {batch, units});
        layer.cells = device_pointer<T>(get(pass, "cells"), "cells", {live, units});
      }
      layers.push_back(layer);
    }
    std::byte* const memory = read_workspace(workspace, cuda::forward_workspace<T>(shape));
    const GilReleased release;
    cuda::forward(shape, layers, memory, reinterpret_cast<void*>(stream));
  });
}

void run_backward(const std::string& cell, const std::vector<py::dict>& passes,
                  const py::object& lengths, const std::optional<std::string>& compute,
                  const py::object& workspace, std::uintptr_t stream, bool stacked) {
  const Shape shape = call_shape(cell, passes, lengths, compute, stacked, true);
  const auto& facts = cell_facts(shape.cell);
  const Index batch = shape.batch, units = shape.units, live = shape.live_rows();
  const Index rows = facts.gates * units;
  const DeviceArray weights(require(passes[0], "weight_hh"), "weight_hh");
  by_type(weights.type, "weight_hh", [&]<class T>(T) {
    std::vector<cuda::BackwardLayer<T>> layers;
    for (const auto& pass : passes) {
      if (!get(pass, "state_gradients").is_none())
        throw std::invalid_argument("state_gradients are not computed on a GPU, only on the CPU");
      cuda::BackwardLayer<T> layer{};
      read_input<T>(shape, pass, layers.size(), true, layer);
      layer.h_0 = device_pointer<const T>(require(pass, "h_0"), "h_0", {batch, units});
      layer.y = device_sequence<const T>(require(pass, "y"), "y", shape.steps, batch, units);
      layer.dh = device_pointer<T>(require(pass, "dh"), "dh", {batch, units});
      if (facts.saved > 0) {
        layer.saved =
            device_pointer<const T>(require(pass, "saved"), "saved", {live, facts.saved, units});
      }
      if (facts.cell_state) {
        layer.c_0 = device_pointer<const T>(require(pass, "c_0"), "c_0", {batch, units});
        layer.cells = device_pointer<const T>(require(pass, "cells"), "cells", {live, units});
        layer.dc = device_pointer<T>(require(pass, "dc"), "dc", {batch, units});
      }
      layer.dy = device_sequence<const T>(get(pass, "dy"), "dy", shape.steps, batch, units);
      const Index inputs = layer.parameters.inputs;
      if (!layer.tokens.data)
        layer.dx = device_sequence<T>(get(pass, "dx"), "dx", shape.steps, batch, inputs);
      layer.dw_ih = device_pointer<T>(require(pass, "dweight_ih"), "dweight_ih", {rows, inputs});
      layer.dw_hh = device_pointer<T>(require(pass, "dweight_hh"), "dweight_hh", {rows, units});
      layer.dbias = device_pointer<T>(get(pass, "dbias"), "dbias", {rows});
      layer.dbias_hn = device_pointer<T>(get(pass, "dbias_hn"), "dbias_hn", {units});
      layers.push_back(layer);
    }
    std::byte* const memory = read_workspace(workspace, cuda::backward_workspace<T>(shape));
    const GilReleased release;
    cuda::backward(shape, layers, memory, reinterpret_cast<void*>(stream));
  });
}

template <bool Backward>
Index workspace(const std::string& cell, Index passes, Index inputs, Index units, Index steps,
                Index batch, const py::object& lengths, bool tokens, const std::string& dtype,
                const std::optional<std::string>& compute, bool stacked) {
  const Shape shape =
      make_shape(cell, passes, stacked, inputs, units, steps, batch, lengths, tokens, compute);
  return by_type(dtype, "dtype", [&]<class T>(T) {
    return Backward ? cuda::backward_workspace<T>(shape) : cuda::forward_workspace<T>(shape);
  });
}

cuda::LayerSplit split_of(const Shape& shape, const std::string& dtype, Index layers,
                          bool backward) {
  constexpr Index most = 1 << 20;  // each has its place in what is told
  if (layers < 1 || layers > most) {
    const auto wanted = layers < 1 ? "at least 1" : "at most " + std::to_string(most);
    throw std::invalid_argument("layers must be " + wanted + ", got " + std::to_string(layers));
  }
  if (layers > 1 && shape.passes > 1) {
    return {std::vector<int>(static_cast<std::size_t>(layers), 1),
            "a launch for each layer: it takes both directions of the one below"};
  }
  return by_type(dtype, "dtype", [&]<class T>(T) {
    return cuda::layer_split<T>(shape, static_cast<int>(layers), backward);
  });
}

std::vector<int> layers_per_launch(const std::string& cell, Index units, Index steps, Index batch,
                                   Index layers, const std::string& dtype,
                                   const std::optional<std::string>& compute, bool backward) {
  const Shape shape =
      make_shape(cell, 1, false, units, units, steps, batch, py::none(), false, compute);
  return split_of(shape, dtype, layers, backward).launches;
}

py::dict plan(const std::string& cell, Index inputs, Index units, Index steps, Index batch,
              Index directions, const std::string& dtype, const std::optional<std::string>& compute,
              bool training, Index layers) {
  const Shape one =
      make_shape(cell, directions, false, inputs, units, steps, batch, py::none(), false, compute);
  const auto describe = [&]<class T>(T, bool backward) {
    const auto split = split_of(one, dtype, layers, backward);
    Shape shape = one;
    if (split.launches[0] > 1) shape.passes = split.launches[0], shape.stacked = true;
    const auto chosen = cuda::plan_of<T>(shape, backward);
    py::dict d;
    d["path"] = chosen.path;
    d["layers_per_launch"] = split.launches;
    d["groups"] = chosen.plan.groups;
    d["blocks_per_group"] = chosen.plan.blocks;
    d["units_per_block"] = chosen.plan.units * chosen.plan.slices_per_block;
    d["shared_bytes"] = chosen.plan.shared_bytes;
    d["workspace_bytes"] =
        backward ? cuda::backward_workspace<T>(shape) : cuda::forward_workspace<T>(shape);
    d["reason"] = split.reason.empty() ? chosen.reason : split.reason + "; " + chosen.reason;
    return d;
  };
  return by_type(dtype, "dtype", [&]<class T>(T type) {
    auto d = describe(type, false);
    if (training) d["backward"] = describe(type, true);
    return d;
  });
}

void run_matmul(const py::object& a, const py::object& b, const py::object& out, bool transpose_a,
                bool transpose_b, const py::object& bias, bool accumulate,
                const std::optional<std::string>& compute, std::uintptr_t stream) {
  const DeviceArray left(a, "a"), right(b, "b");
  if (left.shape.size() != 2 || right.shape.size() != 2) {
    throw std::invalid_argument("a and b must have 2 axes, got shapes " + shape_text(left.shape) +
                                " and " + shape_text(right.shape));
  }
  if (accumulate && !bias.is_none())
    throw std::invalid_argument("accumulate and bias must not be given together");
  by_type(left.type, "a", [&]<class T>(T) {
    const Index rows = left.shape[transpose_a ? 1 : 0], depth = left.shape[transpose_a ? 0 : 1];
    const Index columns = right.shape[transpose_b ? 0 : 1];
    const T* b_data = transpose_b ? device_pointer<const T>(b, "b", {columns, depth})
                                  : device_pointer<const T>(b, "b", {depth, columns});
    const MatmulProblem<T> problem{
        .rows = rows,
        .columns = columns,
        .depth = depth,
        .a = device_pointer<const T>(a, "a", {left.shape[0], left.shape[1]}),
        .a_row = transpose_a ? 1 : depth,
        .a_depth = transpose_a ? rows : 1,
        .b = b_data,
        .b_depth = transpose_b ? 1 : columns,
        .b_column = transpose_b ? depth : 1,
        .bias = device_pointer<const T>(bias, "bias", {columns}),
        .c = device_pointer<T>(out, "out", {rows, columns}),
        .c_row = columns,
        .accumulate = accumulate};
    if (!problem.c) throw std::invalid_argument("out must be given");
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    if (std::max({rows, columns, depth}) > most) {
      throw std::invalid_argument("a and b must have at most " + std::to_string(most) +
                                  " rows and columns, got shapes " + shape_text(left.shape) +
                                  " and " + shape_text(right.shape));
    }
    const Compute mode = read_compute(compute);
    const GilReleased release;
    cuda::matmul(problem, mode, reinterpret_cast<void*>(stream));
  });
}

py::dict describe(const cuda::DeviceFacts& facts) {
  py::dict d;
  d["name"] = facts.name;
  d["capability"] = py::make_tuple(facts.major, facts.minor);
  d["multiprocessors"] = facts.multiprocessors;
  d["memory"] = facts.memory_bytes;
  return d;
}

py::list devices() {
  py::list list;
  for (const auto& facts : cuda::all_devices()) list.append(describe(facts));
  return list;
}

py::dict facts(const std::string& cell) {
  const auto& f = cell_facts(find_cell(cell));
  py::dict d;
  d["gates"] = f.gates;
  d["saved"] = f.saved;
  d["cell_state"] = f.cell_state;
  d["bias_hn"] = f.recurrent_bias_gate >= 0;
  return d;
}

#ifdef RNNKERN_EMULATION
void set_device_facts(int multiprocessors, int shared_bytes, Index run_bytes, bool descending,
                      std::uint32_t most_polls) {
  cuda::set_device({.name = "emulation",
                    .major = 9,
                    .minor = 0,
                    .multiprocessors = multiprocessors,
                    .shared_bytes = shared_bytes,
                    .memory_bytes = Index{1} << 30,
                    .run_bytes = run_bytes},
                   descending, most_polls);
}
#endif

}  // namespace

PYBIND11_MODULE(RNNKERN_MODULE, m) {
  m.doc() = "Kernels of rnnkern for GPUs, private: the layers are the interface.";

  m.def("devices", devices, "Name, capability, multiprocessors and memory (bytes) of each device.");
  m.def("facts", facts, py::arg("cell"), "What the arrays of a cell's calls depend on.");
  m.def("plan", plan, py::arg("cell"), py::arg("inputs"), py::arg("units"), py::arg("steps"),
        py::arg("batch"), py::arg("directions"), py::arg("dtype"), py::arg("compute"),
        py::arg("training"), py::arg("layers") = 1,
        "How the first call for so many stacked layers runs on the current device, and why; with "
        "training, `backward` says the same of its backward pass.");
  m.def("layers_per_launch", layers_per_launch, py::arg("cell"), py::arg("units"), py::arg("steps"),
        py::arg("batch"), py::arg("layers"), py::arg("dtype"), py::arg("compute"),
        py::arg("backward"),
        "How many of the stacked layers each call is best given, from the first layer up.");
  for (const bool backward : {false, true}) {
    m.def(backward ? "backward_workspace" : "forward_workspace",
          backward ? workspace<true> : workspace<false>, py::arg("cell"), py::arg("passes"),
          py::arg("inputs"), py::arg("units"), py::arg("steps"), py::arg("batch"),
          py::arg("lengths"), py::arg("tokens"), py::arg("dtype"), py::arg("compute"),
          py::arg("stacked") = false, "Bytes of workspace that a call of that size takes.");
  }
  m.def("forward", run_forward, py::arg("cell"), py::arg("passes"), py::arg("lengths"),
        py::arg("compute"), py::arg("workspace"), py::arg("stream"), py::arg("stacked") = false,
        "The directions of one layer or, stacked, layers in one direction from the first up: each "
        "but the first has None as x and takes the y below it, times the mask (T, B, H) there if "
        "any. Each pass is a dict of x, h, c, weight_ih, weight_hh, bias, bias_hn, reverse, y, "
        "saved, cells, mask; what does not apply is None. Arguments are as in _core.forward; "
        "saved (N, saved, H) and cells (N, H) are written where given. Tokens outside the weights "
        "count as the nearest inside.");
  m.def("backward", run_backward, py::arg("cell"), py::arg("passes"), py::arg("lengths"),
        py::arg("compute"), py::arg("workspace"), py::arg("stream"), py::arg("stacked") = false,
        "Gradients of forward(), in the same order: each pass is a dict of x, h_0, c_0, "
        "weight_ih, weight_hh, reverse, y, saved, cells, mask, dy, dh, dc, dx, dweight_ih, "
        "dweight_hh, dbias, dbias_hn as in _core.backward. Directions may share dx. Of stacked "
        "layers the first alone has dx and the last alone dy; the x of each other is the y below "
        "it, times the mask.");
  m.def("force_groups", cuda::force_groups, py::arg("groups"),
        "To measure with: the groups of the batch that every later plan must have; 0 as is best.");
  m.def("matmul", run_matmul, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("transpose_a"),
        py::arg("transpose_b"), py::arg("bias"), py::arg("accumulate"), py::arg("compute"),
        py::arg("stream"),
        "out = a @ b + bias for C-contiguous 2-D arrays; with accumulate, out += a @ b.");
#ifdef RNNKERN_EMULATION
  m.def(
      "set_device_facts", set_device_facts, py::arg("multiprocessors") = 8,
      py::arg("shared_bytes") = 227 << 10, py::arg("run_bytes") = Index{256} << 20,
      py::arg("descending") = false, py::arg("most_polls") = cuda::kMostPolls,
      "The device that is made up: its size, what the buffers of a run of steps may take, whether "
      "a block's threads run from the last to the first, and how often a block asks for a flag "
      "before the launch is given up.");
#endif
}

}  // namespace rnnkern
