// SPDX-License-Identifier: Apache-2.0
// The options of a cell's equations, as rnnkern.devices.CellOptions has them.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/functions.h"

namespace rnnkern {

namespace py = pybind11;

inline double read_option(const py::handle& value, const char* name) {
  if (!py::isinstance<py::float_>(value)) {
    throw py::type_error(std::string(name) + " must be a float, got " +
                         py::repr(value).cast<std::string>());
  }
  const double number = value.cast<double>();
  if (std::isnan(number)) throw std::invalid_argument(std::string(name) + " must not be NaN");
  return number;
}

inline py::tuple read_tuple(const py::handle& value, std::size_t size, const char* name) {
  if (!py::isinstance<py::tuple>(value) || py::len(value) != size) {
    throw py::type_error(std::string(name) + " must be a tuple of " + std::to_string(size) +
                         ", got " + py::repr(value).cast<std::string>());
  }
  return py::reinterpret_borrow<py::tuple>(value);
}

// (name, alpha, beta)
inline GivenFunction<double> read_function(const py::handle& value) {
  const py::tuple parts = read_tuple(value, 3, "a function");
  const std::string name = py::str(parts[0]);
  for (std::size_t k = 0; k < std::size(kFunctions); ++k) {
    if (name != kFunctions[k].name) continue;
    return {static_cast<Function>(k), read_option(parts[1], "alpha"),
            read_option(parts[2], "beta")};
  }
  throw std::invalid_argument("a function must be one of functions(), got '" + name + "'");
}

// One a direction, or none where there are no options.
inline std::vector<CellOptions<double>> read_options(const py::handle& given,
                                                     std::size_t directions) {
  std::vector<CellOptions<double>> options;
  if (given.is_none()) return options;
  for (const auto& each : read_tuple(given, directions, "options")) {
    const py::tuple own = read_tuple(each, 5, "options of a direction");
    options.push_back({read_function(own[0]), read_function(own[1]), read_function(own[2]),
                       read_option(own[3], "clip"), read_option(own[4], "cell_clip")});
    if (!(options.back().clip > 0) || !(options.back().cell_clip > 0))
      throw std::invalid_argument("clip and cell_clip must be above 0");
  }
  return options;
}

// Name -> how many numbers a function takes, and what they are unless others are given.
inline py::dict functions() {
  py::dict all;
  for (const auto& facts : kFunctions)
    all[facts.name] = py::make_tuple(facts.numbers, facts.alpha, facts.beta);
  return all;
}

}  // namespace rnnkern
