// SPDX-License-Identifier: Apache-2.0
// The small kernels around the time loop: the schedule in device memory, packed weights, zeros,
// tokens. All of them share their elements out over a grid of any size.
#pragma once

#include "cuda/launch.h"
#include "cuda/matmul.h"

namespace rnnkern::cuda {

// A grid for `count` elements; more blocks than this only wait for each other.
inline Grid element_grid(void* stream, Index count) {
  constexpr Index most = 2048;
  const Index blocks = (count + kThreads - 1) / kThreads;
  return {.stream = stream, .blocks = blocks < 1 ? 1 : blocks < most ? blocks : most};
}

// f(i) for this block's share of [0, count).
template <class F>
RNNKERN_KERNEL void each_element(Block block, Index count, F f) {
  block.each([&](int thread) {
    for (Index i = block.index() * kThreads + thread; i < count; i += block.count() * kThreads)
      f(i);
  });
}

// The sorted rows and their lengths.
struct FillScheduleKernel {
  using Arguments = SchedulePart;

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
    each_element(block, args.count, [&](Index i) {
      const auto b = args.ragged ? args.order[i] : static_cast<std::int32_t>(args.first + i);
      const auto length = args.ragged ? args.length[i] : args.schedule.steps;
      args.schedule.order[args.first + i] = b;
      args.schedule.sorted_length[args.first + i] = length;
      args.schedule.length[b] = length;
    });
  }
};

// offset[t]: the live rows of all steps before t.
struct OffsetKernel {
  using Arguments = DeviceSchedule;

  RNNKERN_KERNEL static void run(Block block, const Arguments& schedule) {
    each_element(block, schedule.steps + Index{1}, [&](Index t) {
      std::int32_t rows = 0;
      for (Index i = 0; i < schedule.batch; ++i) {
        const std::int32_t length = schedule.sorted_length[i];
        rows += length < t ? length : static_cast<std::int32_t>(t);
      }
      schedule.offset[t] = rows;
    });
  }
};

// time and row of each packed row.
struct PackedRowsKernel {
  using Arguments = DeviceSchedule;

  RNNKERN_KERNEL static void run(Block block, const Arguments& schedule) {
    each_element(block, Index{schedule.steps} * schedule.batch, [&](Index at) {
      const Index t = at / schedule.batch, i = at % schedule.batch;
      const Index packed = schedule.offset[t] + i;
      if (packed >= schedule.offset[t + 1]) return;
      schedule.time[packed] = static_cast<std::int32_t>(t);
      schedule.row[packed] = schedule.order[i];
    });
  }
};

struct ZeroKernel {
  using Arguments = ZeroArguments;

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
    each_element(block, args.count, [&](Index i) { args.words[i] = 0; });
  }
};

// A product's weights in the order in which the blocks load them, rounded, zeros at the end of the
// depth. Forward, row m of a slice is gate m / units of unit m % units, and the depth runs over
// the units; backward, row m is unit m, and the depth runs over the phase's gates and their units.
template <class E>
struct PackKernel {
  using T = typename E::Sum;
  using Arguments = PackArguments<T>;

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
    const ProductPlan& product = args.plan.product[args.product];
    const Index units = args.units, size = args.plan.units;
    const Index depth = product.part_bytes / Index{sizeof(typename E::Storage)};
    each_element(block, args.plan.tiles(args.product) * product.rows * depth, [&](Index at) {
      const Index row = at / depth % product.rows, tile = at / depth / product.rows;
      const Index k = tile % product.parts * depth + at % depth;
      const Index unit = tile / product.parts * size + row % size;
      T value(0);
      if (unit < units && k < (args.backward ? args.gates * units : units)) {
        value = args.backward
                    ? args.weights[(args.first_gate * units + k) * units + unit]
                    : args.weights[((args.first_gate + row / size) * units + unit) * units + k];
      }
      static_cast<typename E::Storage*>(args.packed)[at] = E::round(value);
    });
  }
};

// x_part for tokens: a column of W_ih for each packed row of the chunk, bias added. A token outside
// the weights cannot be reported without waiting for the device: it counts as the nearest inside.
template <class T>
struct GatherKernel {
  using Arguments = GatherArguments<T>;

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
    each_element(block, Index{args.rows} * args.gate_units, [&](Index at) {
      const Index packed = args.first + at / args.gate_units, j = at % args.gate_units;
      const Index token = clamped_token<T>(args.tokens, args.schedule.time[packed],
                                           args.schedule.row[packed], args.inputs);
      args.x_part[at] = args.w_ih[j * args.inputs + token] + (args.bias ? args.bias[j] : T(0));
    });
  }
};

// y past the rows' lengths.
template <class T>
struct ZeroTailKernel {
  using Arguments = ZeroTailArguments<T>;

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
    const Index steps = args.schedule.steps, batch = args.schedule.batch;
    each_element(block, steps * batch * args.units, [&](Index at) {
      const Index unit = at % args.units, b = at / args.units % batch, t = at / args.units / batch;
      if (t >= args.schedule.length[b]) args.y.at(t, b)[unit] = T(0);
    });
  }
};

// out[j] += Σ over the rows of a matrix. A block has 32 columns; its warps share the rows.
template <class T>
struct ColumnSumsKernel {
  using Arguments = ColumnSumsArguments<T>;
  static constexpr int shared_bytes = kThreads * sizeof(T);

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
    T* const sums = reinterpret_cast<T*>(block.shared());
    const Index first = block.index() * kLanes;
    block.each([&](int thread) {
      const Index column = first + thread % kLanes;
      T sum(0);
      for (Index r = thread / kLanes; column < args.columns && r < args.rows; r += kWarps)
        sum += args.data[r * args.row + column];
      sums[thread] = sum;
    });
    block.each([&](int thread) {
      if (thread >= kLanes || first + thread >= args.columns) return;
      T sum(0);
      for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp * kLanes + thread];
      args.out[first + thread] += sum;
    });
  }
};

}  // namespace rnnkern::cuda
