// SPDX-License-Identifier: Apache-2.0
// What forward and backward calls have in common: how one is cut up, its workspace, and the
// launches around the time loop.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "core/cells.h"
#include "core/memory.h"
#include "core/schedule.h"
#include "cuda/engine.h"
#include "cuda/kernels.h"

namespace rnnkern::cuda {

inline const CellFacts& facts_of(const Shape& shape) { return cell_facts(shape.cell); }

template <class T>
const ComputeKernels<T>& kernels_for(Compute compute) {
  if constexpr (std::is_same_v<T, double>) {
    if (compute != Compute::exact)
      throw std::invalid_argument("compute must be None for float64 arrays");
    return float64_kernels();
  } else {
    switch (compute) {
      case Compute::tfloat32:
        return tfloat32_kernels();
      case Compute::bfloat16:
        return bfloat16_kernels();
      case Compute::float16:
        return float16_kernels();
      default:
        return float32_kernels();
    }
  }
}

inline constexpr Index kFewRows =
    4;  // of the batch, up to which products are not padded for tensor cores

template <class T>
const RecurrentKernels<T>& recurrent_kernels(const Shape& shape) {
  const auto& kernels = kernels_for<T>(shape.compute);
  const bool there = kernels.vector.loops(shape.given_functions).forward[shape.cell];
  return shape.batch <= kFewRows && there ? kernels.vector : kernels.matrix;
}

// The schedule's place in the workspace.
inline DeviceSchedule take_schedule(const Shape& shape, Index live, Arena& arena) {
  const auto take = [&](Index count) { return arena.take<std::int32_t>(count); };
  return {static_cast<std::int32_t>(shape.steps),
          static_cast<std::int32_t>(shape.batch),
          take(shape.batch),
          take(shape.batch),
          take(shape.batch),
          take(shape.steps + 1),
          take(live),
          take(live)};
}

inline void fill(const DeviceSchedule& schedule, const Shape& shape, const ScheduleStorage& storage,
                 void* stream) {
  const Index* order = storage.schedule(false).order;
  SchedulePart part{};
  part.schedule = schedule, part.ragged = storage.ragged();
  const Index most = storage.ragged() ? SchedulePart::kRows : shape.batch;
  for (Index first = 0; first < shape.batch; first += most) {
    const Index count = std::min(most, shape.batch - first);
    part.first = static_cast<std::int32_t>(first), part.count = static_cast<std::int32_t>(count);
    for (Index i = 0; storage.ragged() && i < count; ++i) {
      part.order[i] = static_cast<std::int32_t>(order[first + i]);
      part.length[i] = static_cast<std::int32_t>(storage.length(order[first + i]));
    }
    fill_schedule(stream, part);
  }
  expand_schedule(stream, schedule);
}

// What a call of either way lays out in its workspace, strand by strand.
template <class T>
struct Workspace {
  DeviceSchedule schedule;
  Exchange exchange[kMaxStrands];
  std::byte* weights[kMaxStrands][kMaxProducts];
  ZeroArguments zeroed;   // all operands and flags, and what is handed on where its rows are padded
  T* chunk[kMaxStrands];  // (rows of a chunk, row_size): x_part, where there is one, or deltas
  T* scratch[kMaxStrands];  // of a cell of two phases: (B, saved, H), or backward dh_now
};

// Bytes of a packed row that one layer hands on to the next.
inline Index handed_bytes(const RecurrentPlan& plan) { return plan.product[kBetween].depth_bytes; }

// Elements of a row of x_part or the deltas.
inline Index chunk_row_size(const Shape& shape, bool backward) {
  const auto& cell = facts_of(shape);
  return (backward ? cell.deltas : cell.gates) * shape.units;
}

// As many steps as the buffers of a chunk have room for.
template <class T>
Index steps_of_chunk(const Shape& shape, const RecurrentPlan& plan, bool backward) {
  const Index row_sizes = shape.stacked && !backward ? 1 : shape.strands;
  const Index row_bytes = row_sizes * chunk_row_size(shape, backward) * Index{sizeof(T)} +
                          (shape.strands - 1) * handed_bytes(plan);
  return std::clamp<Index>(current_device().chunk_bytes / row_bytes / shape.batch, 1, shape.steps);
}

// How a call, forward or backward, is cut up, and its workspace: arithmetic on sizes.
template <class T>
class Layout {
 public:
  Layout(const Shape& shape, bool backward)
      : shape_(shape),
        cell_(facts_of(shape)),
        backward_(backward),
        live_rows_(shape.live_rows()),
        kernels_(kernels_for<T>(shape.compute)),
        recurrent_(recurrent_kernels<T>(shape)),
        plan_(plan_of<T>(shape, backward).plan),
        row_size_(chunk_row_size(shape, backward)),
        chunk_steps_(steps_of_chunk<T>(shape, plan_, backward)) {}

