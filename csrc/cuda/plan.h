// Who does what in a persistent kernel: computed on the host, from numbers alone, read on the device.
//
// The units are cut into slices; a slice has all gates of its units, and its own rows of the recurrent
// weights. The batch is cut into groups that share nothing but the weights' values; the blocks of a
// group divide the slices. A phase of a step multiplies a tile of the group's rows at a time; its
// depth comes in chunks, as long as shared memory has room for.
#pragma once

#include <compare>
#include <string>

#include "core/lane.h"

namespace rnnkern::cuda {

inline constexpr int kThreads = 256, kLanes = 32, kWarps = kThreads / kLanes;  // of a block
inline constexpr int kVectorBytes = 16;  // that a thread copies at once
inline constexpr int kMaxPhases = 2;

struct DeviceFacts {
  std::string name;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may have
  Index memory_bytes = 0;
  Index run_bytes = Index{256} << 20;  // that the buffers of a run of steps may take

  auto operator<=>(const DeviceFacts&) const = default;
};

// A warp's tile of the product that a kernel is built on.
struct ProductFacts {
  int rows, columns;
  int element_bytes, sum_bytes;
  bool vector;  // made for few rows of the batch

  auto operator<=>(const ProductFacts&) const = default;
};

// A phase of the step: its product has `gates` rows of weights a unit, over a depth of `depth`.
struct PhaseFacts {
  int gates;
  Index depth;

  auto operator<=>(const PhaseFacts&) const = default;
};

struct PhasePlan {
  int rows;          // of weights that a slice has
  int depth_bytes;   // a row of the operand, padded
  int chunk_bytes;   // of it that are multiplied at once, a multiple of 128
  int chunks;        // in a row
  int resident;      // weight tiles, one a slice and chunk, that stay in shared memory
  int resident_at;   // where, in bytes
  int row_tiles;     // warp tiles over `rows`
  int depth_shares;  // warps that share a tile's depth
};

struct RecurrentPlan {
  int units, slices;               // units of a slice; slices of the layer
  int groups, blocks, group_rows;  // blocks of a group; rows of the batch in it
  int slices_per_block, phases;
  int tile_rows;  // of the batch, multiplied at once
  PhasePlan phase[kMaxPhases];
  int staged_at;   // a weight tile that does not stay
  int operand_at;  // a chunk of the tile's operand rows
  int partial_at;  // sums, by depth share, row of the batch, row of weights
  int fields_at;   // what the cell's equations read besides the product
  int shared_bytes;

  RNNKERN_DEVICE Index tiles(int p) const { return Index{slices} * phase[p].chunks; }
  RNNKERN_DEVICE Index tile_bytes(int p) const {
    return Index{phase[p].rows} * phase[p].chunk_bytes;
  }
  RNNKERN_DEVICE Index exchange_row(int p) const { return phase[p].depth_bytes; }
  // One of the two halves of a phase's exchange buffer.
  RNNKERN_DEVICE Index exchange_bytes(int p) const {
    return Index{groups} * group_rows * phase[p].depth_bytes;
  }
};

// Rows lie this much further apart in shared memory than they are long.
inline constexpr int kRowPadding = 64;

struct PlanRequest {
  DeviceFacts device;
  ProductFacts product;
  PhaseFacts phase[kMaxPhases];
  int phases;
  int fields;       // values a unit and row that the equations read
  int field_bytes;  // of each
  Index units, batch;
  int passes;  // that share the device

  auto operator<=>(const PlanRequest&) const = default;
};

struct ChosenPlan {
  RecurrentPlan plan;
  const char* path;  // "resident", "vector" or "streaming"
  std::string reason;
};

// The plan of the least estimated time; std::invalid_argument for a device with too little of
// everything.
ChosenPlan choose_plan(const PlanRequest& request);

}  // namespace rnnkern::cuda
