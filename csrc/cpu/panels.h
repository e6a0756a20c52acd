// Matrices cut into the packed panels that the register kernel reads, and products with them.
#pragma once

#include "core/lane.h"
#include "core/parallel.h"
#include "cpu/product.h"

namespace rnnkern {

// The K x (gates·units) right-hand side of a product. A panel holds, for each of `blocks` lanes of
// units, that lane's column of every gate (gate-interleaved), so that one tile of sums has all that
// the cell's equations need of a unit. A plain matrix has one gate. Columns past the last unit are 0.
template <class V>
struct PanelMatrix {
  using T = typename V::value;

  Index depth = 0, units = 0;
  int gates = 1, blocks = 1;
  T* data = nullptr;

  PanelMatrix() = default;
  PanelMatrix(Index depth, Index units, int gates) : depth(depth), units(units), gates(gates) {
    const Index lanes = (units + V::size - 1) / V::size;
    const int most = kMaxPanelWidth / gates;
    blocks = lanes < most ? static_cast<int>(lanes) : most;
  }

  [[gnu::always_inline]] int width() const { return gates * blocks; }
  [[gnu::always_inline]] Index panel_units() const { return Index{blocks} * V::size; }
  [[gnu::always_inline]] Index count() const { return (units + panel_units() - 1) / panel_units(); }
  [[gnu::always_inline]] Index row_size() const { return Index{width()} * V::size; }
  [[gnu::always_inline]] Index stride() const { return (depth + 1) * row_size(); }
  [[gnu::always_inline]] Index size() const { return count() * stride(); }
  [[gnu::always_inline]] T* panel(Index p) const { return data + p * stride(); }
};

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

// The row of initial values of panels [begin, end): start(gate) points at a gate's units, or is null.
template <class V, class Start>
void pack_start(const PanelMatrix<V>& m, Index begin, Index end, Start start) {
  for (Index p = begin; p < end; ++p) {
    for (int w = 0; w < m.width(); ++w) {
      const typename V::value* values = start(w / m.blocks);
      const Index unit = p * m.panel_units() + Index{w % m.blocks} * V::size;
      const V v = values ? load_some<V>(values + unit, m.units - unit) : V(0);
      v.store(m.panel(p) + w * V::size);
    }
  }
}

// Panels [begin, end) from rows: load(k, gate, unit, n) gives a lane of units of row k, n of them real.
template <class V, class Load>
void pack_rows(const PanelMatrix<V>& m, Index begin, Index end, Load load) {
  for (Index p = begin; p < end; ++p) {
    auto* out = m.panel(p) + m.row_size();
    for (Index k = 0; k < m.depth; ++k) {
      for (int w = 0; w < m.width(); ++w, out += V::size) {
        const Index unit = p * m.panel_units() + Index{w % m.blocks} * V::size;
        load(k, w / m.blocks, unit, m.units - unit).store(out);
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
// K contiguous values of one column, and put(panel, k, w, v) takes the lane w of a row. Goes square by
// square.
template <class V, class Source, class Put>
void pack_columns(const PanelMatrix<V>& m, Index begin, Index end, Source source, Put put) {
  for (Index p = begin; p < end; ++p) {
    for (Index k0 = 0; k0 < m.depth; k0 += V::size) {
      for (int w = 0; w < m.width(); ++w) {
        const Index unit = p * m.panel_units() + Index{w % m.blocks} * V::size;
        V square[V::size];
        for (int lane = 0; lane < V::size; ++lane) {
          square[lane] = unit + lane < m.units
                             ? load_some<V>(source(w / m.blocks, unit + lane) + k0, m.depth - k0)
                             : V(0);
        }
        transpose(square);
        for (Index k = 0; k < V::size && k0 + k < m.depth; ++k) put(p, k0 + k, w, square[k]);
      }
    }
  }
}

template <class V, class Source>
void pack_columns(const PanelMatrix<V>& m, Index begin, Index end, Source source) {
  pack_columns(m, begin, end, source, [&](Index p, Index k, int w, V v) {
    v.store(m.panel(p) + (1 + k) * m.row_size() + w * V::size);
  });
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
  return Index{kMaxTileRows} * kMaxPanelWidth * kMaxPanels * V::size;
}

// C = A·B + start row, or C += A·B, for `rows` rows. Row i of A is a[i], its elements a_step apart;
// row i of C is c[i], contiguous; c_row is the distance between rows of C, or 0 if they are not even.
// Large depths go block by block; within one, a panel stays in the cache while all rows pass.
template <class V>
void multiply(const PanelMatrix<V>& b, const typename V::value* const* a, Index a_step,
              typename V::value* const* c, Index c_row, Index rows, bool accumulate,
              typename V::value* scratch) {
  using T = typename V::value;
  constexpr Index kDepth = 1024;
  const int width = b.width();
  const Index panel_columns = b.row_size();
  const TileCut cut(rows, tile_rows<V>(width));
  const int highest = static_cast<int>((rows + cut.tiles - 1) / (cut.tiles ? cut.tiles : 1));
  for (Index p = 0, side; p < b.count() && rows > 0; p += side) {
    side = TileKernels<V>::panels(highest, width, b.count() - p);
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
        TileProduct<T> tile{.a = a + i,
                            .a_begin = k * a_step,
                            .a_step = a_step,
                            .b = b.panel(p) + (1 + k) * panel_columns,
                            .b_panel = b.stride(),
                            .depth = b.depth - k < kDepth ? b.depth - k : kDepth,
                            .start = b.panel(p),
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
        TileKernels<V>::find(m, width, static_cast<int>(side))(tile);
        if (!direct) store_tile<V>(c + i, column, m, real, tile.out_row, scratch);
      }
    }
  }
}

}  // namespace rnnkern
