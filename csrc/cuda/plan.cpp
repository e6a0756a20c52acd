#include "cuda/plan.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

namespace rnnkern::cuda {
namespace {

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index b) { return ceil_div(a, b) * b; }

constexpr int kChunkAlignment = 128;     // with the padding, an odd multiple of 64 apart
constexpr int kSmallestChunk = 512;      // bytes below which barriers outweigh the work
constexpr Index kMostRowsOfSlice = 512;  // of weights

// Estimates, in cycles; none was measured. A phase hands over through L2: a flag, the operand, a store.
constexpr double kPhaseCycles = 1700, kTileCycles = 200;
constexpr double kChunkCycles = 900;        // its loads are waited for, and two barriers
constexpr double kFlagCycles = 2;           // for each flag that is polled
constexpr double kSharedBytesACycle = 128;  // into a multiprocessor's registers
constexpr double kOperandBytesACycle = 28;  // out of L2 into a multiprocessor, all reading at once
constexpr double kScalarSumsACycle = 128;   // multiply-adds of a multiprocessor
constexpr double kTensorSumsACycle = 1024;

struct Candidate {
  RecurrentPlan plan;
  double cycles;
  bool resident;
};

// A plan for slices of `units` units and chunks that cut a row in `cuts`, if it fits.
std::optional<Candidate> plan_with(const PlanRequest& r, Index units, Index groups, Index cuts) {
  const auto& product = r.product;
  const Index budget = r.device.multiprocessors / r.passes;
  const Index slices = ceil_div(r.units, units);
  const Index blocks = std::min(slices, budget / groups);
  const Index rows = ceil_div(r.batch, groups), per_block = ceil_div(slices, blocks);
  Index most_row_tiles = 1;
  for (int p = 0; p < r.phases; ++p)
    most_row_tiles = std::max(most_row_tiles, ceil_div(r.phase[p].gates * units, product.rows));
  if (most_row_tiles > kWarps) return std::nullopt;
  const Index column_tiles = std::min(ceil_div(rows, product.columns), kWarps / most_row_tiles);

  RecurrentPlan plan{};
  plan.units = static_cast<int>(units), plan.slices = static_cast<int>(slices);
  plan.groups = static_cast<int>(groups), plan.blocks = static_cast<int>(blocks);
  plan.group_rows = static_cast<int>(rows);
  plan.slices_per_block = static_cast<int>(per_block), plan.phases = r.phases;
  plan.tile_rows = static_cast<int>(std::min(column_tiles * product.columns, rows));

  Index operand = 0, partial = 0, largest_tile = 0, all_tiles = 0;
  for (int p = 0; p < r.phases; ++p) {
    auto& phase = plan.phase[p];
    const Index depth = round_up(r.phase[p].depth * product.element_bytes, kChunkAlignment);
    const Index chunk = round_up(ceil_div(depth, cuts), kChunkAlignment);
    if (cuts > 1 && chunk < kSmallestChunk) return std::nullopt;
    phase.rows = static_cast<int>(r.phase[p].gates * units);
    phase.depth_bytes = static_cast<int>(depth), phase.chunk_bytes = static_cast<int>(chunk);
    phase.chunks = static_cast<int>(ceil_div(depth, chunk));
    phase.row_tiles = static_cast<int>(ceil_div(phase.rows, product.rows));
    phase.depth_shares = static_cast<int>(kWarps / (phase.row_tiles * column_tiles));
    const Index tile = Index{phase.rows} * (chunk + kRowPadding);
    largest_tile = std::max(largest_tile, tile);
    all_tiles += tile * per_block * phase.chunks;
    operand = std::max(operand, plan.tile_rows * (chunk + kRowPadding));
    partial = std::max(partial, round_up(Index{phase.depth_shares} * plan.tile_rows * phase.rows *
                                             product.sum_bytes,
                                         kVectorBytes));
  }
  const Index fields =
      round_up(Index{r.fields} * plan.tile_rows * units * r.field_bytes, kVectorBytes);
  const Index fixed = operand + partial + fields;
  const bool resident = all_tiles + fixed <= r.device.shared_bytes;
  Index room = r.device.shared_bytes - fixed - (resident ? 0 : largest_tile);
  if (room < 0) return std::nullopt;

  Index at = 0;
  double streamed = 0, cycles = 0;
  const double column_passes = static_cast<double>(ceil_div(rows, plan.tile_rows));
  for (int p = 0; p < r.phases; ++p) {
    auto& phase = plan.phase[p];
    const Index tile = Index{phase.rows} * (phase.chunk_bytes + kRowPadding);
    const Index tiles = per_block * phase.chunks, kept = std::min(tiles, room / tile);
    phase.resident = static_cast<int>(kept), phase.resident_at = static_cast<int>(at);
    at += kept * tile, room -= kept * tile;
    streamed += static_cast<double>((tiles - kept) * tile);
    const double weights = static_cast<double>(per_block * phase.row_tiles * product.rows) *
                           static_cast<double>(phase.depth_bytes);
    const double sums = weights / product.element_bytes * column_passes * plan.tile_rows;
    const bool tensor = !product.vector && product.rows == 16;
    cycles += kPhaseCycles + kFlagCycles * static_cast<double>(blocks) +
              column_passes * static_cast<double>(per_block) *
                  (kTileCycles + kChunkCycles * static_cast<double>(phase.chunks)) +
              std::max(column_passes * weights / kSharedBytesACycle,
                       sums / (tensor ? kTensorSumsACycle : kScalarSumsACycle)) +
              static_cast<double>(per_block * rows * phase.depth_bytes) / kOperandBytesACycle;
  }
  cycles += column_passes * streamed / kOperandBytesACycle;
  plan.staged_at = static_cast<int>(at);
  if (!resident) at += largest_tile;
  plan.operand_at = static_cast<int>(at);
  plan.partial_at = static_cast<int>(at += operand);
  plan.fields_at = static_cast<int>(at += partial);
  plan.shared_bytes = static_cast<int>(at += fields);
  return Candidate{plan, cycles, resident};
}

std::string in_words(const PlanRequest& r, const Candidate& c) {
  const auto& p = c.plan;
  std::string text = std::to_string(p.groups) + (p.groups == 1 ? " group of " : " groups of ") +
                     std::to_string(p.blocks) + (p.blocks == 1 ? " block, " : " blocks, ") +
                     std::to_string(p.units) + (p.units == 1 ? " unit" : " units") + " a slice; ";
  if (c.resident) {
    text += "the recurrent weights stay in shared memory";
  } else {
    Index kept = 0, all = 0;
    for (int i = 0; i < p.phases; ++i) {
      kept += p.phase[i].resident, all += Index{p.slices_per_block} * p.phase[i].chunks;
    }
    text += "the recurrent weights exceed shared memory: " + std::to_string(kept) + " of " +
            std::to_string(all) + " tiles a block stay, the others are read from L2 each step";
  }
  return text + (r.product.vector ? "; products without tensor cores for few rows" : "");
}

}  // namespace

