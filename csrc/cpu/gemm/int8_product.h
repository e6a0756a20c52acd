// SPDX-License-Identifier: Apache-2.0
// Products of int8 operands: a column of W is a scale times whole numbers q in [-127, 127], and so is a row
// of A, which is rounded when it comes.
//
//   W:  scale_w = max|w| / 127, rounded up to 16 bits so that scale_w·q is a float32;  q_w = w / scale_w
//   A:  scale_a = max|a| / 127;  q_a = a · (127 / max|a|); both to the nearest, ties to even
//   C = start + (scale_a · scale_w) · Σ q_a q_w
//
// The sum is exact, as int32: so it is the same whatever tiles, threads and instructions there are. What is
// not finite makes its column or row NaN.
//
// Dot is the instructions on registers:
//   Operand, kDeep              elements of a row of A, and how many k one instruction takes
//   kShift                      what is added to q_a where Operand has no sign; sums then begin with what
//                               it adds to them, of opposite sign
//   Sums, Columns               as many int32 as V has lanes; for each of them kDeep of W, or of A
//   zero(), or load(int32), load(int8), broadcast(p), add(sum, row, column), values(sum) as V
//   store(p, v)                 V::size Operands, rounded from v
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/gemm/product.h"

namespace rnnkern {

// The depth up to which no int32 is too small for a sum: 127·127·2^17 < 2^31.
inline constexpr Index kDeepest = Index{1} << 17;

template <class Product, int M, int W, int P>
void multiply_int8(const typename Product::Tile& t) {
  using V = typename Product::Lane;
  using Dot = typename Product::Instructions;
  const typename Product::Operand* a[M];
  typename Dot::Sums sum[M][P * W];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    a[m] = t.a[m] + Product::kHeader + t.a_begin;
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) {
      if constexpr (Product::kShifted) {
        sum[m][w] = Dot::load(reinterpret_cast<const std::int32_t*>(
            t.scales.offsets + (w / W) * t.scales.panel + (w % W) * V::size));
      } else {
        sum[m][w] = Dot::zero();
      }
    }
  }
  const auto* b = t.b;
  const Index b_panel = t.b_panel;
  [[maybe_unused]] const auto* ahead = t.ahead ? t.ahead : reinterpret_cast<const std::byte*>(b);
  // Two instructions deep at once: what is beyond the depth is zeros.
  constexpr int kSteps = 2;
  static_assert(Product::kDepthMultiple % (kSteps * Dot::kDeep) == 0);
  for (Index k = 0; k < t.depth; k += kSteps * Dot::kDeep) {
#pragma GCC unroll 2
    for (int step = 0; step < kSteps; ++step) {
      const auto column_at = [&](int w) __attribute__((always_inline)) {
        return Dot::load(b + (w / W) * b_panel + (step * W + w % W) * Dot::kDeep * V::size);
      };
      const auto row_at = [&](int m) __attribute__((always_inline)) {
        return Dot::broadcast(a[m] + k + step * Dot::kDeep);
      };
      // As in multiply_tile: the shorter side waits in registers.
      if constexpr (M < P * W) {
        typename Dot::Columns row[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) row[m] = row_at(m);
#pragma GCC unroll 16
        for (int w = 0; w < P * W; ++w) {
          const auto column = column_at(w);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) sum[m][w] = Dot::add(sum[m][w], row[m], column);
        }
      } else {
        typename Dot::Columns column[P * W];
#pragma GCC unroll 16
        for (int w = 0; w < P * W; ++w) column[w] = column_at(w);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const auto row = row_at(m);
#pragma GCC unroll 16
          for (int w = 0; w < P * W; ++w) sum[m][w] = Dot::add(sum[m][w], row, column[w]);
        }
        __builtin_prefetch(ahead, 0, 2);  // into the L2 cache
        ahead += Ahead::kLineBytes;
      }
    }
    b += stored_row<Product>(W) * Dot::kDeep * kSteps;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const V scale(Product::scale_of(t.a[m]));
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) {
      const V of_column = V::load(t.scales.first + (w / W) * t.scales.panel + (w % W) * V::size);
      const V start = V::load(t.start + start_of<V, W>(t, m, w));
      fma(scale * of_column, Dot::values(sum[m][w]), start)
          .store(t.out + m * t.out_row + (w / W) * t.out_panel + (w % W) * V::size);
    }
  }
}

