// SPDX-License-Identifier: Apache-2.0
// NumPy arrays in, checked pointers out. A check that fails is a ValueError naming the argument, what
// was expected and what was given; the Python layer has looked before, so these guard the memory.
//
// Nothing is converted: an array that a conversion makes is gone before its pointer is used. And an
// array may change while a kernel runs without the GIL, so what serves as an index is copied first.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/problem.h"

namespace rnnkern {

namespace py = pybind11;

inline constexpr Index kMostBytes = Index{1} << 60;  // more than any memory has

inline std::string shape_text(const py::array& array) {
  return py::str(py::tuple(array.attr("shape"))).cast<std::string>();
}

inline std::string shape_text(std::initializer_list<Index> shape) {
  std::string text;
  for (const Index n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

// The object itself, which must be an array of NumPy's.
inline py::array as_array(const py::handle& object, const char* name) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                         py::str(py::type::handle_of(object)).cast<std::string>());
  }
  return py::reinterpret_borrow<py::array>(object);
}

inline void check_writable(const py::array& array, const char* name) {
  if (!array.writeable())
    throw std::invalid_argument(std::string(name) + " must be writable, got a read-only array");
}

template <class T>
void check_aligned(const py::array& array, const char* name) {
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0) {
    throw std::invalid_argument(std::string(name) +
                                " must be aligned, got an address that is no multiple of " +
                                std::to_string(alignof(T)));
  }
}

template <class T>
void check(const py::array& array, const char* name, std::initializer_list<Index> shape) {
  bool fits =
      py::isinstance<py::array_t<T>>(array) && array.ndim() == static_cast<Index>(shape.size());
  for (Index axis = 0; fits && axis < array.ndim(); ++axis)
    fits = array.shape(axis) == shape.begin()[axis];
  if (!fits) {
    throw std::invalid_argument(std::string(name) + " must be a " +
                                py::str(py::dtype::of<T>()).template cast<std::string>() +
                                " array of shape " + shape_text(shape) + ", got " +
                                py::str(array.dtype()).cast<std::string>() + " of shape " +
                                shape_text(array));
  }
  check_aligned<T>(array, name);
}

inline void check_contiguous(const py::array& array, const char* name) {
  if (!(array.flags() & py::array::c_style)) {
    throw std::invalid_argument(std::string(name) + " must be C-contiguous, got strides " +
                                py::str(py::tuple(array.attr("strides"))).cast<std::string>());
  }
}

// A C-contiguous array of that very shape; None where `array` may be missing gives null.
template <class T>
const T* read(const py::object& object, const char* name, std::initializer_list<Index> shape) {
  if (object.is_none()) return nullptr;
  const auto array = as_array(object, name);
  check<T>(array, name, shape);
  check_contiguous(array, name);
  return static_cast<const T*>(array.data());
}

template <class T>
T* write(const py::object& object, const char* name, std::initializer_list<Index> shape) {
  if (object.is_none()) return nullptr;
  auto array = as_array(object, name);
  check<T>(array, name, shape);
  check_contiguous(array, name);
  check_writable(array, name);
  return static_cast<T*>(array.mutable_data());
}

// C-contiguous numbers of any shape, `size` of them.
template <class T>
void check_flat(const py::array& array, const char* name, Index size) {
  if (!py::isinstance<py::array_t<T>>(array) || array.size() != size) {
    throw std::invalid_argument(
        std::string(name) + " must be " + std::to_string(size) + " numbers, " +
        py::str(py::dtype::of<T>()).template cast<std::string>() + ", got " +
        py::str(array.dtype()).cast<std::string>() + " of shape " + shape_text(array));
  }
  check_aligned<T>(array, name);
  check_contiguous(array, name);
}

template <class T>
const T* read_flat(const py::array& array, const char* name, Index size) {
  check_flat<T>(array, name, size);
  return static_cast<const T*>(array.data());
}

template <class T>
T* write_flat(py::array array, const char* name, Index size) {
  check_flat<T>(array, name, size);
  check_writable(array, name);
  return static_cast<T*>(array.mutable_data());
}

// Indices out of a C-contiguous array, which may change meanwhile: copied, to be checked after that.
inline std::vector<Index> copied(const std::int64_t* data, Index count) {
  const auto* once = static_cast<const volatile std::int64_t*>(data);
  return std::vector<Index>(once, once + count);
}

// Strides over time and batch are free; `inner` is the last axis, or 0 for a (T, B) array.
template <class T>
Sequence<T> sequence(const py::object& object, const char* name, Index steps, Index batch,
                     Index inner) {
  using Value = std::remove_const_t<T>;
  auto array = as_array(object, name);
  if (inner > 0) {
    check<Value>(array, name, {steps, batch, inner});
  } else {
    check<Value>(array, name, {steps, batch});
  }
  const auto refuse = [&](const char* wanted) {
    throw std::invalid_argument(std::string(name) + " must have " + wanted + ", got strides " +
                                py::str(py::tuple(array.attr("strides"))).cast<std::string>());
  };
  const auto size = static_cast<Index>(sizeof(T));
  for (Index axis = 0; axis < array.ndim(); ++axis) {
    const Index stride = array.strides(axis), last = array.shape(axis) - 1;
    if (stride % size != 0 || (axis == 2 && stride != size && last > 0))
      refuse("a contiguous last axis");
    if (last > 0 && (stride > kMostBytes / last || stride < -kMostBytes / last))
      refuse("an extent within memory");
    if (!std::is_const_v<T> && last > 0 && stride == 0) refuse("elements of its own");
  }
  if constexpr (std::is_const_v<T>) {
    return {static_cast<T*>(array.data()), array.strides(0) / size, array.strides(1) / size};
  } else {
    check_writable(array, name);
    return {static_cast<T*>(array.mutable_data()), array.strides(0) / size,
            array.strides(1) / size};
  }
}

}  // namespace rnnkern
