// Matrices cut into the packed panels that the register kernel reads, and products with them.
#pragma once

#include "core/lane.h"
#include "core/parallel.h"
#include "cpu/product.h"

namespace rnnkern {

// The K x (gates·units) right-hand side of a product. A panel holds, for each of `blocks` lanes of
// units, that lane's column of every gate (gate-interleaved), so that one tile of sums has all that
// the cell's equations need of a unit. A plain matrix has one gate. Columns past the last unit are 0.
template <class V, class Product = ExactProduct<V>>
struct PanelMatrix {
  using T = typename V::value;
  using Panel = typename Product::Panel;

  Index depth = 0, units = 0;
  int gates = 1, blocks = 1;
  T* data = nullptr;

  PanelMatrix() = default;
  PanelMatrix(Index depth, Index units, int gates) : depth(depth), units(units), gates(gates) {
    const Index lanes = (units + V::size - 1) / V::size;
    const int most = gates == 1 ? Product::kPlainWidth : kMaxPanelWidth / gates;
    blocks = lanes < most ? static_cast<int>(lanes) : most;
  }

  [[gnu::always_inline]] int width() const { return gates * blocks; }
  [[gnu::always_inline]] Index panel_units() const { return Index{blocks} * V::size; }
  [[gnu::always_inline]] Index count() const { return (units + panel_units() - 1) / panel_units(); }
  [[gnu::always_inline]] Index row_size() const { return Index{width()} * V::size; }
  // From a panel to the next, in T and in Panel; a panel's initial values, and its row k.
  [[gnu::always_inline]] Index stride() const {
    return row_size() + padded_depth() * stored() * kPanelBytes / kBytes;
  }
  [[gnu::always_inline]] Index panel_stride() const { return stride() * kBytes / kPanelBytes; }
  [[gnu::always_inline]] Index size() const { return count() * stride(); }
  [[gnu::always_inline]] T* start(Index p) const { return data + p * stride(); }
  [[gnu::always_inline]] Panel* row(Index p, Index k) const {
    return reinterpret_cast<Panel*>(start(p) + row_size()) + k * stored();
  }
  // Where the block of rows from k on, lanes from w on, is stored.
  [[gnu::always_inline]] Panel* block(Index p, Index k, int w) const {
    return row(p, k) + Index{w} * Product::kDepthStep * V::size;
  }
  [[gnu::always_inline]] Index padded_depth() const {
    return round_up(depth, Product::kDepthMultiple);
  }

 private:
  static constexpr Index kBytes = sizeof(T), kPanelBytes = sizeof(Panel);
  [[gnu::always_inline]] Index stored() const { return stored_row<Product>(width()); }
};

// The row of initial values of panels [begin, end): start(gate) points at a gate's units, or is null.
template <class V, class Product, class Start>
void pack_start(const PanelMatrix<V, Product>& m, Index begin, Index end, Start start) {
  for (Index p = begin; p < end; ++p) {
    for (int w = 0; w < m.width(); ++w) {
      const typename V::value* values = start(w / m.blocks);
      const Index unit = p * m.panel_units() + Index{w % m.blocks} * V::size;
      const V v = values ? load_some<V>(values + unit, m.units - unit) : V(0);
      v.store(m.start(p) + w * V::size);
    }
  }
}

// Panels [begin, end) from rows: load(k, gate, unit, n) gives a lane of units of row k, n of them real.
template <class V, class Product, class Load>
void pack_rows(const PanelMatrix<V, Product>& m, Index begin, Index end, Load load) {
  constexpr int kDeep = Product::kDepthStep, kWide = Product::kWidthStep;
  for (Index p = begin; p < end; ++p) {
    for (Index k = 0; k < m.padded_depth(); k += kDeep) {
      for (int w = 0; w < m.width(); w += kWide) {
        V lanes[kDeep * kWide];
        for (int i = 0; i < kDeep * kWide; ++i) {
          const Index row = k + i / kWide;
          const int lane = w + i % kWide;
          const Index unit = p * m.panel_units() + Index{lane % m.blocks} * V::size;
          const bool real = (kDeep == 1 || row < m.depth) && (kWide == 1 || lane < m.width());
          lanes[i] = real ? load(row, lane / m.blocks, unit, m.units - unit) : V(0);
        }
        Product::store_block(m.block(p, k, w), lanes);
      }
    }
  }
}

// Turns the square of V::size rows: log2(size) rounds in which every row of the first half is
// interleaved with its partner of the second, each a perfect shuffle of the whole square.
template <class V>
[[gnu::always_inline]] inline void transpose(V (&square)[V::size]) {
  for (int round = 1; round < V::size; round *= 2) {
    V shuffled[V::size];
    for (int i = 0; i < V::size / 2; ++i) {
      shuffled[2 * i] = square[i];
      shuffled[2 * i + 1] = square[i + V::size / 2];
      interleave(shuffled[2 * i], shuffled[2 * i + 1]);
    }
    for (int i = 0; i < V::size; ++i) square[i] = shuffled[i];
  }
}

// Panels [begin, end) from a matrix that lies the other way: source(gate, unit) points at the
// K contiguous values of one column. Goes square by square.
template <class V, class Product, class Source>
void pack_columns(const PanelMatrix<V, Product>& m, Index begin, Index end, Source source) {
  constexpr int kDeep = Product::kDepthStep, kWide = Product::kWidthStep;
  static_assert(V::size % kDeep == 0);
  for (Index p = begin; p < end; ++p) {
    for (Index k0 = 0; k0 < m.padded_depth(); k0 += V::size) {
      for (int w = 0; w < m.width(); w += kWide) {
        V square[kWide][V::size];
        for (int i = 0; i < kWide; ++i) {
          const Index unit = p * m.panel_units() + Index{(w + i) % m.blocks} * V::size;
          for (int lane = 0; lane < V::size; ++lane) {
            const bool real = unit + lane < m.units && (kWide == 1 || w + i < m.width());
            square[i][lane] =
                real ? load_some<V>(source((w + i) / m.blocks, unit + lane) + k0, m.depth - k0)
                     : V(0);
          }
          transpose(square[i]);
        }
        for (int k = 0; k < V::size && k0 + k < m.padded_depth(); k += kDeep) {
          V lanes[kDeep * kWide];
          for (int i = 0; i < kDeep * kWide; ++i) lanes[i] = square[i % kWide][k + i / kWide];
          Product::store_block(m.block(p, k0 + k, w), lanes);
        }
      }
    }
  }
}

// Bounds of tile t when `rows` are cut as evenly as can be into tiles of at most `height`.
struct TileCut {
  Index rows, tiles;