ChosenPlan choose_plan(const PlanRequest& r) {
  const Index budget = r.device.multiprocessors / r.passes;
  if (budget < 1) {
    throw std::invalid_argument("passes: " + std::to_string(r.passes) +
                                " need as many multiprocessors, the device has " +
                                std::to_string(r.device.multiprocessors));
  }
  std::optional<Candidate> best;
  for (Index units = 1; units <= std::min(r.units, kMostRowsOfSlice); ++units) {
    const Index most = std::clamp<Index>(budget / ceil_div(r.units, units), 1, r.batch);
    for (Index groups = most; groups >= 1; --groups) {
      // Fewer groups with no more rows in each are the same work on fewer blocks.
      if (groups > 1 && ceil_div(r.batch, groups - 1) == ceil_div(r.batch, groups)) continue;
      for (Index cuts = 1; cuts <= 64; cuts *= 2) {
        const auto candidate = plan_with(r, units, groups, cuts);
        if (candidate && (!best || candidate->cycles < best->cycles)) best = candidate;
      }
    }
  }
  if (!best) {
    throw std::invalid_argument("units: no plan fits " + std::to_string(r.device.shared_bytes) +
                                " bytes of shared memory a block");
  }
  const char* path = !best->resident ? "streaming" : r.product.vector ? "vector" : "resident";
  return {best->plan, path, in_words(r, *best)};
}

}  // namespace rnnkern::cuda