// The kernels by (width, rows, panels): few, for nothing but speed depends on their shapes.
template <class Product>
class Int8Tiles {
  static constexpr int kWide = kPanelWidth<typename Product::Lane>, kHeight = 6, kPanels = 2;

  // A few rows take four lanes of sums at once, to keep the units busy.
  static constexpr bool has(int width, int rows, int panels) {
    return panels == 1 || (width == 2 && kWide == 2 && rows <= 2);
  }

 public:
  Int8Tiles(int width, Index /*rows of the whole product*/, const TallTiles*) : width_(width) {}

  int height() const { return kHeight; }
  int panels(int rows, Index available) const {
    return available >= kPanels && has(width_, rows, kPanels) ? kPanels : 1;
  }
  void multiply(int rows, int panels, typename Product::Tile tile) const {
    const Function kernel = kTable.of[width_ - 1][rows - 1][panels - 1];
    for (Index left = tile.depth;; left -= kDeepest) {
      tile.depth = std::min(left, kDeepest);
      kernel(tile);
      if (left <= kDeepest) return;
      tile.a_begin += kDeepest;
      tile.b += kDeepest * stored_row<Product>(width_);
      tile.scales.offsets += Index{width_} * Product::Lane::size;
      tile.ahead = nullptr;
      tile.start = tile.out, tile.start_row = tile.out_row, tile.start_panel = tile.out_panel;
    }
  }

 private:
  using Function = void (*)(const typename Product::Tile&);
  struct Table {
    Function of[kWide][kHeight][kPanels] = {};

    constexpr Table() { fill(std::make_integer_sequence<int, kWide * kHeight * kPanels>()); }
    template <int... I>
    constexpr void fill(std::integer_sequence<int, I...>) {
      (fill_one<I / (kHeight * kPanels), I / kPanels % kHeight, I % kPanels>(), ...);
    }
    template <int W, int M, int P>
    constexpr void fill_one() {
      if constexpr (has(W + 1, M + 1, P + 1))
        of[W][M][P] = multiply_int8<Product, M + 1, W + 1, P + 1>;
    }
  };
  static constexpr Table kTable{};

  const int width_;
};

template <class V, class Dot>
struct Int8Product {
  using Lane = V;
  using Panel = std::int8_t;
  using Operand = typename Dot::Operand;
  using Instructions = Dot;
  using Tile = TileProduct<float, Panel, Operand, Scales>;
  using Tiles = Int8Tiles<Int8Product>;
  using Session = NoSession;
  static constexpr bool kRounds = true, kScaled = true, kShifted = Dot::kShift != 0;
  static constexpr int kDepthStep = Dot::kDeep, kWidthStep = 1;
  // A row is stored by whole lanes, and a panel takes whole floats.
  static constexpr Index kDepthMultiple = V::size > 4 ? V::size : 4;
  static constexpr Index kHeader = sizeof(float) / sizeof(Operand);  // a copied row's scale

