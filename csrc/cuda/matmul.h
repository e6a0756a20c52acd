// The products over many steps at once, and the caller's own: out (M, N) = [out +] a bᵀ [+ bias].
//
// Our own rather than cuBLAS': it is there wherever the module is, needs no handle or workspace, can be
// captured in a graph, rounds its operands in the one way of this library, gives the same bits from
// run to run, and reads gathered rows where they lie. cuBLAS could be added behind the same call.
#pragma once

#include "cuda/problem.h"
#include "cuda/product.h"

namespace rnnkern::cuda {

template <class T>
RNNKERN_KERNEL Index clamped_token(const Sequence<const std::int64_t>& tokens, Index t, Index b,
                                   Index columns) {
  const std::int64_t token = *tokens.at(t, b);
  return token < 0 ? 0 : token < columns ? static_cast<Index>(token) : columns - 1;
}

template <class T>
RNNKERN_KERNEL T element(const Operand<T>& o, const DeviceSchedule& schedule, Index r, Index c) {
  if (o.kind == Operand<T>::kMatrix) return o.data[r * o.row + c];
  const Index packed = o.first + r, t = schedule.time[packed], b = schedule.row[packed];
  switch (o.kind) {
    case Operand<T>::kSequence:
      return o.sequence.at(t, b)[c];
    case Operand<T>::kTokens:
      return T(clamped_token<T>(o.tokens, t, b, o.columns) == c ? 1 : 0);
    default:
      break;
  }
  const Index before = o.reverse ? t + 1 : t - 1;
  const bool started = o.reverse ? before < schedule.length[b] : before >= 0;
  const T h = started ? o.sequence.at(before, b)[c] : o.initial[b * o.columns + c];
  return o.gate ? o.gate[packed * o.gate_row + c] * h : h;
}

// P multiplies a warp's tile; the block has kWarpRows by kWarpColumns of them.
template <class P>
class MatmulKernel {
  using E = typename P::Element;
  using T = typename E::Sum;
  using Storage = typename E::Storage;
  static constexpr int kWarpRows = 4, kWarpColumns = kWarps / kWarpRows;
  static constexpr int kDepth = kStepBytes / sizeof(Storage);  // of a step
  static constexpr int kStride = kStepBytes;                   // an odd multiple of 64

 public:
  using Arguments = MatmulArguments<T>;
  static constexpr int rows = P::rows * kWarpRows, columns = P::columns * kWarpColumns;
  static constexpr int shared_bytes = (rows + columns) * kStride;

  RNNKERN_KERNEL static void run(const Block& block, const Arguments& args) {
    const Index tiles = (args.columns + columns - 1) / columns;
    const Index m0 = block.index() / tiles * rows, n0 = block.index() % tiles * columns;
    const Index m_left = args.rows - m0, n_left = args.columns - n0;
    Warps<Lanes<typename P::Sums>> sums{};
    PerThread<Loaded<rows>> a;
    PerThread<Loaded<columns>> b;
    const auto load = [&](Index k0) {
      block.each([&](int thread) {
        fetch(args.a, args.a_transposed, args, m0, args.rows, k0, thread, a[thread]);
        fetch(args.b, args.b_transposed, args, n0, args.columns, k0, thread, b[thread]);
      });
    };
    load(0);
    for (Index k0 = 0; k0 < args.depth; k0 += kDepth) {
      block.each([&](int thread) {
        store<rows>(a[thread], args.a_transposed, block.shared(), thread);
        store<columns>(b[thread], args.b_transposed, block.shared() + rows * kStride, thread);
      });
      // The next step's operands are on their way while this one's are multiplied.
      if (k0 + kDepth < args.depth) load(k0 + kDepth);
      block.each_warp([&](int warp) {
        const int m = warp / kWarpColumns * P::rows, n = warp % kWarpColumns * P::columns;
        P::multiply(sums[warp], Rows{block.shared() + m * kStride, kStride, P::rows},
                    Rows{block.shared() + (rows + n) * kStride, kStride, P::columns}, 0, 1);
      });
    }
    block.each_warp([&](int warp) {
      P::finish(sums[warp]);
      each_lane([&](int lane) {
        P::visit(sums[warp][lane], lane, [&](int i, int j, T sum) {
          const Index m = i + warp / kWarpColumns * P::rows,
                      n = j + warp % kWarpColumns * P::columns;
          if (m < m_left && n < n_left) write(args, m0 + m, n0 + n, sum);
        });
      });
    });
  }

 private:
  // A thread's share of a tile of `Outer` rows by kDepth, before it is rounded and stored.
  template <int Outer>
  static constexpr int kShare = (Outer * kDepth + kThreads - 1) / kThreads;
  template <int Outer>
  struct Loaded {
    T value[kShare<Outer>];
  };

  // Where element q of a tile lies: neighbouring threads take neighbouring addresses of the source,
  // eight at a time where the source runs the other way, which also spreads the stores over the banks.
  struct Cell {
    int outer, k;
  };
  RNNKERN_KERNEL static Cell cell(int q, bool transposed) {
    if (!transposed) return {q / kDepth, q % kDepth};
    const int block = q / 32;
    return {q % 8 + block / (kDepth / 4) * 8, q / 8 % 4 + block % (kDepth / 4) * 4};
  }

  template <int Outer>
  RNNKERN_KERNEL static void fetch(const Operand<T>& operand, bool transposed,
                                   const Arguments& args, Index first, Index end, Index k0,
                                   int thread, Loaded<Outer>& loaded) {
#pragma unroll
    for (int i = 0; i < kShare<Outer>; ++i) {
      const Cell at = cell(thread + i * kThreads, transposed);
      const Index outer = first + at.outer, k = k0 + at.k;
      T value(0);
      if (at.outer < Outer && outer < end && k < args.depth) {
        value = transposed ? element(operand, args.schedule, k, outer)
                           : element(operand, args.schedule, outer, k);
      }
      loaded.value[i] = value;
    }
  }

  template <int Outer>
  RNNKERN_KERNEL static void store(const Loaded<Outer>& loaded, bool transposed, std::byte* tile,
                                   int thread) {
#pragma unroll
    for (int i = 0; i < kShare<Outer>; ++i) {
      const Cell at = cell(thread + i * kThreads, transposed);
      if (at.outer < Outer)
        reinterpret_cast<Storage*>(tile + at.outer * kStride)[at.k] = E::round(loaded.value[i]);
    }
  }

  RNNKERN_KERNEL static void write(const Arguments& args, Index m, Index n, T sum) {
    T* out = args.out + m * args.out_row;
    if (!args.out) {
      const Index packed = args.first + m;
      out = args.scattered.at(args.schedule.time[packed], args.schedule.row[packed]);
    }
    if (args.bias) sum += args.bias[n];
    out[n] = args.accumulate ? out[n] + sum : sum;
  }
};

}  // namespace rnnkern::cuda
