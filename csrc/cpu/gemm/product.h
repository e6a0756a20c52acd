// SPDX-License-Identifier: Apache-2.0
// The register kernel of every matrix product: a tile of M rows by `panels` packed panels.
//
// A panel is W lanes of columns wide: one row of initial values (a bias, or zeros), then one row
// of W·V::size elements for each k. The tile's sums run over k in order, one after another, so an
// element's value does not depend on how rows and columns are cut into tiles or shared by threads. They
// begin anew every kSumDepth k, and what they came to is added to what was there: a float32 sum's error
// grows with the root of its length. A product may be done in parts that are multiples of that deep.
//
// A product is a struct that says what is multiplied, how it lies in memory and which kernel does it:
//   Lane V                      of the sums, and of everything outside products
//   Panel, Operand              elements of a panel's rows, and of the rows of A
//   kSums                       lanes of sums in a tile: as many as leave registers for the rest
//   kRounds                     whether rows of A are rounded copies; if not, they are used in place
//   kScaled                     whether each column of a panel, and each copied row, has a scale of its own
//   kDepthStep, kWidthStep      rows k by lanes w of a panel that are stored as one block
//   kDepthMultiple              panels and copies are filled with zeros to a multiple of this depth
//   Columns                     a register of a panel's lane, kDepthStep deep
//   for_columns<W>(b, visit), broadcast, multiply_add   the kernel's inner loop; visit(w, column)
//   store_block(p, lanes)       kDepthStep·kWidthStep lanes, row by row, to a panel
//   load_block(p, lanes)        and from there
//   rounded(value)              as an operand would be
//   copy_row(from, n, to)       n values as a row of A: `to`, or `from` where nothing is rounded
//   pack_across(from, from_row, depth, height, to)   `height` columns of `depth` rows as rows of A,
//                               row_distance(depth) apart, each k step_distance(height) after the last
//   Tiles                       the kernels for a product of so many rows
//   Session                     lives on each thread while it multiplies
// This file has those that keep V's values, and those that round them to bfloat16 and widen them again;
// pair_product.h and int8_product.h have others.
#pragma once

#include <utility>

#include "core/lane.h"

