// SPDX-License-Identifier: Apache-2.0
// How a caller has the arrays of a call, which the kernels take time first and batched.
#pragma once

#include <algorithm>

#include "bind/host_arrays.h"
#include "core/problem.h"

namespace rnnkern {

// How a caller has x, y and their gradients: (T, B, ·), (B, T, ·), or (T, ·) for one row.
struct CallersAxes {
  Index steps, batch;
  bool batch_first, unbatched;

  template <class T>
  bool plain(const py::handle& array, Index inner) const {
    if (unbatched) return rnnkern::plain<T>(array, {steps, inner});
    return rnnkern::plain<T>(array, {first(), second(), inner});
  }
  template <class T>
  py::object empty(Index inner) const {
    return unbatched ? new_array<T>({steps, inner}) : new_array<T>({first(), second(), inner});
  }
  // Of a plain array.
  template <class T>
  Sequence<T> view(const py::handle& array, Index inner) const {
    const Index outer = second() * inner;
    auto* const data = static_cast<T*>(data_of(array));
    if (swapped()) return {data, inner, outer};
    return {data, outer, inner};
  }

 private:
  bool swapped() const { return batch_first && !unbatched; }
  Index first() const { return swapped() ? batch : steps; }
  Index second() const { return swapped() ? steps : batch; }
};

// A state, or its gradient, as a caller has it: (L·D, B, H), or without its batch axis.
template <class T>
struct StateShape {
  Index states, batch, units;
  bool has_c, unbatched;

  Index size() const { return states * batch * units; }

  bool plain(const py::handle& object) const {
    return unbatched ? rnnkern::plain<T>(object, {states, units})
                     : rnnkern::plain<T>(object, {states, batch, units});
  }

  // Whether it is what can be taken as it stands: None, also as one of the pair, is zero.
  bool taken(const py::handle& state, py::handle parts[2]) const {
    parts[0] = parts[1] = py::none();
    if (state.is_none()) return true;
    if (!has_c) {
      parts[0] = state;
    } else if (PyTuple_CheckExact(state.ptr()) && PyTuple_GET_SIZE(state.ptr()) == 2) {
      parts[0] = PyTuple_GET_ITEM(state.ptr(), 0), parts[1] = PyTuple_GET_ITEM(state.ptr(), 1);
    } else {
      return false;
    }
    return (parts[0].is_none() || plain(parts[0])) && (parts[1].is_none() || plain(parts[1]));
  }

  // A new array with the values of a part; its memory is put into `data`.
  py::object copy(const py::handle& part, T*& data) const {
    py::object array =
        unbatched ? new_array<T>({states, units}) : new_array<T>({states, batch, units});
    data = static_cast<T*>(data_of(array));
    if (part.is_none()) {
      std::fill_n(data, size(), T(0));
    } else {
      std::copy_n(static_cast<const T*>(data_of(part)), size(), data);
    }
    return array;
  }
};

}  // namespace rnnkern
