// SPDX-License-Identifier: Apache-2.0
// What is dropped of a strand of a GPU's call: factors of h, and zoneout.
#pragma once

#include "bind/arguments.h"
#include "bind/device_arrays.h"
#include "cuda/engine.h"

namespace rnnkern {

// A strand's argument of that name, None where it is absent.
inline py::object get(const py::dict& strand, const char* name) {
  return strand.contains(name) ? py::object(strand[name]) : py::none();
}

inline py::object require(const py::dict& strand, const char* name) {
  auto object = get(strand, name);
  required(object, name);
  return object;
}

// What is drawn; or of a pass that draws nothing the share.
template <class T>
Zoneout<T> read_zone(const cuda::Shape& shape, const py::dict& strand, const char* name,
                     double share, bool drawn) {
  if (share == 0 && !get(strand, name).is_none())
    throw std::invalid_argument(std::string(name) + " must be None: the share is 0");
  if (share > 0 && drawn) require(strand, name);
  const auto marks =
      device_sequence<const bool>(get(strand, name), name, shape.steps, shape.batch, shape.units);
  if (!marks.data) return {.share = static_cast<T>(share)};
  return {.drawn = {reinterpret_cast<const unsigned char*>(marks.data), marks.step, marks.row}};
}

// Whether zones must be `drawn`: with all that a backward pass needs.
template <template <class> class Layer, class T>
void read_drops(const LayerSpec& spec, const cuda::Shape& shape, const py::dict& strand, bool drawn,
                Layer<T>& layer) {
  layer.h_factors =
      device_pointer<const T>(get(strand, "h_factors"), "h_factors", {shape.batch, shape.units});
  if (layer.h_factors && spec.recurrent_dropout == 0)
    throw std::invalid_argument("h_factors must be None: recurrent_dropout is 0");
  layer.zone_h = read_zone<T>(shape, strand, "zone_h", spec.zoneout, drawn);
  layer.zone_c = read_zone<T>(shape, strand, "zone_c", spec.cell_zoneout, drawn);
  if (spec.cell_zoneout > 0 && drawn) {
    using Room = decltype(layer.fresh_c);
    layer.fresh_c = device_pointer<std::remove_pointer_t<Room>>(
        require(strand, "fresh_c"), "fresh_c", {shape.live_rows(), shape.units});
  }
}

}  // namespace rnnkern
