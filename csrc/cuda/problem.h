// SPDX-License-Identifier: Apache-2.0
// What the kernels are told: sizes and pointers into device memory. Letters as in core/problem.h.
//
// The schedule lies in device memory too, for a call must not wait for the host: prepare.h fills
// it.
#pragma once

#include <cstdint>

#include "core/functions.h"
#include "core/problem.h"
#include "cuda/plan.h"

namespace rnnkern::cuda {

// What shares a launch: the directions of a layer, or stacked layers as a wavefront, ordered so
// that each takes up what the one before it hands on (backward, the last layer comes first).
inline constexpr int kMaxStrands = 4;

// Rows sorted by falling length; live pairs packed as in core/problem.h. Counts fit 31 bits.
struct DeviceSchedule {
  std::int32_t steps, batch;
  std::int32_t* order;          // (B) the batch row that stands i-th
  std::int32_t* sorted_length;  // (B) its length
  std::int32_t* length;         // (B) of each batch row
  std::int32_t* offset;         // (T+1) packed row of step t's first row
  std::int32_t* time;           // (N) step of each packed row
  std::int32_t* row;            // (N) its batch row

  RNNKERN_DEVICE Index time_of(Index s, bool reverse) const { return reverse ? steps - 1 - s : s; }
  // The packed rows of a step; none before the first and behind the last.
  struct Span {
    std::int32_t first, end;  // no more than was loaded, so that nothing waits for it yet

