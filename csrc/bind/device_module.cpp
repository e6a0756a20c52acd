// SPDX-License-Identifier: Apache-2.0
// rnnkern._cuda and, of the same text, rnnkern._emulation: device arrays in, checked pointers out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bind/arguments.h"
#include "bind/device_arrays.h"
#include "bind/device_drops.h"
#include "bind/gil.h"
#include "core/cells.h"
#include "core/schedule.h"
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

Compute read_compute(const std::optional<std::string>& name) {
  if (!name) return Compute::exact;
  if (*name == "tfloat32") return Compute::tfloat32;
  if (*name == "bfloat16") return Compute::bfloat16;
  if (*name == "float16") return Compute::float16;
  throw std::invalid_argument("compute must be None, 'tfloat32', 'bfloat16' or 'float16', got '" +
                              *name + "'");
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
  check_lengths(values, steps);
  return values;
}

// Of a call for one layer of that many directions, or for stacked layers in one direction.
Shape make_shape(const LayerSpec& spec, Index layers, Index steps, Index batch,
                 const py::object& lengths, bool tokens) {
  if (!spec.facts().recurrent_product) {
    throw std::invalid_argument("cell must be one with a recurrent product, got '" +
                                std::string(spec.facts().name) + "'");
  }
  // The kernels count in 32 bits.
  constexpr Index most = std::numeric_limits<std::int32_t>::max();
  const auto check = [](const char* name, Index value, Index end) {
    if (value < 1 || value >= end) {
      const auto wanted = value < 1 ? "at least 1" : "below " + std::to_string(end);
      throw std::invalid_argument(std::string(name) + " must be " + wanted + ", got " +
                                  std::to_string(value));
    }
  };
  check("inputs", spec.inputs, most), check("units", spec.units, most / 64);
  check("steps", steps, most), check("batch", batch, most);
  if (steps * batch >= most) {
    throw std::invalid_argument("x has too many elements for one call: " + std::to_string(steps) +
                                " steps of " + std::to_string(batch) + " rows");
  }
  if (layers < 1 || layers > cuda::kMaxStrands || (layers > 1 && spec.directions > 1)) {
    throw std::invalid_argument("layers must be 1 to " + std::to_string(cuda::kMaxStrands) +
                                " in one direction, or 1 in both, got " + std::to_string(layers) +
                                " in " + std::to_string(spec.directions));
  }
  if (spec.facts().layer_norm)
    throw std::invalid_argument("cell: a GPU has no layer normalisation inside a cell");
  return {.cell = spec.cell,
          .inputs = spec.inputs,
          .units = spec.units,
          .steps = steps,
          .batch = batch,
          .strands = static_cast<int>(layers > 1 ? layers : spec.directions),
          .stacked = layers > 1,
          .tokens = tokens,
          .compute = read_compute(spec.compute),
          .drops = std::max({spec.recurrent_dropout, spec.zoneout, spec.cell_zoneout}) > 0,
          .lengths = read_lengths(lengths, steps, batch),
          .given_functions = !spec.options.empty() || spec.facts().unit_weights > 0};
}