namespace rnnkern {

inline constexpr int kMaxTileRows = 16;
inline constexpr int kMaxRegisterRows = 8;
inline constexpr int kMaxPanels = 4;  // side by side in one tile
inline constexpr Index kSumDepth = 256;

// Lanes of a panel. Of the shapes that fill 16 registers, 6 rows by 2 lanes ask least of the caches.
template <class V>
inline constexpr int kPanelWidth = V::registers == 32 ? 4 : 2;

template <class V>
[[gnu::always_inline]] inline V load_some(const typename V::value* p, Index n) {
  return n >= V::size ? V::load(p) : V::load(p, n > 0 ? n : 0);
}

template <class V>
[[gnu::always_inline]] inline void store_some(typename V::value* p, V v, Index n) {
  if (n >= V::size) {
    v.store(p);
  } else if (n > 0) {
    v.store(p, n);
  }
}

constexpr Index round_up(Index n, Index multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Memory that later products will read, fetched piece by piece while earlier ones compute: where a
// panel is used by few tiles, waiting for it would show.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* begin, const void* end)
      : at_(static_cast<const std::byte*>(begin)), end_(static_cast<const std::byte*>(end)) {}

  // The next so many lines, for one tile; null when all have been given out.
  const std::byte* take(Index lines) {
    if (at_ >= end_) return nullptr;
    const std::byte* const given = at_;
    at_ += lines * kLineBytes;
    return given;
  }

  static constexpr Index kLineBytes = 64;

 private:
  const std::byte *at_ = nullptr, *end_ = nullptr;
};

// Of the columns of the first panel; those of the next stand `panel` later. Likewise what sums begin with,
// as int32, where a product asks for it.
struct Scales {
  const float *first, *offsets;
  Index panel;
};
struct NoScales {};

template <class T, class Panel, class Operand, class OfColumns = NoScales>
struct TileProduct {
  const Operand* const* a;  // one pointer a row of the tile
  Index a_begin;            // the first k's place in every row,
  Index a_step;             // and the distance to the next
  const Panel* b;           // first panel's row for the first k
  Index b_panel;            // from one panel to the next
  Index depth;              // how many k
  const std::byte* ahead;   // a line from here on is fetched at every step over k; null for none
  const T* start;  // what the sums begin with, or are added to: element (row, panel, column)
  Index start_row, start_panel;
  bool add;  // the second
  T* out;    // where they go
  Index out_row, out_panel;
  [[no_unique_address]] OfColumns scales{};
};

// M·W·panels sums live in registers, beside what a product needs of its panels and one lane of A.
template <class V>
constexpr int tile_budget(int for_panels) {
  return V::registers == 32 ? 24 : 13 - for_panels;
}

template <class Product>
constexpr int tile_rows(int width) {
  const int rows = Product::kSums / width;
  return rows < kMaxRegisterRows ? rows : kMaxRegisterRows;
}

// Elements that a row of W lanes takes in a panel.
template <class Product>
constexpr Index stored_row(int width) {
  return round_up(width, Product::kWidthStep) * Product::Lane::size;
}

// Where in `start` the sum of row m and the tile's w-th lane of columns stands.
template <class V, int W, class Tile>
[[gnu::always_inline]] inline Index start_of(const Tile& t, int m, int w) {
  return m * t.start_row + (w / W) * t.start_panel + (w % W) * V::size;
}

// No deeper than kSumDepth.
template <class Product, int M, int W, int P>
void multiply_tile(const typename Product::Tile& t) {
  using V = typename Product::Lane;
  const typename Product::Operand* a[M];
  V sum[M][P * W];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    a[m] = t.a[m];
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) {
      sum[m][w] = t.add ? V(0) : V::load(t.start + start_of<V, W>(t, m, w));
    }
  }
  const auto* b = t.b;
  const Index b_panel = t.b_panel, a_step = t.a_step;
  Index at = t.a_begin;
  [[maybe_unused]] const auto* ahead = t.ahead ? t.ahead : reinterpret_cast<const std::byte*>(b);
  for (Index k = t.depth; k > 0; k -= Product::kDepthStep) {
    // The shorter side of the tile waits in registers while the longer one passes through one of them:
    // with both there 12 sums would not fit beside them in 16 registers.
    using Register = typename Product::Columns;
    if constexpr (M < P * W) {
      Register row[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) row[m] = Product::broadcast(a[m] + at);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        Product::template for_columns<W>(b + p * b_panel, [&](int w, Register column) {
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m)
            sum[m][p * W + w] = Product::multiply_add(row[m], column, sum[m][p * W + w]);
        });
      }
    } else {
      Register column[P * W];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        Product::template for_columns<W>(b + p * b_panel,
                                         [&](int w, Register c) { column[p * W + w] = c; });
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Register row = Product::broadcast(a[m] + at);
#pragma GCC unroll 16
        for (int w = 0; w < P * W; ++w)
          sum[m][w] = Product::multiply_add(row, column[w], sum[m][w]);
      }
      __builtin_prefetch(ahead, 0, 2);  // into the L2 cache
      ahead += Ahead::kLineBytes;
    }
    at += a_step * Product::kDepthStep;
    b += stored_row<Product>(W) * Product::kDepthStep;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) {
      if (t.add) sum[m][w] = V::load(t.start + start_of<V, W>(t, m, w)) + sum[m][w];
      sum[m][w].store(t.out + m * t.out_row + (w / W) * t.out_panel + (w % W) * V::size);
    }
  }
}

// Every tile shape that fits the registers and is asked for, found by (rows, width, panels).
template <class Product>
class TileKernels {
  // One row waits for its panels rather than for the units, once these have as many sums as hide an FMA's
  // latency: more side by side would only keep the equations from overlapping with the next product.
  static constexpr int kWide = kPanelWidth<typename Product::Lane>, kHidden = 8;