  Index workspace_bytes() const {
    Arena measure(nullptr);
    make_workspace(measure);
    return measure.used();
  }

 protected:
  Workspace<T> make_workspace(Arena& arena) const {
    Workspace<T> space{};
    const Index chunk_rows = std::min(chunk_steps_ * shape_.batch, live_rows_);
    space.schedule = take_schedule(shape_, live_rows_, arena);
    const Index zeros_begin = arena.used();
    for (int k = 0; k < shape_.strands; ++k) {
      auto& exchange = space.exchange[k];
      for (int p = 0; p < plan_.phases; ++p)
        exchange.operand[p] = arena.take<std::byte>(2 * plan_.exchange_bytes(p));
      exchange.flags = arena.take<std::uint32_t>(Index{plan_.groups} * plan_.blocks);
    }
    Index zeros_end = arena.used();
    for (int k = 0; shape_.stacked && k + 1 < shape_.strands; ++k)
      space.exchange[k].handed = arena.take<std::byte>(chunk_rows * handed_bytes(plan_));
    if (handed_units() * recurrent_.product.element_bytes < handed_bytes(plan_))
      zeros_end = arena.used();
    space.zeroed = {reinterpret_cast<std::uint32_t*>(space.exchange[0].operand[0]),
                    (zeros_end - zeros_begin) / Index{sizeof(std::uint32_t)}};
    for (int k = 0; k < shape_.strands; ++k) {
      for (int p = 0; p < (fed(k) ? kMaxProducts : kBetween); ++p) {
        space.weights[k][p] = arena.take<std::byte>(plan_.tiles(p) * plan_.tile_bytes(p));
        space.exchange[k].weights[p] = space.weights[k][p];
      }
      if (backward_ || !fed(k)) space.chunk[k] = arena.take<T>(chunk_rows * row_size_);
      if (cell_.phases.size() > 1)
        space.scratch[k] =
            arena.take<T>(shape_.batch * (backward_ ? 1 : cell_.saved) * shape_.units);
    }
    return space;
  }

  bool fed(int k) const { return shape_.stacked && k > 0; }
  // What a row that a layer hands on holds, but for its padding.
  Index handed_units() const { return (backward_ ? cell_.gates : 1) * shape_.units; }

  const Shape& shape_;
  const CellFacts& cell_;
  const bool backward_;
  const Index live_rows_;
  const ComputeKernels<T>& kernels_;
  const RecurrentKernels<T>& recurrent_;
  const RecurrentPlan plan_;
  const Index row_size_, chunk_steps_;
};

// A call itself: what both ways have in common.
template <class T>
class Call : Layout<T> {
 protected:
  using Layout<T>::shape_, Layout<T>::cell_, Layout<T>::backward_, Layout<T>::kernels_,
      Layout<T>::recurrent_, Layout<T>::plan_, Layout<T>::row_size_, Layout<T>::chunk_steps_,
      Layout<T>::make_workspace, Layout<T>::fed;