  TileCut(Index rows, Index height, Index multiple = 1)
      : rows(rows), tiles((rows + height * multiple - 1) / (height * multiple) * multiple) {}
  [[gnu::always_inline]] Index begin(Index t) const { return rows * t / tiles; }
};

// Calls visit(first row, end) for the worker's tiles among the first `live` rows: every row group
// takes turns, so that the work stays even while the batch shrinks.
template <class V, class Visit>
[[gnu::always_inline]] inline void for_tiles(const TileCut& cut, const Worker& worker, Index live,
                                             Visit visit) {
  for (Index t = worker.row_group; t < cut.tiles; t += worker.row_groups) {
    const Index begin = cut.begin(t), end = cut.begin(t + 1);
    if (begin >= live) break;
    if (begin < end) visit(begin, end < live ? end : live);
  }
}

// A tile that is not whole goes by way of scratch memory: `width` columns a row there, of which the
// first `real` are those of row[r] from `column` on.
template <class V>
void load_tile(const typename V::value* const* row, Index column, Index rows, Index real,
               Index width, typename V::value* tile) {
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < width; j += V::size) {
      load_some<V>(row[r] + column + j, real - j).store(tile + r * width + j);
    }
  }
}

template <class V>
void store_tile(typename V::value* const* row, Index column, Index rows, Index real, Index width,
                const typename V::value* tile) {
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < real; j += V::size) {
      store_some(row[r] + column + j, V::load(tile + r * width + j), real - j);
    }
  }
}

template <class V>
constexpr Index tile_scratch() {
  return Index{kMaxRegisterRows} * kMaxPanelWidth * kMaxPanels * V::size;
}

// C = A·B + start row, or C += A·B, for `rows` rows of `all_rows` that the team has. Row i of A is
// a[i]; row i of C is c[i], contiguous; c_row is the distance between rows of C, or 0 if they are not
// even. Large depths go block by block; within one, a panel stays in the cache while all rows pass.
template <class V, class Product>
void multiply(const PanelMatrix<V, Product>& b, const typename Product::Operand* const* a,
              typename V::value* const* c, Index c_row, Index rows, Index all_rows, bool accumulate,
              typename V::value* scratch) {
  using T = typename V::value;
  constexpr Index kDepth = 1024;
  static_assert(kDepth % Product::kDepthMultiple == 0);
  const Index panel_columns = b.row_size();
  const typename Product::Tiles tiles(b.width(), all_rows);
  const TileCut cut(rows, tiles.height());
  const int highest = static_cast<int>((rows + cut.tiles - 1) / (cut.tiles ? cut.tiles : 1));
  for (Index p = 0, side; p < b.count() && rows > 0; p += side) {
    side = tiles.panels(highest, b.count() - p);
    const Index column = p * panel_columns;
    const Index real =
        b.units - column < side * panel_columns ? b.units - column : side * panel_columns;
    const bool direct = c_row != 0 && real == side * panel_columns;
    for (Index k = 0; k < b.depth || k == 0; k += kDepth) {
      const bool add = accumulate || k > 0;
      for (Index t = 0; t < cut.tiles; ++t) {
        const Index i = cut.begin(t);
        const int m = static_cast<int>(cut.begin(t + 1) - i);
        T* out = direct ? c[i] + column : scratch;
        typename Product::Tile tile{.a = a + i,
                                    .a_begin = k,
                                    .a_step = 1,
                                    .b = b.row(p, k),
                                    .b_panel = b.panel_stride(),
                                    .depth = b.depth - k < kDepth ? b.depth - k : kDepth,
                                    .start = b.start(p),
                                    .start_row = 0,
                                    .start_panel = b.stride(),
                                    .out = out,
                                    .out_row = direct ? c_row : side * panel_columns,
                                    .out_panel = panel_columns};
        if (add) {
          tile.start = out;
          tile.start_row = tile.out_row;
          tile.start_panel = tile.out_panel;
          if (!direct) load_tile<V>(c + i, column, m, real, tile.out_row, scratch);
        }
        tiles.multiply(m, static_cast<int>(side), tile);
        if (!direct) store_tile<V>(c + i, column, m, real, tile.out_row, scratch);
      }
    }
  }
}

}  // namespace rnnkern