  // Of a column's values.
  static float scale_of(const float* values, Index n) {
    constexpr std::uint32_t kInfinite = 0x7F800000, kDropped = 0xFF;
    std::uint32_t most =
        0;  // of absolute values, which stand in order as whole numbers do, NaN last
#pragma omp simd reduction(max : most)
    for (Index k = 0; k < n; ++k)
      most = std::max(most, std::bit_cast<std::uint32_t>(values[k]) & 0x7FFFFFFFu);
    if (most >= kInfinite) return std::numeric_limits<float>::quiet_NaN();
    const auto bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(most) / 127.0f);
    return std::bit_cast<float>((bits + kDropped) & ~kDropped);
  }
  // What its values are divided by: those of a column of zeros, or one that is not finite, become 0.
  static float divisor(float scale) {
    return scale > 0 ? scale : std::numeric_limits<float>::infinity();
  }
  static int whole(float v) { return std::fabs(v) <= 128 ? static_cast<int>(std::lrint(v)) : 0; }

  // Rows of a panel before those of each k: initial values, scales, and what the sums of each kDeepest
  // begin with.
  static Index head_rows(Index depth) {
    return kShifted ? 2 + (depth + kDeepest - 1) / kDeepest : 2;
  }
  // Those of a column but the first, `row` apart.
  static void pack_scale(const float* values, Index n, float* to, Index row) {
    const float scale = *to = n > 0 ? scale_of(values, n) : 0;
    if constexpr (kShifted) {
      for (Index k = 0; k < n;) {
        std::int32_t offset = 0;
        for (const Index end = std::min(k + kDeepest, n); k < end; ++k)
          offset -= Dot::kShift * whole(values[k] / divisor(scale));
        std::memcpy(to += row, &offset, sizeof offset);
      }
    }
  }
  static void store_block(std::int8_t* p, const V* lanes) {
    float values[V::size];
    for (int d = 0; d < kDepthStep; ++d) {
      lanes[d].store(values);
      for (int j = 0; j < V::size; ++j)
        p[j * kDepthStep + d] = static_cast<std::int8_t>(whole(values[j]));
    }
  }
  static void load_block(const std::int8_t* p, V* lanes) {
    float values[V::size];
    for (int d = 0; d < kDepthStep; ++d) {
      for (int j = 0; j < V::size; ++j) values[j] = p[j * kDepthStep + d];
      lanes[d] = V::load(values);
    }
  }

  // Of a copied row.
  [[gnu::always_inline]] static float scale_of(const Operand* row) {
    float scale;
    std::memcpy(&scale, row, sizeof scale);
    return scale;
  }
  static const Operand* copy_row(const float* from, Index n, Operand* to) {
    V most(0), finite(0);
    for (Index j = 0; j < n; j += V::size) {
      const V v = load_some<V>(from + j, n - j);
      most = max(abs(v), most), finite = finite + (v - v);  // 0, or NaN
    }
    float all[V::size], each[V::size], largest = 0, zero = 0;
    most.store(all), finite.store(each);
    for (int i = 0; i < V::size; ++i) largest = std::max(largest, all[i]), zero += each[i];
    constexpr float kLeast = 0x1p-100f;  // smaller ones count as 0: no scale is to be denormal
    float scale = largest / 127.0f + zero, inverse = 127.0f / largest;
    if (largest < kLeast || zero != 0) scale = zero, inverse = 0;
    std::memcpy(to, &scale, sizeof scale);
    for (Index j = 0; j < round_up(n, kDepthMultiple); j += V::size) {
      const V v = j < n ? load_some<V>(from + j, n - j) : V(0);
      Dot::store(to + kHeader + j, v * V(inverse));
    }
    return to;
  }
  // A one-hot row takes its column as it is.
  [[gnu::always_inline]] static float rounded(float v) { return v; }
};

// In plain C++. A value that is not finite is 0, in a row whose scale is NaN.
template <class V>
struct PlainInt8 {
  static_assert(V::size == 1);
  using Operand = std::int16_t;
  using Sums = std::int32_t;
  using Columns = std::int32_t;
  static constexpr int kDeep = 1, kShift = 0;

  static Sums zero() { return 0; }
  static Columns load(const std::int8_t* p) { return *p; }
  static Columns broadcast(const Operand* p) { return *p; }
  static Sums add(Sums sum, Columns row, Columns column) { return sum + row * column; }
  static V values(Sums sum) { return V(static_cast<float>(sum)); }
  static void store(Operand* p, V v) {
    *p = v.v == v.v ? static_cast<Operand>(std::lrint(v.v)) : Operand{0};
  }
};

}  // namespace rnnkern
