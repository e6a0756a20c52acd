// SPDX-License-Identifier: Apache-2.0
// Arrays in, checked pointers out: one checker for arrays of NumPy (host_arrays.h) and of a device
// (device_arrays.h). A check that fails is a ValueError naming the argument, what was expected and what was
// given; the Python layer has looked before, so these guard the memory.
//
// Nothing is converted: an array that a conversion makes is gone before its pointer is used. And an array
// may change while a kernel runs without the GIL, so what serves as an index is copied first.
#pragma once

#include <pybind11/pybind11.h>

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

enum class Type { float32, float64, int64, boolean, other };

template <class T>
constexpr Type type_of = std::is_same_v<T, float>          ? Type::float32
                         : std::is_same_v<T, double>       ? Type::float64
                         : std::is_same_v<T, std::int64_t> ? Type::int64
                         : std::is_same_v<T, bool>         ? Type::boolean
                                                           : Type::other;

inline const char* type_text(Type type) {
  switch (type) {
    case Type::float32:
      return "float32";
    case Type::float64:
      return "float64";
    case Type::int64:
      return "int64";
    case Type::boolean:
      return "bool";
    case Type::other:
      break;
  }
  return "another type";
}

// A dtype by its name.
inline Type dtype_of(const std::string& name) {
  for (const Type type : {Type::float32, Type::float64})
    if (name == type_text(type)) return type;
  return Type::other;
}

inline std::string shape_text(const Index* shape, Index axes) {
  std::string text;
  for (Index axis = 0; axis < axes; ++axis)
    text += (text.empty() ? "" : ", ") + std::to_string(shape[axis]);
  return "(" + text + (axes == 1 ? ",)" : ")");
}

inline std::string shape_text(std::initializer_list<Index> shape) {
  return shape_text(shape.begin(), static_cast<Index>(shape.size()));
}

// What an array says of itself; strides in bytes. It is of no use after a change of the array, or its end.
struct View {
  const char* name;
  Type type = Type::other;
  std::string other_type{};  // as errors call it
  std::uintptr_t address = 0;
  Index item = 0, axes = 0;
  const Index* shape = nullptr;
  const Index* strides = nullptr;
  bool writable = false;

  [[noreturn]] void refuse(const std::string& what) const {
    throw std::invalid_argument(name + (" must " + what));
  }
  std::string shape_text() const { return rnnkern::shape_text(shape, axes); }
  std::string strides_text() const { return rnnkern::shape_text(strides, axes); }
  std::string type_name() const {
    return type == Type::other ? other_type : std::string(type_text(type));
  }

  // Numbers, of which there are no more than memory has bytes.
  Index size() const {
    Index size = 1;
    for (Index axis = 0; axis < axes; ++axis) size *= shape[axis];
    return size;
  }

  template <class T>
  void check_aligned() const {
    if (address % alignof(T) != 0) {
      refuse("be aligned, got an address that is no multiple of " + std::to_string(alignof(T)));
    }
  }

  template <class T>
  void check(std::initializer_list<Index> expected) const {
    bool fits = type == type_of<T> && axes == static_cast<Index>(expected.size());
    for (Index axis = 0; fits && axis < axes; ++axis) fits = shape[axis] == expected.begin()[axis];
    if (!fits) {
      refuse("be a " + std::string(type_text(type_of<T>)) + " array of shape " +
             rnnkern::shape_text(expected) + ", got " + type_name() + " of shape " + shape_text());
    }
    check_aligned<T>();
  }

  void check_writable() const {
    if (!writable) refuse("be writable, got a read-only array");
  }

  void check_contiguous() const {
    Index stride = item;
    bool dense = true, empty = false;
    for (Index axis = axes; axis-- > 0;) {
      dense = dense && (shape[axis] == 1 || strides[axis] == stride);
      empty = empty || shape[axis] == 0;
      stride *= shape[axis];
    }
    if (!dense && !empty) refuse("be C-contiguous, got strides " + strides_text());
  }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(address);
  }
};

// Below, Array is what makes a View of an object: constructed of the object and the argument's name.

// A C-contiguous array of that very shape; None where it may be missing gives null.
template <class T, class Array>
T* pointer(const py::handle& object, const char* name, std::initializer_list<Index> shape) {
  if (object.is_none()) return nullptr;
  const Array array(object, name);
  array.template check<std::remove_const_t<T>>(shape);
  array.check_contiguous();
  if constexpr (!std::is_const_v<T>) array.check_writable();
  return array.template data<T>();
}

// Strides over time and batch are free; `inner` is the last axis, or 0 for a (T, B) array. None gives null.
template <class T, class Array>
Sequence<T> sequence(const py::handle& object, const char* name, Index steps, Index batch,
                     Index inner) {
  if (object.is_none()) return {};
  const Array array(object, name);
  if (inner > 0) {
    array.template check<std::remove_const_t<T>>({steps, batch, inner});
  } else {
    array.template check<std::remove_const_t<T>>({steps, batch});
  }
  const auto item = static_cast<Index>(sizeof(T));
  const auto refuse = [&](const char* wanted) {
    array.refuse(wanted + (", got strides " + array.strides_text()));
  };
  for (Index axis = 0; axis < array.axes; ++axis) {
    const Index stride = array.strides[axis], last = array.shape[axis] - 1;
    if (last < 1) continue;  // no step of that stride is made
    if (stride % item != 0 || (axis == 2 && stride != item)) refuse("have a contiguous last axis");
    if (stride > kMostBytes / last || stride < -kMostBytes / last)
      refuse("have an extent within memory");
    if (!std::is_const_v<T> && stride == 0) refuse("have elements of its own");
  }
  if constexpr (!std::is_const_v<T>) array.check_writable();
  return {array.template data<T>(), array.strides[0] / item, array.strides[1] / item};
}

// Chooses the instantiation for a dtype: calls f(float{}) or f(double{}).
template <class F>
auto by_type(Type type, const std::string& given, const char* name, F f) {
  if (type == Type::float32) return f(float{});
  if (type == Type::float64) return f(double{});
  throw py::type_error(std::string(name) + " must be float32 or float64, got " + given);
}

template <class F>
auto by_type(const View& array, F f) {
  return by_type(array.type, array.type_name(), array.name, f);
}

// Indices out of a C-contiguous array, which may change meanwhile: copied, to be checked after that.
inline std::vector<Index> copied(const std::int64_t* data, Index count) {
  const auto* once = static_cast<const volatile std::int64_t*>(data);
  return std::vector<Index>(once, once + count);
}

}  // namespace rnnkern
