// SPDX-License-Identifier: Apache-2.0
// Arrays of any library for arrays.h, by the array interface that a module reads.
#pragma once

#include <algorithm>

#include "bind/arrays.h"

namespace rnnkern {

#ifdef RNNKERN_EMULATION
inline constexpr const char* kArrayInterface = "__array_interface__";
#else
inline constexpr const char* kArrayInterface = "__cuda_array_interface__";
#endif

inline Type device_type(const std::string& text) {
  if (text == "<f4") return Type::float32;
  if (text == "<f8") return Type::float64;
  if (text == "<i8") return Type::int64;
  if (text == "|b1") return Type::boolean;
  return Type::other;
}

struct DeviceArray : View {
  static constexpr std::uintptr_t kNowhere = 512;  // aligned as any array is; never read

  DeviceArray(const py::handle& object, const char* argument) : View{.name = argument} {
    if (!py::hasattr(object, kArrayInterface)) {
      throw py::type_error(std::string(name) + " must be an array with " + kArrayInterface +
                           ", got " + py::str(py::type::handle_of(object)).cast<std::string>());
    }
    try {
      const auto facts = py::dict(object.attr(kArrayInterface));
      other_type = py::str(facts["typestr"]).cast<std::string>();
      type = device_type(other_type);
      sizes_ = facts["shape"].cast<std::vector<Index>>();
      axes = static_cast<Index>(sizes_.size()), shape = sizes_.data();
      const auto data = facts["data"].cast<py::tuple>();
      address = data[0].cast<std::uintptr_t>(), writable = !data[1].cast<bool>();
      // CuPy's arrays without elements lie at 0, which as a pointer would say that there is no array.
      if (address == 0 && size() == 0) address = kNowhere;
      item = std::stoll(other_type.substr(2));
      steps_ = dense_strides();
      if (facts.contains("strides") && !facts["strides"].is_none())
        steps_ = facts["strides"].cast<std::vector<Index>>();
    } catch (const std::exception& error) {
      throw std::invalid_argument(std::string(name) + " must have an " + kArrayInterface +
                                  " of its form: " + error.what());
    }
    if (steps_.size() != sizes_.size()) {
      throw std::invalid_argument(
          std::string(name) + " must have a stride for each axis, got " +
          rnnkern::shape_text(steps_.data(), static_cast<Index>(steps_.size())) + " for shape " +
          shape_text());
    }
    strides = steps_.data();
    for (Index axis = 0; axis < axes; ++axis) {
      const Index last = shape[axis] - 1;
      if (last > 0 && (strides[axis] > kMostBytes / last || strides[axis] < -kMostBytes / last))
        refuse("have an extent within memory, got strides " + strides_text() + " for shape " +
               shape_text());
    }
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

 private:
  std::vector<Index> dense_strides() const {
    std::vector<Index> dense(sizes_.size());
    Index stride = item;
    for (std::size_t axis = sizes_.size(); axis-- > 0;) {
      if (stride < 1 || sizes_[axis] < 0 || sizes_[axis] > kMostBytes / stride)
        throw std::invalid_argument("a size below 0 or beyond any memory");
      dense[axis] = stride, stride *= std::max<Index>(sizes_[axis], 1);
    }
    return dense;
  }

  std::vector<Index> sizes_, steps_;  // what shape and strides point to
};

template <class T>
T* device_pointer(const py::handle& object, const char* name, std::initializer_list<Index> shape) {
  return pointer<T, DeviceArray>(object, name, shape);
}

template <class T>
Sequence<T> device_sequence(const py::handle& object, const char* name, Index steps, Index batch,
                            Index inner) {
  return sequence<T, DeviceArray>(object, name, steps, batch, inner);
}

}  // namespace rnnkern
