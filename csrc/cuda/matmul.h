// SPDX-License-Identifier: Apache-2.0
// The products over many steps at once, and the caller's own: out (M, N) = [out +] a bᵀ [+ bias].
//
// Our own rather than cuBLAS': it is there wherever the module is, needs no handle or workspace,
// can be captured in a graph, rounds its operands in the one way of this library, gives the same
// bits from run to run, and reads gathered rows where they lie. cuBLAS could be added behind the
// same call.
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

// Four neighbouring elements of a row.
template <class T>
struct alignas(kVectorBytes) Quad {
  T value[4];
};

// The first `count` of them, the others zero; at once where they lie on a boundary.
template <class T>
RNNKERN_KERNEL Quad<T> load_quad(const T* from, Index count) {
  if (count >= 4 && reinterpret_cast<std::uintptr_t>(from) % kVectorBytes == 0)
    return *reinterpret_cast<const Quad<T>*>(from);
  Quad<T> quad{};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) quad.value[i] = from[i];
  }
  return quad;
}

// Elements (r, c) to (r, c + 3) of an operand whose rows end after `count` of them.
template <class T>
RNNKERN_KERNEL Quad<T> quad(const Operand<T>& o, const DeviceSchedule& schedule, Index r, Index c,
                            Index count) {
  if (o.kind == Operand<T>::kMatrix) return load_quad(o.data + r * o.row + c, count);
  const Index packed = o.first + r, t = schedule.time[packed], b = schedule.row[packed];
  if (o.kind == Operand<T>::kSequence) return load_quad(o.sequence.at(t, b) + c, count);
  if (o.kind == Operand<T>::kTokens) {
    const Index one = clamped_token<T>(o.tokens, t, b, o.columns) - c;
    Quad<T> q{};
#pragma unroll
    for (int i = 0; i < 4; ++i) q.value[i] = T(i == one ? 1 : 0);
    return q;
  }
  const Index before = o.reverse ? t + 1 : t - 1;
  const bool started = o.reverse ? before < schedule.length[b] : before >= 0;
  const T* const h = started ? o.sequence.at(before, b) : o.initial + b * o.columns;
  Quad<T> q = load_quad(h + c, count);
  if (o.gate) {
    const Quad<T> gate = load_quad(o.gate + packed * o.gate_row + c, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) q.value[i] *= gate.value[i];
  }
  if (o.factors) {
    const Quad<T> factor = load_quad(o.factors + b * o.columns + c, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) q.value[i] *= factor.value[i];
  }
  return q;
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

  RNNKERN_KERNEL static void run(Block block, const Arguments& args) {
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
        P::visit(sums[warp][lane], lane, P::columns, [&](int i, int j, T sum) {
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
  static constexpr int kShare = (Outer * kDepth / 4 + kThreads - 1) / kThreads;
  template <int Outer>
  struct Loaded {
    Quad<T> quad[kShare<Outer>];
  };

  // The first element of quad q of a tile: four k, or four rows where the source is
  // transposed. Then 32 neighbouring threads take 8 rows of 16 k, so that the stores spread over the
  // banks.
  struct Corner {
    int outer, k;
  };
  RNNKERN_KERNEL static Corner corner(int q, bool transposed) {
    if (!transposed) return {q / (kDepth / 4), q % (kDepth / 4) * 4};
    constexpr int width = kDepth < 16 ? kDepth : 16, widths = kDepth / width;
    const int strip = q / (2 * width);
    return {(strip / widths * 2 + q / width % 2) * 4, q % width + strip % widths * width};
  }

  template <int Outer>
  RNNKERN_KERNEL static void fetch(const Operand<T>& operand, bool transposed,
                                   const Arguments& args, Index first, Index end, Index k0,
                                   int thread, Loaded<Outer>& loaded) {
#pragma unroll
    for (int i = 0; i < kShare<Outer>; ++i) {
      const Corner at = corner(thread + i * kThreads, transposed);
      const Index outer = first + at.outer, k = k0 + at.k;
      loaded.quad[i] = Quad<T>{};
      if (at.outer >= Outer || outer >= end || k >= args.depth) continue;
      loaded.quad[i] = transposed ? quad(operand, args.schedule, k, outer, end - outer)
                                  : quad(operand, args.schedule, outer, k, args.depth - k);
    }
  }

  template <int Outer>
  RNNKERN_KERNEL static void store(const Loaded<Outer>& loaded, bool transposed, std::byte* tile,
                                   int thread) {
    struct alignas(4 * sizeof(Storage)) Rounded {
      Storage value[4];
    };
#pragma unroll
    for (int i = 0; i < kShare<Outer>; ++i) {
      const Corner at = corner(thread + i * kThreads, transposed);
      if (at.outer >= Outer) continue;
      Rounded rounded;
#pragma unroll
      for (int j = 0; j < 4; ++j) rounded.value[j] = E::round(loaded.quad[i].value[j]);
      const auto row = [&](int outer) {
        return reinterpret_cast<Storage*>(tile + outer * kStride) + at.k;
      };
      if (transposed) {
#pragma unroll
        for (int j = 0; j < 4; ++j) *row(at.outer + j) = rounded.value[j];
      } else {
        *reinterpret_cast<Rounded*>(row(at.outer)) = rounded;
      }
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
