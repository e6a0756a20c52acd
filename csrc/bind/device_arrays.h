// SPDX-License-Identifier: Apache-2.0
// Arrays of any library in, checked pointers out, by the array interface that its module reads: what
// views.h is for NumPy arrays.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/problem.h"

namespace rnnkern {

namespace py = pybind11;

inline constexpr Index kMostBytes = Index{1} << 60;  // more than any memory has

#ifdef RNNKERN_EMULATION
inline constexpr const char* kArrayInterface = "__array_interface__";
#else
inline constexpr const char* kArrayInterface = "__cuda_array_interface__";
#endif

template <class T>
constexpr const char* kTypeText = std::is_same_v<T, float>    ? "<f4"
                                  : std::is_same_v<T, double> ? "<f8"
                                                              : "<i8";

inline std::string shape_text(const std::vector<Index>& shape) {
  std::string text;
  for (const Index n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

// What an array says of itself; strides in bytes.
struct DeviceArray {
  static constexpr std::uintptr_t kNowhere = 512;  // aligned as any array is; never read

  std::string name, type;
  std::uintptr_t address = 0;
  Index item_size = 0;
  std::vector<Index> shape, strides;
  bool read_only = false;

  DeviceArray(const py::object& object, const char* argument) : name(argument) {
    if (!py::hasattr(object, kArrayInterface)) {
      throw py::type_error(name + " must be an array with " + kArrayInterface + ", got " +
                           py::str(py::type::of(object)).cast<std::string>());
    }
    try {
      const auto facts = py::dict(object.attr(kArrayInterface));
      type = py::str(facts["typestr"]).cast<std::string>();
      shape = facts["shape"].cast<std::vector<Index>>();
      const auto data = facts["data"].cast<py::tuple>();
      address = data[0].cast<std::uintptr_t>(), read_only = data[1].cast<bool>();
      // CuPy's arrays without elements lie at 0, which as a pointer would say that there is no array.
      if (address == 0 && size() == 0) address = kNowhere;
      item_size = std::stoll(type.substr(2));
      strides = dense_strides();
      if (facts.contains("strides") && !facts["strides"].is_none())
        strides = facts["strides"].cast<std::vector<Index>>();
    } catch (const std::exception& error) {
      throw std::invalid_argument(name + " must have an " + kArrayInterface +
                                  " of its form: " + error.what());
    }
    if (strides.size() != shape.size()) {
      throw std::invalid_argument(name + " must have a stride for each axis, got " +
                                  shape_text(strides) + " for shape " + shape_text(shape));
    }
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      const Index last = shape[axis] - 1;
      if (last > 0 && (strides[axis] > kMostBytes / last || strides[axis] < -kMostBytes / last)) {
        throw std::invalid_argument(name + " must have an extent within memory, got strides " +
                                    shape_text(strides) + " for shape " + shape_text(shape));
      }
    }
  }

  // Numbers, of which there are no more than memory has bytes.
  Index size() const {
    Index size = 1;
    for (const Index n : shape) size *= n;
    return size;
  }

  template <class T>
  void check(std::initializer_list<Index> expected, bool writable) const {
    if (type != kTypeText<T> || shape != std::vector<Index>(expected)) {
      throw std::invalid_argument(name + " must be a " + kTypeText<T> + " array of shape " +
                                  shape_text(std::vector<Index>(expected)) + ", got " + type +
                                  " of shape " + shape_text(shape));
    }
    if (address % alignof(T) != 0) {
      throw std::invalid_argument(name +
                                  " must be aligned, got an address that is no multiple of " +
                                  std::to_string(alignof(T)));
    }
    if (writable && read_only) throw std::invalid_argument(name + " must be writable");
  }

  void check_contiguous() const {
    const auto dense = dense_strides();
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis] > 1 && strides[axis] != dense[axis] && size() > 0) {
        throw std::invalid_argument(name + " must be C-contiguous, got strides " +
                                    shape_text(strides));
      }
    }
  }

 private:
  std::vector<Index> dense_strides() const {
    std::vector<Index> dense(shape.size());
    Index stride = item_size;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      if (stride < 1 || shape[axis] < 0 || shape[axis] > kMostBytes / stride)
        throw std::invalid_argument("a size below 0 or beyond any memory");
      dense[axis] = stride, stride *= std::max<Index>(shape[axis], 1);
    }
    return dense;
  }
};

// A C-contiguous array of that very shape; None gives null.
template <class T>
T* device_pointer(const py::object& object, const char* name, std::initializer_list<Index> shape) {
  if (object.is_none()) return nullptr;
  const DeviceArray array(object, name);
  array.check<std::remove_const_t<T>>(shape, !std::is_const_v<T>);
  array.check_contiguous();
  return reinterpret_cast<T*>(array.address);
}

// Strides over time and batch are free; `inner` is the last axis, or 0 for a (T, B) array. None gives
// null.
template <class T>
Sequence<T> device_sequence(const py::object& object, const char* name, Index steps, Index batch,
                            Index inner) {
  if (object.is_none()) return {};
  const DeviceArray array(object, name);
  if (inner > 0) {
    array.check<std::remove_const_t<T>>({steps, batch, inner}, !std::is_const_v<T>);
  } else {
    array.check<std::remove_const_t<T>>({steps, batch}, !std::is_const_v<T>);
  }
  const auto item = static_cast<Index>(sizeof(T));
  for (std::size_t axis = 0; axis < array.strides.size(); ++axis) {
    const Index stride = array.strides[axis];
    if (stride % item != 0 || (axis == 2 && stride != item && inner > 1)) {
      throw std::invalid_argument(array.name + " must have a contiguous last axis, got strides " +
                                  shape_text(array.strides));
    }
    if (!std::is_const_v<T> && stride == 0 && array.shape[axis] > 1) {
      throw std::invalid_argument(array.name + " must have elements of its own, got strides " +
                                  shape_text(array.strides));
    }
  }
  return {reinterpret_cast<T*>(array.address), array.strides[0] / item, array.strides[1] / item};
}

}  // namespace rnnkern
