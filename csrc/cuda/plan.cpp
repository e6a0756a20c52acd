// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace rnnkern::cuda {
namespace {

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index b) { return ceil_div(a, b) * b; }

constexpr int kPartAlignment = 128;      // with the padding, an odd multiple of 64 apart
constexpr int kSmallestPart = 512;       // bytes below which barriers outweigh the work
constexpr Index kMostRowsOfSlice = 512;  // of weights
constexpr Index kMostOrderRows = 4096;   // of a group, beyond which shared memory is for weights

// Estimates, in cycles; none was measured. A phase hands over through L2: a flag, the operand, a
// store.
constexpr double kPhaseCycles = 1700, kTileCycles = 200;
constexpr double kAwaitCycles = 1000;  // of a phase; a product between layers goes on meanwhile
constexpr double kPartCycles = 900;    // its loads are waited for, and two barriers
constexpr double kFlagCycles = 2;      // for each flag that is polled
constexpr double kSharedBytesACycle = 128;  // into a multiprocessor's registers
constexpr double kOperandBytesACycle = 28;  // out of L2 into a multiprocessor, all reading at once
constexpr double kScalarSumsACycle = 128;   // multiply-adds of a multiprocessor
constexpr double kTensorSumsACycle = 1024;
constexpr double kMatmulShare = 0.4;      // of these sums that the products over a chunk reach
constexpr double kLaunchCycles = 20'000;  // of the small kernels before a time loop

struct Candidate {
  RecurrentPlan plan;
  double cycles;
  bool resident;
};

bool on_tensor_cores(const ProductFacts& product) { return product.columns_at_once > 1; }

double sums_a_cycle(const ProductFacts& product) {
  return on_tensor_cores(product) ? kTensorSumsACycle : kScalarSumsACycle;
}

// From one row of the batch to the next among the sums of `rows` rows of weights. A lane of the
// tensor cores has sums of two rows of the batch: so far apart, the lanes of a warp meet all banks.
Index partial_row(const ProductFacts& product, Index rows) {
  return on_tensor_cores(product) ? ceil_div(std::max<Index>(rows - 4, 0), 16) * 16 + 4 : rows;
}

// Warp tiles over the rows of weights of a slice of so many units.
Index most_row_tiles(const PlanRequest& r, Index units) {
  Index most = 1;
  for (const auto& weights : r.weights)
    most = std::max(most, ceil_div(weights.gates * units, r.product.rows));
  return most;
}