  static constexpr int most_panels(int rows, int width) {
    // Of four lanes' width narrow panels have their matrix for themselves.
    if (kWide == 4 && 2 * width <= kWide) return 1;
    return rows == 1 && width > kWide / 2 ? kHidden / kWide : kMaxPanels;
  }

 public:
  using Function = void (*)(const typename Product::Tile&);

  static Function find(int rows, int width, int panels) {
    static constexpr TileKernels kernels;
    return kernels.table_[width - 1][rows - 1][panels - 1];
  }

  // As many panels side by side as the registers hold: few rows need them to keep the units busy.
  static int panels(int rows, int width, Index available) {
    int p = most_panels(rows, width);
    while (p > 1 && (p > available || !find(rows, width, p))) --p;
    return p;
  }

 private:
  constexpr TileKernels() {
    fill(std::make_integer_sequence<int, kPanelWidth<typename Product::Lane>>());
  }

  template <int... W>
  constexpr void fill(std::integer_sequence<int, W...>) {
    (fill_rows<W + 1>(std::make_integer_sequence<int, kMaxRegisterRows>()), ...);
  }
  template <int W, int... M>
  constexpr void fill_rows(std::integer_sequence<int, M...>) {
    (fill_panels<W, M + 1>(), ...);
  }
  template <int W, int M>
  constexpr void fill_panels() {
    fill_shape<W, M, 1>(), fill_shape<W, M, 2>(), fill_shape<W, M, 3>(), fill_shape<W, M, 4>();
  }
  template <int W, int M, int P>
  constexpr void fill_shape() {
    if constexpr (M * W * P <= Product::kSums && P <= most_panels(M, W))
      table_[W - 1][M - 1][P - 1] = multiply_tile<Product, M, W, P>;
  }

  Function table_[kPanelWidth<typename Product::Lane>][kMaxRegisterRows][kMaxPanels] = {};
};

struct TallTiles;  // pair_product.h: what else may multiply tiles, for the one product that asks

// Panels of so many lanes: how high a tile is, how many panels it spans, and its product.
template <class Product>
class RegisterTiles {
 public:
  RegisterTiles(int width, Index /*rows of the whole product*/, const TallTiles*) : width_(width) {}

  int height() const { return tile_rows<Product>(width_); }
  int panels(int rows, Index available) const {
    return TileKernels<Product>::panels(rows, width_, available);
  }
  void multiply(int rows, int panels, const typename Product::Tile& tile) const {
    const auto kernel = TileKernels<Product>::find(rows, width_, panels);
    if (tile.depth <= kSumDepth) {
      kernel(tile);
    } else {
      multiply_parts(kernel, tile);
    }
  }

 private:
  void multiply_parts(typename TileKernels<Product>::Function kernel,
                      typename Product::Tile tile) const {
    for (Index left = tile.depth; left > kSumDepth; left -= kSumDepth) {
      tile.depth = kSumDepth;
      kernel(tile);
      tile.a_begin += kSumDepth * tile.a_step;
      tile.b += kSumDepth * stored_row<Product>(width_);
      if (tile.ahead) tile.ahead += kSumDepth / Product::kDepthStep * Ahead::kLineBytes;
      tile.start = tile.out, tile.start_row = tile.out_row, tile.start_panel = tile.out_panel;
      tile.add = true;
      tile.depth = left - kSumDepth;
    }
    kernel(tile);
  }

  const int width_;
};

struct NoSession {
  explicit NoSession(const TallTiles*) {}
};

// A's rows lie across as they came, in rows of one k each: whole lanes, of which what is beyond the
// tile is overwritten by the rows after, for masks are dear.
template <class Product>
void copy_across(const typename Product::Operand* from, Index from_row, Index depth, Index height,
                 typename Product::Operand* to) {
  using V = typename Product::Lane;
  const Index masked = (V::size + height - 1) / height;
  for (Index k = 0; k < depth; ++k, from += from_row, to += height) {
    for (Index j = 0; j < height; j += V::size) {
      const Index n = k + masked < depth ? V::size : height - j;
      store_some(to + j, Product::rounded(load_some<V>(from + j, n)), n);
    }
  }
}

