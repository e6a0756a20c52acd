// SPDX-License-Identifier: Apache-2.0
// What a call says of its rows: where they end, begin anew and skip steps.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "bind/host_arrays.h"
#include "core/stretches.h"

namespace rnnkern {

inline std::optional<std::vector<Index>> read_lengths(const py::handle& lengths, Index batch) {
  if (lengths.is_none()) return std::nullopt;
  return copied(read<std::int64_t>(lengths, "lengths", {batch}), batch);
}

// (T, B), or (T, B, inner).
inline Sequence<const unsigned char> read_marks(const py::handle& marks, const char* name,
                                                Index steps, Index batch, Index inner = 0) {
  const auto view = sequence<const bool, HostArray>(marks, name, steps, batch, inner);
  return {reinterpret_cast<const unsigned char*>(view.data), view.step, view.row};
}

// (places, lengths, sources, leaving) of the stretches of a batch, for devices that have no memory of the
// host's: sources and leaving by direction.
inline py::tuple find_stretches(Index steps, Index batch, const py::object& lengths,
                                const py::object& resets, const py::object& mask,
                                bool states_anew) {
  if (steps < 1 || batch < 1) throw std::invalid_argument("steps and batch must be at least 1");
  if (resets.is_none() && mask.is_none()) {
    throw std::invalid_argument(
        "resets or mask must be given, got None for both: without them lengths say all of it");
  }
  const auto given = read_lengths(lengths, batch);
  if (given) check_lengths(*given, steps);
  const Stretches stretches(steps, batch, given,
                            {.resets = read_marks(resets, "resets", steps, batch),
                             .mask = read_marks(mask, "mask", steps, batch),
                             .states_anew = states_anew},
                            std::numeric_limits<Index>::max());
  const auto filled = [](Index count, auto value) {
    py::object array = new_array<std::int64_t>({count});
    auto* const out = static_cast<std::int64_t*>(data_of(array));
    for (Index i = 0; i < count; ++i) out[i] = value(i);
    return array;
  };
  const Schedule schedule = stretches.schedule(false, stretches.parts().front());
  py::object own_lengths = filled(stretches.rows(), [](Index) { return 0; });
  auto* const length = static_cast<std::int64_t*>(data_of(own_lengths));
  for (Index s = 0; s < schedule.steps; ++s)
    for (Index v = 0; v < schedule.live(s); ++v) ++length[v];
  const auto by_way = [&](Index count, auto value) {
    return py::make_tuple(filled(count, [&](Index i) { return value(false, i); }),
                          filled(count, [&](Index i) { return value(true, i); }));
  };
  return py::make_tuple(
      filled(stretches.live_rows(),
             [&](Index p) { return schedule.place[p].t * batch + schedule.place[p].b; }),
      own_lengths,
      by_way(stretches.rows(), [&](bool way, Index v) { return stretches.source(way, v); }),
      by_way(batch, [&](bool way, Index b) { return stretches.leaving(way, b); }));
}

}  // namespace rnnkern