// A plan for slices of `units` units and parts that cut a row in `cuts`, if it fits.
std::optional<Candidate> plan_with(const PlanRequest& r, Index units, Index groups, Index cuts) {
  const Index budget = r.device.multiprocessors / r.strands;
  const Index slices = ceil_div(r.units, units);
  const Index blocks = std::min(slices, budget / groups);
  const Index rows = ceil_div(r.batch, groups), per_block = ceil_div(slices, blocks);
  const Index column_tiles =
      std::min(ceil_div(rows, r.product.columns), kWarps / most_row_tiles(r, units));

  RecurrentPlan plan{};
  plan.units = static_cast<int>(units), plan.slices = static_cast<int>(slices);
  plan.by_units = Divisor::of(units);
  plan.groups = static_cast<int>(groups), plan.blocks = static_cast<int>(blocks);
  plan.group_rows = static_cast<int>(rows);
  plan.slices_per_block = static_cast<int>(per_block), plan.phases = r.phases;
  plan.tile_rows = static_cast<int>(std::min(column_tiles * r.product.columns, rows));
  plan.partial_rows = static_cast<int>(round_up(plan.tile_rows, r.product.columns_at_once));

  Index operand = 0, partial = 0, largest_tile = 0, all_tiles = 0;
  for (int p = 0; p < kMaxProducts; ++p) {
    if (r.weights[p].gates == 0) continue;
    auto& product = plan.product[p];
    const Index depth = round_up(r.weights[p].depth * r.product.element_bytes, kPartAlignment);
    const Index part = round_up(ceil_div(depth, cuts), kPartAlignment);
    if (cuts > 1 && part < kSmallestPart) return std::nullopt;
    product.rows = static_cast<int>(r.weights[p].gates * units);
    product.depth_bytes = static_cast<int>(depth);
    product.part_bytes = static_cast<int>(part);
    product.parts = static_cast<int>(ceil_div(depth, part));
    product.row_tiles = static_cast<int>(ceil_div(product.rows, r.product.rows));
    product.depth_shares = static_cast<int>(kWarps / (product.row_tiles * column_tiles));
    product.by_row_tiles = Divisor::of(product.row_tiles);
    product.by_depth_shares = Divisor::of(product.depth_shares);
    product.partial_row = static_cast<int>(partial_row(r.product, product.rows));
    const Index tile = Index{product.rows} * (part + kRowPadding);
    largest_tile = std::max(largest_tile, tile);
    all_tiles += tile * per_block * product.parts;
    operand = std::max(operand, plan.tile_rows * (part + kRowPadding));
    partial = std::max(partial, round_up(Index{product.depth_shares} * plan.partial_rows *
                                             product.partial_row * r.product.sum_bytes,
                                         kVectorBytes));
  }
  const Index fields =
      round_up(Index{r.fields} * plan.tile_rows * units * r.field_bytes, kVectorBytes);
  plan.order_rows = static_cast<int>(std::min(rows, kMostOrderRows));
  const Index order = round_up(plan.order_rows * Index{sizeof(std::int32_t)}, kVectorBytes);
  const Index fixed = operand + partial + order + fields;
  const bool resident = all_tiles + fixed <= r.device.shared_bytes;
  Index room = r.device.shared_bytes - fixed - (resident ? 0 : largest_tile);
  if (room < 0) return std::nullopt;

  Index at = 0;
  double cycles = 0;
  const double column_passes = static_cast<double>(ceil_div(rows, plan.tile_rows));
  const double flag_cycles = kFlagCycles * static_cast<double>(blocks);
  for (int p = 0; p < kMaxProducts; ++p) {
    auto& product = plan.product[p];
    if (product.rows == 0) continue;
    const Index tile = Index{product.rows} * (product.part_bytes + kRowPadding);
    const Index tiles = per_block * product.parts, kept = std::min(tiles, room / tile);
    product.resident = static_cast<int>(kept), product.resident_at = static_cast<int>(at);
    at += kept * tile, room -= kept * tile;
    const double streamed = static_cast<double>((tiles - kept) * tile);
    const double weights = static_cast<double>(per_block * product.row_tiles * r.product.rows) *
                           static_cast<double>(product.depth_bytes);
    const double sums = weights / r.product.element_bytes * column_passes * plan.tile_rows;
    const double multiplied =
        column_passes * static_cast<double>(per_block) *
            (kTileCycles + kPartCycles * static_cast<double>(product.parts)) +
        std::max(column_passes * weights / kSharedBytesACycle, sums / sums_a_cycle(r.product)) +
        (static_cast<double>(per_block * rows * product.depth_bytes) + column_passes * streamed) /
            kOperandBytesACycle;
    cycles += p < kBetween ? kPhaseCycles + flag_cycles + multiplied
                           : flag_cycles + std::max(multiplied - kAwaitCycles, 0.0);
  }
  plan.staged_at = static_cast<int>(at);
  if (!resident) at += largest_tile;
  plan.operand_at = static_cast<int>(at);
  plan.partial_at = static_cast<int>(at += operand);
  plan.order_at = static_cast<int>(at += partial);
  plan.fields_at = static_cast<int>(at += order);
  plan.shared_bytes = static_cast<int>(at += fields);
  return Candidate{plan, cycles, resident};
}

std::string in_words(const PlanRequest& r, const Candidate& c) {
  const auto& p = c.plan;
  std::string text = std::to_string(p.groups) + (p.groups == 1 ? " group of " : " groups of ") +
                     std::to_string(p.blocks) + (p.blocks == 1 ? " block, " : " blocks, ") +
                     std::to_string(p.units) + (p.units == 1 ? " unit" : " units") + " a slice; ";
  if (r.weights[kBetween].gates > 0)
    text = std::to_string(r.strands) + " layers as a wavefront, each with " + text;
  const std::string weights = r.weights[kBetween].gates > 0 ? "weights" : "recurrent weights";
  if (c.resident) {
    text += "the " + weights + " stay in shared memory";
  } else {
    Index kept = 0, all = 0;
    for (const auto& product : p.product)
      kept += product.resident, all += Index{p.slices_per_block} * product.parts;
    text += "the " + weights + " exceed shared memory: " + std::to_string(kept) + " of " +
            std::to_string(all) + " tiles a block stay, the others are read from L2 each step";
  }
  return text + (r.product.vector ? "; products without tensor cores for few rows" : "");
}

}  // namespace

