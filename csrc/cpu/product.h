// The register kernel of every matrix product: a tile of M rows by `panels` packed panels.
//
// A panel is W lanes of columns wide: one row of initial values (a bias, or zeros), then one row
// of W·V::size elements for each k. The tile's sums run over k in order, one after another, so an
// element's value does not depend on how rows and columns are cut into tiles or shared by threads.
#pragma once

#include <type_traits>
#include <utility>

#include "core/lane.h"

namespace rnnkern {

inline constexpr int kMaxTileRows = 8;
inline constexpr int kMaxPanels = 4;  // side by side in one tile

// Lanes of a panel. Of the shapes that fill 16 registers, 6 rows by 2 lanes ask least of the caches.
template <class V>
inline constexpr int kPanelWidth = V::registers == 32 ? 4 : 2;

// Elements that a row of W lanes takes in a panel. Bfloat16 lanes are stored as interleaved pairs, which
// one shift and one mask widen; an odd one has zeros for a partner.
template <class V, class B>
constexpr Index stored_row(int width) {
  return Index{std::is_same_v<B, typename V::value> ? width : (width + 1) / 2 * 2} * V::size;
}

// Calls visit(w, lane) for the W lanes of a panel's row.
template <int W, class V, class B, class Visit>
[[gnu::always_inline]] inline void for_columns(const B* b, Visit visit) {
  if constexpr (std::is_same_v<B, typename V::value>) {
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) visit(w, V::load(b + w * V::size));
  } else {
#pragma GCC unroll 16
    for (int w = 0; w < W; w += 2) {
      V even, odd;
      V::load_pair(b + w * V::size, even, odd);
      visit(w, even);
      if (w + 1 < W) visit(w + 1, odd);
    }
  }
}

// B is what the panels hold: T, or a narrower type that a lane widens as it loads.
template <class T, class B = T>
struct TileProduct {
  const T* const* a;  // one pointer a row of the tile
  Index a_begin;      // the first k's place in every row,
  Index a_step;       // and the distance to the next
  const B* b;         // first panel's row for the first k
  Index b_panel;      // from one panel to the next
  Index depth;        // how many k
  const T* start;     // what the sums start from: element (row, panel, column)
  Index start_row, start_panel;
  T* out;  // where they go
  Index out_row, out_panel;
};

// M·W·panels sums live in registers, beside one lane of B and one of A.
template <class V>
constexpr int tile_budget() {
  return V::registers == 32 ? 24 : 12;
}

template <class V>
constexpr int tile_rows(int width) {
  const int rows = tile_budget<V>() / width;
  return rows < kMaxTileRows ? rows : kMaxTileRows;
}

template <class V, class B, int M, int W, int P>
void multiply_tile(const TileProduct<typename V::value, B>& t) {
  using T = typename V::value;
  const T* a[M];
  V sum[M][P * W];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    a[m] = t.a[m];
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) {
      sum[m][w] = V::load(t.start + m * t.start_row + (w / W) * t.start_panel + (w % W) * V::size);
    }
  }
  const B* b = t.b;
  const Index b_panel = t.b_panel, a_step = t.a_step;
  Index at = t.a_begin;
  for (Index k = t.depth; k > 0; --k) {
    // The shorter side of the tile waits in registers while the longer one passes through one of them:
    // with both there 12 sums would not fit beside them in 16 registers.
    if constexpr (M < P * W) {
      V row[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) row[m] = V(a[m][at]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        for_columns<W, V>(b + p * b_panel, [&](int w, V column) {
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) sum[m][p * W + w] = fma(row[m], column, sum[m][p * W + w]);
        });
      }
    } else {
      V column[P * W];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
        for_columns<W, V>(b + p * b_panel, [&](int w, V v) { column[p * W + w] = v; });
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const V row(a[m][at]);
#pragma GCC unroll 16
        for (int w = 0; w < P * W; ++w) sum[m][w] = fma(row, column[w], sum[m][w]);
      }
    }
    at += a_step;
    b += stored_row<V, B>(W);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) {
      sum[m][w].store(t.out + m * t.out_row + (w / W) * t.out_panel + (w % W) * V::size);
    }
  }
}

// Every tile shape that fits the registers, found by (rows, width, panels).
template <class V, class B = typename V::value>
class TileKernels {
 public:
  using Function = void (*)(const TileProduct<typename V::value, B>&);

  static Function find(int rows, int width, int panels) {
    static constexpr TileKernels kernels;
    return kernels.table_[width - 1][rows - 1][panels - 1];
  }

  // As many panels side by side as the registers hold: few rows need them to keep the units busy.
  static int panels(int rows, int width, Index available) {
    int p = kMaxPanels;
    while (p > 1 && (p > available || !find(rows, width, p))) --p;
    return p;
  }

 private:
  constexpr TileKernels() { fill(std::make_integer_sequence<int, kPanelWidth<V>>()); }

  template <int... W>
  constexpr void fill(std::integer_sequence<int, W...>) {
    (fill_rows<W + 1>(std::make_integer_sequence<int, kMaxTileRows>()), ...);
  }
  template <int W, int... M>
  constexpr void fill_rows(std::integer_sequence<int, M...>) {
    (fill_panels<W, M + 1>(), ...);
  }
  template <int W, int M>
  constexpr void fill_panels() {
    auto& row = table_[W - 1][M - 1];
    if constexpr (M * W <= tile_budget<V>()) row[0] = multiply_tile<V, B, M, W, 1>;
    if constexpr (M * W * 2 <= tile_budget<V>()) row[1] = multiply_tile<V, B, M, W, 2>;
    if constexpr (M * W * 3 <= tile_budget<V>()) row[2] = multiply_tile<V, B, M, W, 3>;
    if constexpr (M * W * 4 <= tile_budget<V>()) row[3] = multiply_tile<V, B, M, W, 4>;
  }

  Function table_[kPanelWidth<V>][kMaxTileRows][kMaxPanels] = {};
};

}  // namespace rnnkern
