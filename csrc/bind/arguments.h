// SPDX-License-Identifier: Apache-2.0
// Arguments that are no arrays: what a layer is, and objects of our own.
#pragma once

#include <pybind11/pybind11.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/options.h"
#include "core/cells.h"

namespace rnnkern {

namespace py = pybind11;

// The object that was built as its class builds them: pybind11 gives the memory of one that has only seen
// __new__ out as if it had been.
template <class C>
C& built(const py::handle& object, const char* name) {
  static const py::handle type = py::type::of<C>().release();
  const bool of_type =
      PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(type.ptr())) != 0;
  if (of_type) {
    const auto held = reinterpret_cast<py::detail::instance*>(object.ptr())->get_value_and_holder();
    if (held.holder_constructed()) return *static_cast<C*>(held.value_ptr());
  }
  throw py::type_error(std::string(name) + " must be a " +
                       py::str(type.attr("__name__")).template cast<std::string>() +
                       " that was built by its constructor, got " +
                       py::str(py::type::handle_of(object)).template cast<std::string>());
}

// The argument, which must not be None.
inline const py::handle& required(const py::handle& object, const char* name) {
  if (object.is_none()) throw std::invalid_argument(std::string(name) + " must be given");
  return object;
}

// One for each `of` of these, or none.
inline std::vector<py::object> read_each(const py::sequence& given, const char* name, Index count,
                                         const char* of, bool needed) {
  const py::tuple arrays(given);  // a sequence may be another each time it is asked
  if (arrays.empty() ? needed : arrays.size() != static_cast<std::size_t>(count)) {
    throw std::invalid_argument(std::string(name) + " must be one for each " + of +
                                (needed ? "" : ", or none"));
  }
  std::vector<py::object> each;
  for (const auto& own : arrays)
    each.push_back(py::reinterpret_borrow<py::object>(required(own, name)));
  return each;
}

// What two directions give together.
enum class Merge { concat, sum, average, product };

inline Merge read_merge(const std::string& name) {
  if (name == "concat") return Merge::concat;
  if (name == "sum") return Merge::sum;
  if (name == "average") return Merge::average;
  if (name == "product") return Merge::product;
  throw std::invalid_argument("merge must be 'concat', 'sum', 'average' or 'product', got '" +
                              name + "'");
}

// rnnkern.devices.LayerSpec: what a layer is, apart from its weights.
struct LayerSpec {
  int cell;
  Index inputs, units, outputs, layers, directions;
  bool reverse;  // of one direction: whether it is that from the last step to the first
  Merge merge;
  std::string dtype;
  std::optional<std::string> compute;
  std::vector<CellOptions<double>> options;  // one a direction, or none
  double zoneout, cell_zoneout;              // of a plain call
  double recurrent_dropout;                  // of training

  const CellFacts& facts() const { return cell_facts(cell); }
};

inline LayerSpec read_spec(const py::handle& spec) {
  const auto field = [&](const char* name) {
    py::object value = py::getattr(spec, name, py::none());
    if (value.is_none() && name != std::string("compute"))
      throw py::type_error(std::string("spec must be a LayerSpec, got one without ") + name);
    return value;
  };
  const auto size = [&](const char* name, Index most) {
    const py::object given = field(name);
    if (!py::isinstance<py::int_>(given)) {
      throw py::type_error(std::string(name) + " must be an integer, got " +
                           py::repr(given).cast<std::string>());
    }
    const auto value = PyLong_AsSsize_t(given.ptr());
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      throw std::invalid_argument(std::string(name) + " must be within 64 bits");
    }
    if (value < 1 || value > most) {
      throw std::invalid_argument(std::string(name) + " must be at least 1" +
                                  (value > most ? " and at most " + std::to_string(most) : "") +
                                  ", got " + std::to_string(value));
    }
    return Index{value};
  };
  const auto text = [](const py::object& value, const char* name) {
    try {
      if (py::isinstance<py::str>(value)) return value.cast<std::string>();
    } catch (const py::cast_error&) {  // a half of a character, which no UTF-8 has
    }
    throw py::type_error(std::string(name) + " must be a string, got " +
                         py::repr(value).cast<std::string>());
  };
  const auto truth = [&](const char* name) {
    const py::object given = field(name);
    if (!py::isinstance<py::bool_>(given)) {
      throw py::type_error(std::string(name) + " must be a bool, got " +
                           py::repr(given).cast<std::string>());
    }
    return given.cast<bool>();
  };
  const auto share = [&](const char* name, bool possible) {
    const py::object given = py::getattr(spec, name, py::float_(0.0));
    const double value = read_option(given, name);
    if (!(value >= 0 && value < 1) || (value > 0 && !possible)) {
      throw std::invalid_argument(
          std::string(name) +
          (possible ? " must be in 0..1, 1 excluded, got " : " must be 0 for this cell, got ") +
          py::str(given).cast<std::string>());
    }
    return value;
  };
  constexpr Index any = std::numeric_limits<Index>::max(), most_layers = Index{1} << 20;
  const py::object compute = field("compute");
  const Index directions = size("directions", 2);
  const int cell = find_cell(text(field("cell"), "cell"));
  const auto& facts = cell_facts(cell);
  return {.cell = cell,
          .inputs = size("inputs", any),
          .units = size("units", any),
          .outputs = size("outputs", any),
          .layers = size("layers", most_layers),
          .directions = directions,
          .reverse = truth("reverse"),
          .merge = read_merge(text(field("merge"), "merge")),
          .dtype = text(py::str(field("dtype")), "dtype"),
          .compute = compute.is_none() ? std::nullopt : std::optional(text(compute, "compute")),
          .options = read_options(py::getattr(spec, "options", py::none()),
                                  static_cast<std::size_t>(directions)),
          .zoneout = share("zoneout", !facts.layer_norm),
          .cell_zoneout = share("cell_zoneout", facts.cell_state && !facts.layer_norm),
          .recurrent_dropout =
              share("recurrent_dropout", facts.recurrent_product && !facts.layer_norm)};
}

// Calls f(float{}) or f(double{}), as the layer's dtype is.
template <class F>
auto by_dtype(const LayerSpec& spec, F f) {
  return by_type(dtype_of(spec.dtype), spec.dtype, "dtype", f);
}

// Name -> what the arrays of a cell's calls depend on, and what its parts are called.
inline py::dict cells() {
  py::dict all;
  for (const auto& facts : all_cells()) {
    const auto tuple = [](auto names) {
      py::list list;
      for (const char* name : names) list.append(name);
      return py::tuple(list);
    };
    py::dict d;
    d["gates"] = tuple(facts.gate_names);
    d["states"] = tuple(facts.states);
    d["saved"] = facts.saved;
    d["recurrent_product"] = facts.recurrent_product;
    d["recurrent_bias_gate"] = facts.recurrent_bias_gate;
    d["unit_weights"] = facts.unit_weights;
    d["layer_norm"] = facts.layer_norm;
    d["unit_weights_name"] = std::string(facts.unit_weights_name);
    all[py::str(std::string(facts.name))] = d;
  }
  return all;
}

}  // namespace rnnkern
