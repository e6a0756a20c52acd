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

// A state, or its gradient, as a caller has it: h (L·D, B, P) and c (L·D, B, H), or without their batch
// axis.
template <class T>
struct StateShape {
  Index states, batch, units, outputs;
  bool has_c, unbatched;

  // Whether None, which is zero, or what can be taken as it stands.
  bool plain(const py::handle& part, Index width) const {
    if (part.is_none()) return true;
    return unbatched ? rnnkern::plain<T>(part, {states, width})
                     : rnnkern::plain<T>(part, {states, batch, width});
  }

  // Likewise of the whole; None may also be one of the pair.
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
    return plain(parts[0], outputs) && plain(parts[1], units);
  }

  // A new state with the values of the parts; h and c are its memory, c null where there is none.
  py::object copy(const py::handle parts[2], T*& h, T*& c) const {
    py::object first = copy_of(parts[0], outputs, h);
    if (!has_c) return first;
    return py::make_tuple(first, copy_of(parts[1], units, c));
  }

 private:
  py::object copy_of(const py::handle& part, Index width, T*& data) const {
    py::object array =
        unbatched ? new_array<T>({states, width}) : new_array<T>({states, batch, width});
    data = static_cast<T*>(data_of(array));
    if (part.is_none()) {
      std::fill_n(data, states * batch * width, T(0));
    } else {
      std::copy_n(static_cast<const T*>(data_of(part)), states * batch * width, data);
    }
    return array;
  }
};

}  // namespace rnnkern
