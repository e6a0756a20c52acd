// The register kernel of every matrix product: a tile of M rows by `panels` packed panels.
//
// A panel is W lanes of columns wide: one row of initial values (a bias, or zeros), then one row
// of W·V::size elements for each k. The tile's sums run over k in order, one after another, so an
// element's value does not depend on how rows and columns are cut into tiles or shared by threads.
#pragma once

#include <utility>

#include "core/lane.h"

namespace rnnkern {

inline constexpr int kMaxTileRows = 8;
inline constexpr int kMaxPanelWidth = 4;  // lanes
inline constexpr int kMaxPanels = 4;      // side by side in one tile

template <class T>
struct TileProduct {
  const T* const* a;  // one pointer a row of the tile
  Index a_begin;      // the first k's place in every row,
  Index a_step;       // and the distance to the next
  const T* b;         // first panel's row for the first k
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

template <class V, int M, int W, int P>
void multiply_tile(const TileProduct<typename V::value>& t) {
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
  const T* b = t.b;
  const Index b_panel = t.b_panel, a_step = t.a_step;
  Index at = t.a_begin;
  for (Index k = t.depth; k > 0; --k) {
    V column[P * W];
#pragma GCC unroll 16
    for (int w = 0; w < P * W; ++w) column[w] = V::load(b + (w / W) * b_panel + (w % W) * V::size);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V row(a[m][at]);
#pragma GCC unroll 16
      for (int w = 0; w < P * W; ++w) sum[m][w] = fma(row, column[w], sum[m][w]);
    }
    at += a_step;
    b += W * V::size;
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
template <class V>
class TileKernels {
 public:
  using Function = void (*)(const TileProduct<typename V::value>&);

  static Function find(int rows, int width, int panels) {
    static constexpr TileKernels kernels;
    return kernels.table_[width - 1][rows - 1][panels == 4 ? 2 : panels - 1];
  }

  // As many panels side by side as the registers hold: few rows need them to keep the units busy.
  static int panels(int rows, int width, Index available) {
    int p = kMaxPanels;
    while (p > 1 && (p > available || !find(rows, width, p))) p /= 2;
    return p;
  }

 private:
  constexpr TileKernels() { fill(std::make_integer_sequence<int, kMaxPanelWidth>()); }

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
    if constexpr (M * W <= tile_budget<V>()) row[0] = multiply_tile<V, M, W, 1>;
    if constexpr (M * W * 2 <= tile_budget<V>()) row[1] = multiply_tile<V, M, W, 2>;
    if constexpr (M * W * 4 <= tile_budget<V>()) row[2] = multiply_tile<V, M, W, 4>;
  }

  Function table_[kMaxPanelWidth][kMaxTileRows][3] = {};
};

}  // namespace rnnkern