    RNNKERN_DEVICE int live() const { return end - first; }
  };
  RNNKERN_DEVICE Span span(Index s, bool reverse) const {
    if (s < 0 || s >= steps) return {0, 0};
    const Index t = time_of(s, reverse);
    return {offset[t], offset[t + 1]};
  }
};

// What the blocks of a strand share.
struct Exchange {
  const std::byte* weights[kMaxProducts];  // packed: (slice, part, row, part_bytes)
  std::byte* operand[kMaxPhases];  // (2, group, group_rows, depth_bytes), zeroed before the call
  std::uint32_t* flags;            // (group, block), likewise: phases that a block has done
  // (packed rows of the chunk, depth_bytes), each written once: y_t (backward: the gradients of
  // W_ih y_t) for the next layer of the wavefront; or null.
  std::byte* handed;
};

// What few layers have (`h_factors` and all below) kernels look up among their parameters where it is
// needed: kept at hand it would take registers of all others.
template <class T>
struct ForwardStrand {
  bool reverse;
  Exchange exchange;
  const T* x_part;   // (packed rows of the chunk, G·H): W_ih x + b; null where a layer hands x on
  const T* bias;     // (G·H) or null, in the latter case
  const T* bias_hn;  // (H) or null
  T* h;              // (B, H): in h_0, out h_n
  T* c;              // (B, H): likewise, or null
  Sequence<T> y;     // (T, B, H)
  Sequence<const T> mask;  // (T, B, H): a factor of the y that is handed on; or data null
  T* saved;                // (N, saved, H); null when no backward pass will follow
  T* cells;                // (N, H): likewise
  T* scratch;              // (B, saved, H): what a phase leaves to the next where `saved` is null
  const T* h_factors;      // (B, H): of what recurrent products take of h; or null
  CellOptions<T> options;  // for equations of given functions
  const T* unit_weights;   // (of the cell, H)
  Zoneout<T> zone_h, zone_c;
  T* fresh_c;  // (N, H): every c_t before its zoneout, as cells; or null
};

template <class T>
struct BackwardStrand {
  bool reverse;
  Exchange exchange;
  const T* h_0;
  const T* c_0;
  Sequence<const T> y;
  const T* saved;
  const T* cells;
  Sequence<const T> dy;    // data null for zero, or where a layer hands it on
  Sequence<const T> mask;  // (T, B, H): a factor of the dy that is handed on; or data null
  T* dh;                   // (B, H): in ∂L/∂h_n, out ∂L/∂h_0; between them ∂L/∂h_t's direct part
  T* dc;                   // (B, H): likewise for c
  T* delta;                // (packed rows of the chunk, deltas, H)
  T* dh_now;               // (B, H): ∂L/∂h_t, from the phase that finds it to the next; or null
  const T* h_factors;      // (B, H), as forward, and these
  CellOptions<T> options;
  const T* unit_weights;  // (of the cell, H)
  Zoneout<T> zone_h, zone_c;
  const T* fresh_c;
};

// A chunk of processed steps [begin, end); a backward one that begins at 0 also ends in ∂L/∂h_0.
template <class Strand>
struct RecurrentProblem {
  RecurrentPlan plan;
  DeviceSchedule schedule;
  bool stacked;  // the strands are layers
  std::int32_t units, begin, end;
  std::int32_t first_row[kMaxStrands];  // the chunk's first packed row in each strand
  Strand strand[kMaxStrands];
};

// A matrix as a product reads it, element (r, c).
template <class T>
struct Operand {
  enum Kind : std::int32_t {
    kMatrix,    // data[r·row + c]
    kSequence,  // x of packed row r
    kTokens,    // 1 where c is the token of packed row r
    kPrevious,  // h before packed row r, times the gate and the factors where there are any
  };
  Kind kind;
  bool reverse;          // kPrevious: of its strand
  std::int32_t first;    // packed row of r = 0
  std::int32_t columns;  // kTokens: they are clamped to what lies below
  const T* data;
  Index row;                   // kMatrix
  Sequence<const T> sequence;  // kSequence: x; kPrevious: y
  Sequence<const std::int64_t> tokens;
  const T* initial;  // kPrevious: (B, H) h_0
  const T* gate;     // kPrevious: (rows, gate_row): the gate of packed row r, or null
  Index gate_row;
  const T* factors;  // kPrevious: (B, columns), by the batch row; or null
};

// out (M, N) = [out +] a bᵀ [+ bias]: element (m, k) of a is a.at(m, k), or a.at(k, m) where it is
// transposed; b likewise with (n, k).
template <class T>
struct MatmulArguments {
  DeviceSchedule schedule;  // of the kinds that know packed rows
  Operand<T> a, b;
  bool a_transposed, b_transposed, accumulate;
  std::int32_t rows, columns, depth;
  const T* bias;  // (N) or null
  T* out;         // (M, N), rows out_row apart; or null and
  Index out_row;
  Sequence<T> scattered;  // packed row m's place, its first row `first`
  std::int32_t first;
};

// A part of the sorted rows and their lengths, as kernel arguments, so that no copy from the host's
// pageable memory has to be waited for.
struct SchedulePart {
  static constexpr int kRows = 480;
  DeviceSchedule schedule;
  std::int32_t first, count;
  bool ragged;  // or all rows have all steps and stand in their own order
  std::int32_t order[kRows], length[kRows];
};
static_assert(sizeof(SchedulePart) <= 4096);

template <class T>
struct PackArguments {
  const T* weights;  // (G·H, H)
  void* packed;
  RecurrentPlan plan;
  std::int32_t product, first_gate, gates, units;
  bool backward;
};

template <class T>
struct GatherArguments {
  DeviceSchedule schedule;
  Sequence<const std::int64_t> tokens;
  std::int32_t first, rows, gate_units, inputs;
  const T* w_ih;
  const T* bias;  // or null
  T* x_part;      // (rows, gate_units)
};

template <class T>
struct ZeroTailArguments {
  DeviceSchedule schedule;
  Sequence<T> y;
  std::int32_t units;
};

template <class T>
struct ColumnSumsArguments {
  const T* data;  // (rows, columns), rows `row` apart
  Index row;
  std::int32_t rows, columns;
  T* out;  // (columns): added to
};

struct ZeroArguments {
  std::uint32_t* words;
  Index count;
};

}  // namespace rnnkern::cuda
