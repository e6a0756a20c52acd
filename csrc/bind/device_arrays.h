// Arrays of any library in, checked pointers out, by the array interface that its module reads: what
// views.h is for NumPy arrays.
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
  std::vector<Index> shape, strides;
  bool read_only = false;

  DeviceArray(const py::object& object, const char* argument) : name(argument) {
    if (!py::hasattr(object, kArrayInterface)) {
      throw py::type_error(name + " must be an array with " + kArrayInterface + ", got " +
                           py::str(py::type::of(object)).cast<std::string>());
    }
    const auto facts = py::dict(object.attr(kArrayInterface));
    type = py::str(facts["typestr"]).cast<std::string>();
    shape = facts["shape"].cast<std::vector<Index>>();
    const auto data = facts["data"].cast<py::tuple>();
    address = data[0].cast<std::uintptr_t>(), read_only = data[1].cast<bool>();
    // CuPy's arrays without elements lie at 0, which as a pointer would say that there is no array.
    if (address == 0 && size() == 0) address = kNowhere;
    if (facts.contains("strides") && !facts["strides"].is_none()) {
      strides = facts["strides"].cast<std::vector<Index>>();
    } else {
      strides = dense_strides(item_size());
    }
  }

  Index item_size() const { return std::stoll(type.substr(2)); }
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
    const auto dense = dense_strides(item_size());
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis] > 1 && strides[axis] != dense[axis] && size() > 0) {
        throw std::invalid_argument(name + " must be C-contiguous, got strides " +
                                    shape_text(strides));
      }
    }
  }

 private:
  std::vector<Index> dense_strides(Index item) const {
    std::vector<Index> dense(shape.size());
    for (std::size_t axis = shape.size(); axis-- > 0; item *= shape[axis]) dense[axis] = item;
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
  }
  return {reinterpret_cast<T*>(array.address), array.strides[0] / item, array.strides[1] / item};
}

}  // namespace rnnkern
