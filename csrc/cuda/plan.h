// SPDX-License-Identifier: Apache-2.0
// Who does what in a persistent kernel: computed on the host, from numbers alone, read on the
// device.
//
// The units are cut into slices; a slice has all gates of its units, and its own rows of the
// recurrent weights. The batch is cut into groups that share nothing but the weights' values; the
// blocks of a group divide the slices. A phase of a step multiplies a tile of the group's rows at a
// time; its depth comes in parts, as long as shared memory has room for.
//
// Stacked layers can share a launch, as a wavefront: a layer is a step behind the one before it,
// and its phases have a second product, of that layer's results. Then they are cut alike, each on
// its share of the multiprocessors.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/lane.h"

namespace rnnkern::cuda {

inline constexpr int kThreads = 256, kLanes = 32, kWarps = kThreads / kLanes;  // of a block
inline constexpr int kVectorBytes = 16;  // that a thread copies at once
inline constexpr int kMaxPhases = 2;
// Phase p's recurrent product, and from kBetween on its product between layers.
inline constexpr int kBetween = kMaxPhases, kMaxProducts = 2 * kMaxPhases;

struct DeviceFacts {
  std::string name;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may have
  Index memory_bytes = 0;
  Index chunk_bytes = Index{256} << 20;  // that the buffers of a chunk of steps may take

  auto operator<=>(const DeviceFacts&) const = default;
};

// A warp's tile of the product that a kernel is built on.
struct ProductFacts {
  int rows, columns;
  int columns_at_once;  // whose sums a warp stores without asking for how many rows there are
  int element_bytes, sum_bytes;
  bool vector;  // made for few rows of the batch

  auto operator<=>(const ProductFacts&) const = default;
};

// The weights of a product: `gates` rows a unit, none where there is no such product, of `depth`.
struct WeightFacts {
  int gates;
  Index depth;

  auto operator<=>(const WeightFacts&) const = default;
};

// A number that others are divided by, without a division: n / d is right for n >= 0 where n·d is
// at most 2^31.
struct Divisor {
  std::uint32_t factor;

  static constexpr Divisor of(Index value) {
    return {static_cast<std::uint32_t>(((Index{1} << 31) + value - 1) / value)};
  }
  RNNKERN_DEVICE friend int operator/(int n, Divisor d) {
    return static_cast<int>(std::uint64_t{static_cast<std::uint32_t>(n)} * d.factor >> 31);
  }
};

struct ProductPlan {
  int rows;          // of weights that a slice has
  int depth_bytes;   // a row of the operand, padded
  int part_bytes;    // of it that are multiplied at once, a multiple of 128
  int parts;         // in a row
  int resident;      // weight tiles, one a slice and part, that stay in shared memory
  int resident_at;   // where, in bytes
  int row_tiles;     // warp tiles over `rows`
  int depth_shares;  // warps that share a tile's depth
  Divisor by_row_tiles, by_depth_shares;
  int partial_row;  // from one row of the batch to the next among a share's sums
};

struct RecurrentPlan {
  int units, slices;  // units of a slice; slices of the layer
  Divisor by_units;
  int groups, blocks, group_rows;  // blocks of a group; rows of the batch in it
  int slices_per_block, phases;
  int tile_rows;     // of the batch, multiplied at once
  int partial_rows;  // of the batch that a depth share's sums have room for
  ProductPlan product[kMaxProducts];
  int staged_at;   // a weight tile that does not stay
  int operand_at;  // a part of the tile's operand rows
  int partial_at;  // sums, by depth share, row of the batch, row of weights
  int order_at;    // the batch rows of the first order_rows rows of the group
  int order_rows;
  int fields_at;  // what the cell's equations read besides the product
  int shared_bytes;

  RNNKERN_DEVICE Index tiles(int p) const { return Index{slices} * product[p].parts; }
  RNNKERN_DEVICE Index tile_bytes(int p) const {
    return Index{product[p].rows} * product[p].part_bytes;
  }
  // One of the two halves of a phase's exchange buffer.
  RNNKERN_DEVICE Index exchange_bytes(int p) const {
    return Index{groups} * group_rows * product[p].depth_bytes;
  }
};

// Rows lie this much further apart in shared memory than they are long.
inline constexpr int kRowPadding = 64;

struct PlanRequest {
  DeviceFacts device;
  ProductFacts product;
  WeightFacts weights[kMaxProducts];
  int phases;
  int fields;       // values a unit and row that the equations read
  int field_bytes;  // of each
  Index units, batch;
  int strands;  // that share the device: directions, or layers where there are products between them
  int groups = 0;  // of the batch that the plan must have; 0 for as many as are best

  auto operator<=>(const PlanRequest&) const = default;
};

struct ChosenPlan {
  RecurrentPlan plan;
  const char* path;  // "resident", "vector" or "streaming"
  std::string reason;
  double cycles;  // a step's, estimated
};

// The plan of the least estimated time, if any fits.
std::optional<ChosenPlan> choose_plan(const PlanRequest& request);

// Why none does: std::invalid_argument.
[[noreturn]] void refuse_plan(const PlanRequest& request);

// How many of the stacked layers each launch has, from the first layer up.
struct LayerSplit {
  std::vector<int> launches;
  std::string reason;
};

// The split of the least estimated time. The time loop of k layers takes cycles[k - 1], and each
// launch but the first brings `launch_cycles`.
LayerSplit split_layers(int layers, const std::vector<double>& cycles, double launch_cycles);

// A launch more than a wavefront would have: its other kernels, and W_ih times (rows, depth), or
// its gradient, as a product of its own.
double launch_cycles(const PlanRequest& request, Index rows, Index columns, Index depth);

}  // namespace rnnkern::cuda