  Call(const Shape& shape, bool backward)
      : Layout<T>(shape, backward), storage_(shape.steps, shape.batch, shape.lengths) {}

  // The layer that is strand k: backward, the last of stacked ones comes first.
  template <class Layer>
  const Layer& layer_of(const std::vector<Layer>& layers, int k) const {
    return layers[static_cast<std::size_t>(shape_.stacked && backward_ ? shape_.strands - 1 - k
                                                                       : k)];
  }

  // What comes before the first chunk.
  template <class Layer>
  void prepare(const Workspace<T>& space, const std::vector<Layer>& layers, void* stream) const {
    fill(space.schedule, shape_, storage_, stream);
    zero(stream, space.zeroed);
    for (int k = 0; k < shape_.strands; ++k) {
      for (int p = 0; p < plan_.phases; ++p)
        pack(space, k, p, layer_of(layers, k).parameters.w_hh, cell_.phases[p], stream);
      if (!fed(k)) continue;
      if (backward_) {
        pack(space, k, kBetween, layer_of(layers, k - 1).parameters.w_ih, {0, cell_.gates}, stream);
      } else {
        for (int p = 0; p < plan_.phases; ++p)
          pack(space, k, kBetween + p, layer_of(layers, k).parameters.w_ih, cell_.phases[p],
               stream);
      }
    }
  }

  void pack(const Workspace<T>& space, int k, int product, const T* weights, Range gates,
            void* stream) const {
    kernels_.pack(stream, {.weights = weights,
                           .packed = space.weights[k][product],
                           .plan = plan_,
                           .product = product,
                           .first_gate = gates.first,
                           .gates = gates.count,
                           .units = static_cast<std::int32_t>(shape_.units),
                           .backward = backward_});
  }

  // The packed rows of the processed steps [begin, end) of a strand.
  struct Rows {
    Index first, count;
  };
  Rows rows_of(Index begin, Index end, bool reverse) const {
    const auto schedule = storage_.schedule(reverse);
    const Index first = reverse ? shape_.steps - end : begin;
    return {schedule.offset[first],
            schedule.offset[first + (end - begin)] - schedule.offset[first]};
  }

  template <class Strand, class Layer>
  RecurrentProblem<Strand> problem_of(const Workspace<T>& space, const std::vector<Layer>& layers,
                                      Index begin, Index end) const {
    RecurrentProblem<Strand> problem{};
    problem.plan = plan_, problem.schedule = space.schedule, problem.stacked = shape_.stacked;
    problem.units = static_cast<std::int32_t>(shape_.units);
    problem.begin = static_cast<std::int32_t>(begin), problem.end = static_cast<std::int32_t>(end);
    for (int k = 0; k < shape_.strands; ++k) {
      const bool reverse = layer_of(layers, k).reverse;
      problem.first_row[k] = static_cast<std::int32_t>(rows_of(begin, end, reverse).first);
      problem.strand[k].reverse = reverse;
      problem.strand[k].exchange = space.exchange[k];
    }
    return problem;
  }

  Grid grid(void* stream) const {
    return {.stream = stream,
            .blocks = Index{shape_.strands} * plan_.groups * plan_.blocks,
            .shared_bytes = plan_.shared_bytes,
            .together = true};
  }

  // x of a chunk, as a product reads it.
  template <class Layer>
  Operand<T> input_of(const Layer& layer, Index first) const {
    Operand<T> x{};
    x.kind = layer.tokens.data ? Operand<T>::kTokens : Operand<T>::kSequence;
    x.first = static_cast<std::int32_t>(first);
    x.columns = static_cast<std::int32_t>(layer.parameters.inputs);
    x.sequence = layer.x, x.tokens = layer.tokens;
    return x;
  }
  static Operand<T> matrix(const T* data, Index row) {
    Operand<T> m{};
    m.kind = Operand<T>::kMatrix, m.data = data, m.row = row;
    return m;
  }

  const ScheduleStorage storage_;
};

}  // namespace rnnkern::cuda
