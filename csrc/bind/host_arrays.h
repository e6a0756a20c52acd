// SPDX-License-Identifier: Apache-2.0
// NumPy's arrays for arrays.h.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <utility>

#include "bind/arrays.h"

namespace rnnkern {

// NumPy's own object for a dtype of this machine's byte order, which most arrays have.
template <class T>
const PyObject* native_dtype() {
  static const PyObject* const dtype = py::dtype::of<T>().release().ptr();
  return dtype;
}

inline Type host_type(const PyObject* dtype) {
  if (dtype == native_dtype<float>()) return Type::float32;
  if (dtype == native_dtype<double>()) return Type::float64;
  if (dtype == native_dtype<std::int64_t>()) return Type::int64;
  if (dtype == native_dtype<bool>()) return Type::boolean;
  const auto same = [&](const PyObject* native) {
    return py::detail::npy_api::get().PyArray_EquivTypes_(const_cast<PyObject*>(dtype),
                                                          const_cast<PyObject*>(native));
  };
  if (same(native_dtype<float>())) return Type::float32;
  if (same(native_dtype<double>())) return Type::float64;
  if (same(native_dtype<std::int64_t>())) return Type::int64;
  return Type::other;
}

struct HostArray : View {
  HostArray(const py::handle& object, const char* argument) : View{.name = argument} {
    if (!py::isinstance<py::array>(object)) {
      throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                           py::str(py::type::handle_of(object)).cast<std::string>());
    }
    const auto& array = *py::detail::array_proxy(object.ptr());
    type = host_type(array.descr);
    const auto dtype = py::handle(array.descr);
    if (type == Type::other) other_type = py::str(dtype).cast<std::string>();
    item = type == Type::float32   ? Index{sizeof(float)}
           : type == Type::boolean ? Index{1}
           : type == Type::other   ? dtype.attr("itemsize").cast<Index>()
                                   : Index{8};
    address = reinterpret_cast<std::uintptr_t>(array.data);
    axes = array.nd, shape = array.dimensions, strides = array.strides;
    writable = (array.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
  }
};

template <class T>
const T* read(const py::handle& object, const char* name, std::initializer_list<Index> shape) {
  return pointer<const T, HostArray>(object, name, shape);
}

template <class T>
T* write(const py::handle& object, const char* name, std::initializer_list<Index> shape) {
  return pointer<T, HostArray>(object, name, shape);
}

// C-contiguous numbers of any shape, `size` of them.
template <class T>
T* flat(const py::handle& object, const char* name, Index size) {
  using Value = std::remove_const_t<T>;
  const HostArray array(object, name);
  if (array.type != type_of<Value> || array.size() != size) {
    array.refuse("be " + std::to_string(size) + " numbers, " + type_text(type_of<Value>) +
                 ", got " + array.type_name() + " of shape " + array.shape_text());
  }
  array.check_aligned<Value>();
  array.check_contiguous();
  if constexpr (!std::is_const_v<T>) array.check_writable();
  return array.data<T>();
}

// Whether it can be taken as it stands: NumPy's own class and dtype, contiguous and aligned.
template <class T>
bool plain(const py::handle& object) {
  const auto& api = py::detail::npy_api::get();
  if (py::type::handle_of(object).ptr() != reinterpret_cast<PyObject*>(api.PyArray_Type_))
    return false;
  constexpr int kFlags =
      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const auto& array = *py::detail::array_proxy(object.ptr());
  return array.descr == native_dtype<T>() && (array.flags & kFlags) == kFlags;
}

// And of that shape.
template <class T>
bool plain(const py::handle& object, std::initializer_list<Index> shape) {
  if (!plain<T>(object)) return false;
  const auto& array = *py::detail::array_proxy(object.ptr());
  return std::equal(shape.begin(), shape.end(), array.dimensions, array.dimensions + array.nd);
}

inline void* data_of(const py::handle& array) { return py::detail::array_proxy(array.ptr())->data; }

// Uninitialised.
template <class T>
py::object new_array(std::initializer_list<Index> shape) {
  auto most = kMostBytes / static_cast<Index>(sizeof(T));
  for (const Index n : shape) {
    if (n > most) throw std::invalid_argument("the sizes give an array beyond any memory");
    most /= std::max<Index>(n, 1);
  }
  const auto& api = py::detail::npy_api::get();
  PyObject* const dtype = const_cast<PyObject*>(native_dtype<T>());
  Py_INCREF(dtype);  // for the array
  PyObject* const array =
      api.PyArray_NewFromDescr_(api.PyArray_Type_, dtype, static_cast<int>(shape.size()),
                                shape.begin(), nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(array);
}

template <class T>
py::object new_zeros(std::initializer_list<Index> shape) {
  py::object array = new_array<T>(shape);
  std::fill_n(static_cast<T*>(data_of(array)), HostArray(array, "array").size(), T(0));
  return array;
}

}  // namespace rnnkern