// V's values as they are.
template <class V>
struct ExactProduct {
  using Lane = V;
  using T = typename V::value;
  using Panel = T;
  using Operand = T;
  using Columns = V;
  using Tile = TileProduct<T, Panel, Operand>;
  using Tiles = RegisterTiles<ExactProduct>;
  using Session = NoSession;
  static constexpr int kSums = tile_budget<V>(1);
  static constexpr bool kRounds = false, kScaled = false;
  static constexpr int kDepthStep = 1, kWidthStep = 1;
  static constexpr Index kDepthMultiple = 1;

  template <int W, class Visit>
  [[gnu::always_inline]] static void for_columns(const T* b, Visit visit) {
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) visit(w, V::load(b + w * V::size));
  }
  [[gnu::always_inline]] static V broadcast(const T* a) { return V(*a); }
  [[gnu::always_inline]] static V multiply_add(V row, V column, V sum) {
    return fma(row, column, sum);
  }

  [[gnu::always_inline]] static void store_block(T* p, const V* lanes) { lanes[0].store(p); }
  static void load_block(const T* p, V* lanes) { lanes[0] = V::load(p); }
  template <class Value>
  [[gnu::always_inline]] static Value rounded(Value v) {
    return v;
  }
  static const T* copy_row(const T* from, Index, T*) { return from; }
  static void pack_across(const T* from, Index from_row, Index depth, Index height, T* to) {
    copy_across<ExactProduct>(from, from_row, depth, height, to);
  }
  static Index row_distance(Index) { return 1; }
  static Index step_distance(Index height) { return height; }
};

// float32 lanes, operands rounded to bfloat16: for processors that can multiply float32 alone. Panels
// hold interleaved pairs of lanes, which one shift and one mask widen; an odd lane's partner is zeros.
template <class V>
struct WidenedProduct {
  using Lane = V;
  using Panel = Bfloat16;
  using Operand = float;
  using Columns = V;
  using Tile = TileProduct<float, Panel, Operand>;
  using Tiles = RegisterTiles<WidenedProduct>;
  using Session = NoSession;
  // Both lanes of a pair and the mask.
  static constexpr int kSums = tile_budget<V>(3);
  static constexpr bool kRounds = true, kScaled = false;
  static constexpr int kDepthStep = 1, kWidthStep = 2;
  static constexpr Index kDepthMultiple = 1;

  template <int W, class Visit>
  [[gnu::always_inline]] static void for_columns(const Bfloat16* b, Visit visit) {
#pragma GCC unroll 16
    for (int w = 0; w < W; w += 2) {
      V even, odd;
      V::load_pair(b + w * V::size, even, odd);
      visit(w, even);
      if (w + 1 < W) visit(w + 1, odd);
    }
  }
  [[gnu::always_inline]] static V broadcast(const float* a) { return V(*a); }
  [[gnu::always_inline]] static V multiply_add(V row, V column, V sum) {
    return fma(row, column, sum);
  }

  [[gnu::always_inline]] static void store_block(Bfloat16* p, const V* lanes) {
    V::store_pair(p, round_to_bfloat16(lanes[0]), round_to_bfloat16(lanes[1]));
  }
  static void load_block(const Bfloat16* p, V* lanes) { V::load_pair(p, lanes[0], lanes[1]); }
  template <class Value>
  [[gnu::always_inline]] static Value rounded(Value v) {
    return round_to_bfloat16(v);
  }
  static const float* copy_row(const float* from, Index n, float* to) {
    for (Index j = 0; j < n; j += V::size)
      store_some(to + j, rounded(load_some<V>(from + j, n - j)), n - j);
    return to;
  }
  static void pack_across(const float* from, Index from_row, Index depth, Index height, float* to) {
    copy_across<WidenedProduct>(from, from_row, depth, height, to);
  }
  static Index row_distance(Index) { return 1; }
  static Index step_distance(Index height) { return height; }
};

}  // namespace rnnkern
