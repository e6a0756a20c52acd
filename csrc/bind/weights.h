// SPDX-License-Identifier: Apache-2.0
// The weights of one layer in one direction, as Python's objects and as the kernels' pointers.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "bind/arguments.h"
#include "bind/host_arrays.h"
#include "core/problem.h"

namespace rnnkern {

inline Compute read_compute(const std::optional<std::string>& name) {
  if (!name) return Compute::exact;
  if (*name == "bfloat16") return Compute::bfloat16;
  if (*name == "int8") return Compute::int8;
  throw std::invalid_argument("compute must be None, 'bfloat16' or 'int8', got '" + *name + "'");
}

// Field k of a tuple that may end before it.
inline py::object part_of(const py::tuple& tuple, std::size_t k) {
  return k < tuple.size() ? py::object(tuple[k]) : py::none();
}

// (weight_ih, weight_hh, bias, bias_hn[, unit_weights[, weight_hr[, gain_ih, gain_hh, gain_c, shift_c]]]), None
// where the cell has none, and of a cell that normalises the last ones, kept for as
// long as it lives. An array may be given other memory by who owns it, so that each call asks for the
// pointers anew.
class HeldWeights {
 public:
  HeldWeights(const CellFacts& facts, const py::handle& weights)
      : gates_(facts.gates),
        unit_rows_(facts.unit_weights),
        product_(facts.recurrent_product),
        biased_gate_(facts.recurrent_bias_gate != kNoGate),
        norms_(facts.layer_norm),
        norms_c_(facts.norms_c()) {
    if (!py::isinstance<py::tuple>(weights) || py::len(weights) < 4 || py::len(weights) > 10) {
      throw std::invalid_argument(
          "weights must be (weight_ih, weight_hh, bias, bias_hn[, unit_weights[, weight_hr"
          "[, gain_ih, gain_hh, gain_c, shift_c]]]) each, got " +
          py::str(py::type::handle_of(weights)).cast<std::string>());
    }
    const auto tuple = py::reinterpret_borrow<py::tuple>(weights);
    w_ih_ = tuple[0], w_hh_ = tuple[1], bias_ = tuple[2], bias_hn_ = tuple[3];
    unit_weights_ = part_of(tuple, 4), w_hr_ = part_of(tuple, 5);
    for (std::size_t k = 0; norms_ && k < 4; ++k) norm_[k] = part_of(tuple, 6 + k);
    if (unit_rows_ > 0) required(unit_weights_, "unit_weights");
    const HostArray ih(w_ih_, "weight_ih");
    if (!product_) {
      if (!w_hh_.is_none())
        throw std::invalid_argument("weight_hh must be None: the cell has no recurrent product");
      if (ih.axes != 2 || ih.shape[0] < gates_ || ih.shape[1] < 1)
        ih.refuse("have a row for each gate and at least one column, got shape " + ih.shape_text());
      if (!w_hr_.is_none())
        throw std::invalid_argument("weight_hr must be None: the cell has no recurrent product");
      inputs_ = ih.shape[1], units_ = outputs_ = ih.shape[0] / gates_;
      by_type(ih, [&]<class T>(T) { parameters<T>(); });
      return;
    }
    const HostArray hh(w_hh_, "weight_hh");
    if (ih.axes != 2 || hh.axes != 2) {
      throw std::invalid_argument("weight_ih and weight_hh must have 2 axes, got shapes " +
                                  ih.shape_text() + " and " + hh.shape_text());
    }
    inputs_ = ih.shape[1], outputs_ = hh.shape[1];
    units_ = w_hr_.is_none() ? outputs_ : hh.shape[0] / gates_;
    if (!w_hr_.is_none() && (facts.sees_h || norms_ || units_ == outputs_)) {
      throw std::invalid_argument(
          "weight_hr must be None for this cell, and where weight_hh is of as many units as h");
    }
    if (std::min({inputs_, units_, outputs_}) < 1) {
      throw std::invalid_argument(
          "weight_ih and weight_hh must have at least one column, got shapes " + ih.shape_text() +
          " and " + hh.shape_text());
    }
    by_type(hh, [&]<class T>(T) { parameters<T>(); });
  }

  Index inputs() const { return inputs_; }
  Index units() const { return units_; }
  Index outputs() const { return outputs_; }
  Type type() const { return HostArray(w_ih_, "weight_ih").type; }

  template <class T>
  Parameters<T> parameters() const {
    const Index rows = gates_ * units_;
    const T* const bias_hn = read<T>(bias_hn_, "bias_hn", {units_});
    return {.inputs = inputs_,
            .units = units_,
            .outputs = outputs_,
            .w_ih = read<T>(required(w_ih_, "weight_ih"), "weight_ih", {rows, inputs_}),
            .w_hh = product_ ? read<T>(required(w_hh_, "weight_hh"), "weight_hh", {rows, outputs_})
                             : nullptr,
            .bias = read<T>(bias_, "bias", {rows}),
            .bias_hn = biased_gate_ ? bias_hn : nullptr,
            .unit_weights = unit_rows_ > 0
                                ? read<T>(unit_weights_, "unit_weights", {unit_rows_, units_})
                                : nullptr,
            .w_hr = read<T>(w_hr_, "weight_hr", {outputs_, units_}),
            .norm = norm_parameters<T>()};
  }

 private:
  template <class T>
  NormParameters<const T> norm_parameters() const {
    if (!norms_) return {};
    const Index rows = gates_ * units_;
    NormParameters<const T> norm{
        .gain_ih = read<T>(required(norm_[0], "gain_ih"), "gain_ih", {rows}),
        .gain_hh = read<T>(required(norm_[1], "gain_hh"), "gain_hh", {rows})};
    if (norms_c_) {
      norm.gain_c = read<T>(required(norm_[2], "gain_c"), "gain_c", {units_});
      norm.shift_c = read<T>(norm_[3], "shift_c", {units_});
    }
    return norm;
  }

  Index gates_, unit_rows_, inputs_ = 0, units_ = 0, outputs_ = 0;
  bool product_, biased_gate_, norms_, norms_c_;
  py::object w_ih_, w_hh_, bias_, bias_hn_, unit_weights_, w_hr_;
  py::object norm_[4];  // gain_ih, gain_hh, gain_c, shift_c
};

}  // namespace rnnkern