bool is_reverse(const py::dict& strand) {
  const auto reverse = get(strand, "reverse");
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

template <class T>
Parameters<T> read_parameters(const Shape& shape, const py::dict& strand, Index inputs) {
  const auto& facts = cell_facts(shape.cell);
  const Index rows = facts.gates * shape.units;
  const auto unit_weights =
      facts.unit_weights > 0 ? require(strand, "unit_weights") : py::object(py::none());
  return {
      .inputs = inputs,
      .units = shape.units,
      .outputs = shape.units,
      .w_ih = device_pointer<const T>(require(strand, "weight_ih"), "weight_ih", {rows, inputs}),
      .w_hh =
          device_pointer<const T>(require(strand, "weight_hh"), "weight_hh", {rows, shape.units}),
      .bias = device_pointer<const T>(get(strand, "bias"), "bias", {rows}),
      .bias_hn = device_pointer<const T>(get(strand, "bias_hn"), "bias_hn", {shape.units}),
      .unit_weights =
          device_pointer<const T>(unit_weights, "unit_weights", {facts.unit_weights, shape.units})};
}

std::byte* read_workspace(const py::object& workspace, Index bytes) {
  const DeviceArray array(workspace, "workspace");
  array.check_contiguous();
  if (array.axes != 1 || array.size() * array.item < bytes || array.address % 64 != 0 ||
      !array.writable) {
    array.refuse("be writable, of one axis, aligned to 64 bytes and have " + std::to_string(bytes) +
                 " of them, got " + std::to_string(array.size() * array.item));
  }
  return array.data<std::byte>();
}

// What forward and backward read alike of strand k: x as numbers or as tokens, mask, parameters and
// options.
template <class T, class Layer>
void read_input(const Shape& shape, const std::vector<CellOptions<double>>& options,
                const py::dict& strand, std::size_t k, bool backward, Layer& layer) {
  const bool above = shape.stacked && k > 0;
  const Index inputs = above ? shape.units : shape.inputs;
  if (!above && shape.tokens) {
    layer.tokens =
        device_sequence<const std::int64_t>(require(strand, "x"), "x", shape.steps, shape.batch, 0);
  } else if (!above || backward) {
    layer.x = device_sequence<const T>(require(strand, "x"), "x", shape.steps, shape.batch, inputs);
  }
  if (shape.stacked) {
    layer.mask = device_sequence<const T>(get(strand, "mask"), "mask", shape.steps, shape.batch,
                                          shape.units);
  }
  layer.reverse = is_reverse(strand);
  layer.parameters = read_parameters<T>(shape, strand, inputs);
  if (!options.empty()) layer.options = static_cast<CellOptions<T>>(options[shape.stacked ? 0 : k]);
}

// One call's sizes, and its kernels.
class BoundCall {
 public:
  BoundCall(const py::handle& spec, Index steps, Index batch, const py::object& lengths,
            bool tokens, Index layers)
      : spec_(read_spec(spec)), shape_(make_shape(spec_, layers, steps, batch, lengths, tokens)) {
    by_dtype(spec_, [&]<class T>(T) {
      forward_workspace = cuda::forward_workspace<T>(shape_);
      backward_workspace = cuda::backward_workspace<T>(shape_);
    });
  }

  Index forward_workspace = 0, backward_workspace = 0;  // bytes

  Index live() const { return shape_.live_rows(); }
  void forward(const std::vector<py::dict>& strands, const py::object& workspace,
               std::uintptr_t stream) const;
  void backward(const std::vector<py::dict>& strands, const py::object& workspace,
                std::uintptr_t stream) const;

 private:
  void check(const std::vector<py::dict>& strands, bool backward) const {
    if (static_cast<int>(strands.size()) != shape_.strands) {
      throw std::invalid_argument("strands must be " + std::to_string(shape_.strands) + ", got " +
                                  std::to_string(strands.size()));
    }
    if (shape_.stacked) check_stacked(strands, backward);
  }

  LayerSpec spec_;
  Shape shape_;
};

void BoundCall::forward(const std::vector<py::dict>& strands, const py::object& workspace,
                        std::uintptr_t stream) const {
  check(strands, false);
  const Shape& shape = shape_;
  const auto& facts = cell_facts(shape.cell);
  const Index batch = shape.batch, units = shape.units, live = shape.live_rows();
  by_dtype(spec_, [&]<class T>(T) {
    std::vector<cuda::ForwardLayer<T>> layers;
    for (const auto& strand : strands) {
      cuda::ForwardLayer<T> layer{};
      read_input<T>(shape, spec_.options, strand, layers.size(), false, layer);
      layer.h = device_pointer<T>(require(strand, "h"), "h", {batch, units});
      layer.y = device_sequence<T>(require(strand, "y"), "y", shape.steps, batch, units);
      if (facts.saved > 0)
        layer.saved = device_pointer<T>(get(strand, "saved"), "saved", {live, facts.saved, units});
      if (facts.cell_state) {
        layer.c = device_pointer<T>(require(strand, "c"), "c", {batch, units});
        layer.cells = device_pointer<T>(get(strand, "cells"), "cells", {live, units});
      }
      read_drops(spec_, shape, strand, layer.saved || layer.cells, layer);
      layers.push_back(layer);
    }
    std::byte* const memory = read_workspace(workspace, forward_workspace);
    const GilReleased release;
    cuda::forward(shape, layers, memory, reinterpret_cast<void*>(stream));
  });
}

void BoundCall::backward(const std::vector<py::dict>& strands, const py::object& workspace,
                         std::uintptr_t stream) const {
  check(strands, true);
  const Shape& shape = shape_;
  const auto& facts = cell_facts(shape.cell);
  const Index batch = shape.batch, units = shape.units, live = shape.live_rows();
  const Index rows = facts.gates * units;
  by_dtype(spec_, [&]<class T>(T) {
    std::vector<cuda::BackwardLayer<T>> layers;
    for (const auto& strand : strands) {
      cuda::BackwardLayer<T> layer{};
      read_input<T>(shape, spec_.options, strand, layers.size(), true, layer);
      layer.h_0 = device_pointer<const T>(require(strand, "h_0"), "h_0", {batch, units});
      layer.y = device_sequence<const T>(require(strand, "y"), "y", shape.steps, batch, units);
      layer.dh = device_pointer<T>(require(strand, "dh"), "dh", {batch, units});
      if (facts.saved > 0) {
        layer.saved =
            device_pointer<const T>(require(strand, "saved"), "saved", {live, facts.saved, units});
      }
      if (facts.cell_state) {
        layer.c_0 = device_pointer<const T>(require(strand, "c_0"), "c_0", {batch, units});
        layer.cells = device_pointer<const T>(require(strand, "cells"), "cells", {live, units});
        layer.dc = device_pointer<T>(require(strand, "dc"), "dc", {batch, units});
      }
      read_drops(spec_, shape, strand, true, layer);
      layer.dy = device_sequence<const T>(get(strand, "dy"), "dy", shape.steps, batch, units);
      const Index inputs = layer.parameters.inputs;
      if (!layer.tokens.data)
        layer.dx = device_sequence<T>(get(strand, "dx"), "dx", shape.steps, batch, inputs);
      layer.dw_ih = device_pointer<T>(require(strand, "dweight_ih"), "dweight_ih", {rows, inputs});
      layer.dw_hh = device_pointer<T>(require(strand, "dweight_hh"), "dweight_hh", {rows, units});
      layer.dbias = device_pointer<T>(get(strand, "dbias"), "dbias", {rows});
      layer.dbias_hn = device_pointer<T>(get(strand, "dbias_hn"), "dbias_hn", {units});
      if (facts.unit_weights > 0) {
        layer.dunit_weights = device_pointer<T>(require(strand, "dunit_weights"), "dunit_weights",
                                                {facts.unit_weights, units});
      }
      layers.push_back(layer);
    }
    std::byte* const memory = read_workspace(workspace, backward_workspace);
    const GilReleased release;
    cuda::backward(shape, layers, memory, reinterpret_cast<void*>(stream));
  });
}

cuda::LayerSplit split_of(const LayerSpec& spec, const Shape& shape, bool backward) {
  if (spec.layers > 1 && shape.strands > 1) {
    return {std::vector<int>(static_cast<std::size_t>(spec.layers), 1),
            "a launch for each layer: it takes both directions of the one below"};
  }
  return by_dtype(spec, [&]<class T>(T) {
    return cuda::layer_split<T>(shape, static_cast<int>(spec.layers), backward);
  });
}

std::vector<int> layers_per_launch(const py::handle& given, Index steps, Index batch,
                                   bool backward) {
  LayerSpec spec = read_spec(given);
  spec.inputs = spec.units;  // the same for all layers but the first
  return split_of(spec, make_shape(spec, 1, steps, batch, py::none(), false), backward).launches;
}

py::dict plan(const py::handle& given, Index steps, Index batch, bool training) {
  const LayerSpec spec = read_spec(given);
  const Shape one = make_shape(spec, 1, steps, batch, py::none(), false);
  const auto describe = [&]<class T>(T, bool backward) {
    const auto split = split_of(spec, one, backward);
    Shape shape = one;
    if (split.launches[0] > 1) shape.strands = split.launches[0], shape.stacked = true;
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
  return by_dtype(spec, [&]<class T>(T type) {
    auto d = describe(type, false);
    if (training) d["backward"] = describe(type, true);
    return d;
  });
}

void run_matmul(const py::object& a, const py::object& b, const py::object& out, bool transpose_a,
                bool transpose_b, const py::object& bias, bool accumulate,
                const std::optional<std::string>& compute, std::uintptr_t stream) {
  const DeviceArray left(a, "a"), right(b, "b");
  if (left.axes != 2 || right.axes != 2) {
    throw std::invalid_argument("a and b must have 2 axes, got shapes " + left.shape_text() +
                                " and " + right.shape_text());
  }
  if (accumulate && !bias.is_none())
    throw std::invalid_argument("accumulate and bias must not be given together");
  by_type(left, [&]<class T>(T) {
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
                                  " rows and columns, got shapes " + left.shape_text() + " and " +
                                  right.shape_text());
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

#ifdef RNNKERN_EMULATION
void set_device_facts(int multiprocessors, int shared_bytes, Index chunk_bytes, bool descending,
                      std::uint32_t most_polls) {
  cuda::set_device({.name = "emulation",
                    .major = 9,
                    .minor = 0,
                    .multiprocessors = multiprocessors,
                    .shared_bytes = shared_bytes,
                    .memory_bytes = Index{1} << 30,
                    .chunk_bytes = chunk_bytes},
                   descending, most_polls);
}
#endif

}  // namespace

PYBIND11_MODULE(RNNKERN_MODULE, m) {
  m.doc() = "Kernels of rnnkern for GPUs, private: the layers are the interface.";

  m.def("devices", devices, "Name, capability, multiprocessors and memory (bytes) of each device.");
  m.def("plan", plan, py::arg("spec"), py::arg("steps"), py::arg("batch"), py::arg("training"),
        "How the first call for the layers runs on the current device, and why; with training, "
        "`backward` says the same of its backward pass.");
  m.def("layers_per_launch", layers_per_launch, py::arg("spec"), py::arg("steps"), py::arg("batch"),
        py::arg("backward"),
        "How many of the layers, in one direction, each call is best given, from the first up.");
  py::class_<BoundCall>(m, "Call",
                        "All directions of one layer or, stacked, layers in one direction from the "
                        "first up, over a sequence.")
      .def(py::init<const py::handle&, Index, Index, const py::object&, bool, Index>(),
           py::arg("spec"), py::arg("steps"), py::arg("batch"), py::arg("lengths"), py::kw_only(),
           py::arg("tokens") = false, py::arg("layers") = 1,
           "The inputs of spec are those of the first of so many layers. lengths (B,), or None, "
           "are in host memory.")
      .def_property_readonly(
          "live", [](const py::handle& self) { return built<BoundCall>(self, "self").live(); },
          "Steps of all rows.")
      .def_property_readonly(
          "forward_workspace",
          [](const py::handle& self) { return built<BoundCall>(self, "self").forward_workspace; },
          "Bytes that forward() takes.")
      .def_property_readonly(
          "backward_workspace",
          [](const py::handle& self) { return built<BoundCall>(self, "self").backward_workspace; },
          "Bytes that backward() takes.")
      .def(
          "forward",
          [](const py::handle& self, const std::vector<py::dict>& strands,
             const py::object& workspace, std::uintptr_t stream) {
            built<BoundCall>(self, "self").forward(strands, workspace, stream);
          },
          py::arg("strands"), py::arg("workspace"), py::arg("stream"),
          "Each strand, a direction of a layer, is a dict of x, h, c, weight_ih, weight_hh, bias, "
          "bias_hn, unit_weights, reverse, y, saved, cells, mask, h_factors, zone_h, zone_c, "
          "fresh_c; what does not apply is None. h and c (B, H) are advanced; y, saved (N, saved, "
          "H), cells (N, H) and fresh_c (N, H), c before its zoneout, are written where given. "
          "h_factors (B, H) are of what recurrent products take of h; zone_h and zone_c (T, B, H), "
          "booleans, say which units keep their value: without them all do by a share. Of stacked "
          "layers each but the first has None as x and takes the y below it, times the mask (T, B, "
          "H) there if any. Tokens outside the weights count as the nearest inside.")
      .def(
          "backward",
          [](const py::handle& self, const std::vector<py::dict>& strands,
             const py::object& workspace, std::uintptr_t stream) {
            built<BoundCall>(self, "self").backward(strands, workspace, stream);
          },
          py::arg("strands"), py::arg("workspace"), py::arg("stream"),
          "Gradients of forward(), in the same order: each strand is a dict of x, h_0, c_0, "
          "weight_ih, weight_hh, unit_weights, reverse, y, saved, cells, mask, h_factors, zone_h, "
          "zone_c, fresh_c, dy, dh, dc, dx, dweight_ih, dweight_hh, dbias, dbias_hn, "
          "dunit_weights as of "
          "_core.Kept.backward, in one direction. Directions may share dx. Of stacked layers the "
          "first alone has dx and the last alone dy; the x of each other is the y below it, times "
          "the mask.");
  m.def("force_groups", cuda::force_groups, py::arg("groups"),
        "To measure with: the groups of the batch that every later plan must have; 0 as is best.");
  m.def("matmul", run_matmul, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("transpose_a"),
        py::arg("transpose_b"), py::arg("bias"), py::arg("accumulate"), py::arg("compute"),
        py::arg("stream"),
        "out = a @ b + bias for C-contiguous 2-D arrays; with accumulate, out += a @ b.");
#ifdef RNNKERN_EMULATION
  m.def("set_device_facts", set_device_facts, py::arg("multiprocessors") = 8,
        py::arg("shared_bytes") = 227 << 10, py::arg("chunk_bytes") = Index{256} << 20,
        py::arg("descending") = false, py::arg("most_polls") = cuda::kMostPolls,
        "The device that is made up: its size, what the buffers of a chunk of steps may take, "
        "whether "
        "a block's threads run from the last to the first, and how often a block asks for a flag "
        "before the launch is given up.");
#endif
}

}  // namespace rnnkern