std::optional<ChosenPlan> choose_plan(const PlanRequest& r) {
  const Index budget = r.device.multiprocessors / r.strands;
  if (budget < 1) return std::nullopt;
  std::optional<Candidate> best;
  for (Index units = 1; units <= std::min(r.units, kMostRowsOfSlice); ++units) {
    if (most_row_tiles(r, units) > kWarps) break;
    const Index most = std::clamp<Index>(budget / ceil_div(r.units, units), 1, r.batch);
    for (Index groups = most; groups >= 1; --groups) {
      if (r.groups > 0 && groups != r.groups) continue;
      // Fewer groups with no more rows in each are the same work on fewer blocks.
      if (groups > 1 && ceil_div(r.batch, groups - 1) == ceil_div(r.batch, groups)) continue;
      for (Index cuts = 1; cuts <= 64; cuts *= 2) {
        const auto candidate = plan_with(r, units, groups, cuts);
        if (candidate && (!best || candidate->cycles < best->cycles)) best = candidate;
      }
    }
  }
  if (!best) return std::nullopt;
  const char* path = !best->resident ? "streaming" : r.product.vector ? "vector" : "resident";
  return ChosenPlan{best->plan, path, in_words(r, *best), best->cycles};
}

void refuse_plan(const PlanRequest& r) {
  if (r.strands > r.device.multiprocessors) {
    throw std::invalid_argument("strands: " + std::to_string(r.strands) +
                                " need as many multiprocessors, the device has " +
                                std::to_string(r.device.multiprocessors));
  }
  if (r.groups > 0)
    throw std::invalid_argument("groups: no plan has " + std::to_string(r.groups) + " of them");
  throw std::invalid_argument("units: no plan fits " + std::to_string(r.device.shared_bytes) +
                              " bytes of shared memory a block");
}

LayerSplit split_layers(int layers, const std::vector<double>& cycles, double launch_cycles) {
  // Of the first n layers: the least time, and how many of them the last launch has.
  struct Best {
    double cycles;
    int last;
  };
  const auto launch = [&](int n, int count) {
    return cycles[static_cast<std::size_t>(count - 1)] + (n > count ? launch_cycles : 0.0);
  };
  const int most = static_cast<int>(cycles.size());
  std::vector<Best> best{{0.0, 0}};
  for (int n = 1; n <= layers; ++n) {
    Best found{std::numeric_limits<double>::infinity(), 1};
    for (int count = 1; count <= std::min(n, most); ++count) {
      const double total = best[static_cast<std::size_t>(n - count)].cycles + launch(n, count);
      if (total < found.cycles) found = {total, count};
    }
    best.push_back(found);
  }

  LayerSplit split;
  for (int n = layers; n > 0; n -= split.launches.back()) {
    split.launches.push_back(best[static_cast<std::size_t>(n)].last);
  }
  std::reverse(split.launches.begin(), split.launches.end());
  if (layers == 1) return split;
  const auto hundredths = [](double ratio) {
    const auto text = std::to_string(std::round(ratio * 100) / 100);
    return text.substr(0, text.find('.') + 3);
  };
  const double alone = layers * launch(1, 1) + (layers - 1) * launch_cycles;
  const double chosen = best.back().cycles;
  if (static_cast<int>(split.launches.size()) < layers) {
    split.reason = "wavefronts, by the estimate " + hundredths(alone / chosen) +
                   " times as fast as a launch for each layer";
    return split;
  }
  double wavefront = std::numeric_limits<double>::infinity();
  for (int count = 2; count <= std::min(layers, most); ++count) {
    wavefront = std::min(
        wavefront, best[static_cast<std::size_t>(layers - count)].cycles + launch(layers, count));
  }
  split.reason = "a launch for each layer: ";
  split.reason += std::isinf(wavefront) ? "no wavefront fits the device"
                                        : "by the estimate wavefronts take " +
                                              hundredths(wavefront / chosen) + " times as long";
  return split;
}

double launch_cycles(const PlanRequest& r, Index rows, Index columns, Index depth) {
  const double sums =
      static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth);
  return kLaunchCycles + sums / (sums_a_cycle(r.product) * kMatmulShare *
                                 static_cast<double>(r.device.multiprocessors));
}

}  // namespace rnnkern::cuda
