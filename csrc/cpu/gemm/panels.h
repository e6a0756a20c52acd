// SPDX-License-Identifier: Apache-2.0
// Matrices cut into the packed panels that the register kernel reads, and products with them.
#pragma once

#include "core/lane.h"
#include "cpu/gemm/product.h"
#include "cpu/team/team.h"

namespace rnnkern {

// The K x (gates·units) right-hand side of a product, cut into panels of `width` lanes of columns. The
// panels come in groups: a group has, for each of `blocks` lanes of units, that lane's column of every
// gate (gate-interleaved), so that its sums are all that the cell's equations need of a unit. Lane w of
// a group is gate w / blocks of block w % blocks. A plain matrix has one gate, and a panel a group.
// Columns past the last unit are 0.
//
// Loops over panels take a copy of their own: what follows from its sizes is then computed once, and
// not again after every store.
template <class V, class Product = ExactProduct<V>>
struct PanelMatrix {
  using T = typename V::value;
  using Panel = typename Product::Panel;

  Index depth = 0, units = 0;
  int gates = 1, blocks = 1, width = 1, group_panels = 1;
  T* data = nullptr;

  PanelMatrix() = default;
  PanelMatrix(Index depth, Index units, int gates) : depth(depth), units(units), gates(gates) {
    constexpr int full = kPanelWidth<V>;
    const Index unit_lanes = (units + V::size - 1) / V::size;
    const int most = gates <= full ? full / gates : gates % full == 0 ? 1 : full;
    blocks = unit_lanes < most ? static_cast<int>(unit_lanes) : most;
    width = lanes() <= full ? lanes() : lanes() % full == 0 ? full : 1;
    group_panels = lanes() / width;
  }

  // Of a group:
  [[gnu::always_inline]] int lanes() const { return gates * blocks; }
  [[gnu::always_inline]] int panels() const { return group_panels; }
  [[gnu::always_inline]] Index group_units() const { return Index{blocks} * V::size; }
  [[gnu::always_inline]] int gate(int lane) const { return lane / blocks; }
  [[gnu::always_inline]] Index first_unit(Index group, int lane) const {
    return group * group_units() + Index{lane % blocks} * V::size;
  }
  [[gnu::always_inline]] Index groups() const {
    return (units + group_units() - 1) / group_units();
  }

  // Of a panel: a row of initial values, where there are scales those and what else the product keeps of a
  // column, then one row for each k.
  [[gnu::always_inline]] Index row_size() const { return Index{width} * V::size; }
  [[gnu::always_inline]] Index padded_depth() const {
    return round_up(depth, Product::kDepthMultiple);
  }
  [[gnu::always_inline]] Index count() const { return groups() * panels(); }
  [[gnu::always_inline]] Index size() const { return count() * stride(); }
  [[gnu::always_inline]] T* start(Index p) const { return data + p * stride(); }
  [[gnu::always_inline]] Panel* row(Index p, Index k) const {
    return reinterpret_cast<Panel*>(start(p) + head()) + k * stored();
  }
  [[gnu::always_inline]] T* scales(Index p) const { return start(p) + row_size(); }
  // Panels [first, first + count), those that there are.
  [[gnu::always_inline]] Ahead ahead(Index first, Index count) const {
    if (first < 0 || first >= this->count()) return {};
    const Index last = first + count < this->count() ? first + count : this->count();
    return {start(first), start(last)};
  }
  // Where the block of rows from k on, lanes from w on, is stored.
  [[gnu::always_inline]] Panel* block(Index p, Index k, int w) const {
    return row(p, k) + Index{w} * Product::kDepthStep * V::size;
  }
  // From a panel to the next, in T and in Panel.
  [[gnu::always_inline]] Index stride() const {
    return head() + padded_depth() * stored() * kPanelBytes / kBytes;
  }
  [[gnu::always_inline]] Index panel_stride() const { return stride() * kBytes / kPanelBytes; }

 private:
  static constexpr Index kBytes = sizeof(T), kPanelBytes = sizeof(Panel);
  [[gnu::always_inline]] Index stored() const { return stored_row<Product>(width); }
  // Before the rows.
  [[gnu::always_inline]] Index head() const {
    if constexpr (Product::kScaled) return row_size() * Product::head_rows(depth);
    return row_size();
  }
};

// Has the cache lines of p[0, n) fetched while something else is computed.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* p, Index n) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  for (Index j = 0; j < n; j += line) __builtin_prefetch(p + j);
}

// Where columns lie that are packed: the values of each one behind the other. As numbers and not as a
// function, so that packing is compiled once for all matrices of a product.
template <class T>
struct SourceColumns {
  const T* first;
  Index unit;      // from a unit's column to the next
  Index gate = 0;  // from a gate's first column to that of the next

  [[gnu::always_inline]] const T* at(int g, Index u) const { return first + g * gate + u * unit; }
};

// The row of initial values of groups [begin, end): starts[gate] points at a gate's units, or is null;
// no starts at all are zeros.
template <class V, class Product>
void pack_start(const PanelMatrix<V, Product> m, Index begin, Index end,
                const typename V::value* const* starts) {
  for (Index group = begin; group < end; ++group) {
    for (int lane = 0; lane < m.lanes(); ++lane) {
      const typename V::value* values = starts ? starts[m.gate(lane)] : nullptr;
      const Index unit = m.first_unit(group, lane);
      const V v = values ? load_some<V>(values + unit, m.units - unit) : V(0);
      v.store(m.start(group * m.panels() + lane / m.width) + lane % m.width * V::size);
    }
  }
}

// The scales of groups [begin, end).
template <class V, class Product>
void pack_scales(const PanelMatrix<V, Product> m, Index begin, Index end,
                 SourceColumns<typename V::value> columns) {
  for (Index group = begin; group < end; ++group) {
    for (int lane = 0; lane < m.lanes(); ++lane) {
      auto* const scales = m.scales(group * m.panels() + lane / m.width) + lane % m.width * V::size;
      const Index unit = m.first_unit(group, lane);
      for (Index j = 0; j < V::size; ++j) {
        const bool real = unit + j < m.units;
        Product::pack_scale(real ? columns.at(m.gate(lane), unit + j) : nullptr, real ? m.depth : 0,
                            scales + j, m.row_size());
      }
    }
  }
}

// Plain panels [begin, end) from rows: load(k, column, n) gives a lane of row k, n of it real. A few rows
// at a time go to all panels, so that rows are read as they lie in memory.
template <class V, class Product, class Load>
void pack_rows(const PanelMatrix<V, Product> m, Index begin, Index end, Load load) {
  constexpr int kDeep = Product::kDepthStep, kWide = Product::kWidthStep;
  constexpr Index kRows = 4 * kDeep;
  const Index depth = m.padded_depth();
  for (Index first = 0; first < depth; first += kRows) {
    const Index last = first + kRows < depth ? first + kRows : depth;
    for (Index p = begin; p < end; ++p) {
      for (Index k = first; k < last; k += kDeep) {
        for (int w = 0; w < m.width; w += kWide) {
          V lanes[kDeep * kWide];
          for (int i = 0; i < kDeep * kWide; ++i) {
            const Index row = k + i / kWide, column = p * m.row_size() + (w + i % kWide) * V::size;
            const bool real =
                (kDeep == 1 || row < m.depth) && (kWide == 1 || w + i % kWide < m.width);
            lanes[i] = real ? load(row, column, m.units - column) : V(0);
          }
          Product::store_block(m.block(p, k, w), lanes);
        }
      }
    }
  }
}

// Likewise, from rows that are `row` apart.
template <class V, class Product>
void pack_rows(const PanelMatrix<V, Product> m, Index begin, Index end,
               const typename V::value* first, Index row) {
  pack_rows(m, begin, end, [=](Index k, Index column, Index n) {
    return load_some<V>(first + k * row + column, n);
  });
}

// Transposes the square of V::size rows: log2(size) rounds in which every row of the first half is
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

// Groups [begin, end) from a matrix that lies the other way. Goes square by square, as many of them side by
// side as a cache line holds, and has the lines ahead fetched: so many columns at a time are more than the
// processor follows by itself.
template <class V, class Product>
void pack_columns(const PanelMatrix<V, Product> m, Index begin, Index end,
                  SourceColumns<typename V::value> columns) {
  constexpr int kDeep = Product::kDepthStep, kWide = Product::kWidthStep;
  constexpr Index kLine = 64 / static_cast<Index>(sizeof(typename V::value));
  constexpr Index kRun = V::size > kLine ? V::size : kLine, kAhead = 2 * kRun;
  static_assert(V::size % kDeep == 0);
  const Index depth = m.padded_depth();
  if constexpr (Product::kScaled) pack_scales(m, begin, end, columns);
  const auto pack_block = [=](Index group, int panel, int w,
                              Index line) __attribute__((always_inline)) {
    const typename V::value* column[kWide][V::size];
    int real[kWide];
    for (int i = 0; i < kWide; ++i) {
      const int lane = panel * m.width + w + i;
      const Index unit = m.first_unit(group, lane), left = m.units - unit;
      real[i] =
          kWide > 1 && w + i >= m.width ? 0 : static_cast<int>(left < V::size ? left : V::size);
      for (int j = 0; j < real[i]; ++j) {
        column[i][j] = columns.at(m.gate(lane), unit + j);
        if (line + kAhead < m.depth) __builtin_prefetch(column[i][j] + line + kAhead);
      }
    }
    [[maybe_unused]] typename V::value divisors[V::size];
    if constexpr (Product::kScaled) {
      static_assert(kWide == 1);
      const auto* const scales = m.scales(group * m.panels() + panel) + w * V::size;
      for (int j = 0; j < V::size; ++j) divisors[j] = Product::divisor(scales[j]);
    }
    for (Index k0 = line; k0 < line + kRun && k0 < depth; k0 += V::size) {
      V square[kWide][V::size];
      for (int i = 0; i < kWide; ++i) {
        for (int j = 0; j < V::size; ++j)
          square[i][j] = j < real[i] ? load_some<V>(column[i][j] + k0, m.depth - k0) : V(0);
        transpose(square[i]);
      }
      for (int k = 0; k < V::size && k0 + k < depth; k += kDeep) {
        V lanes[kDeep * kWide];
        for (int i = 0; i < kDeep * kWide; ++i) {
          lanes[i] = square[i % kWide][k + i / kWide];
          if constexpr (Product::kScaled) lanes[i] = lanes[i] / V::load(divisors);
        }
        Product::store_block(m.block(group * m.panels() + panel, k0 + k, w), lanes);
      }
    }
  };
  for (Index group = begin; group < end; ++group) {
    for (Index line = 0; line < depth; line += kRun) {
      for (int panel = 0; panel < m.panels(); ++panel) {
        for (int w = 0; w < m.width; w += kWide) pack_block(group, panel, w, line);
      }
    }
  }
}

// The block of row k alone, as pack_columns would: for the few that are wanted of many.
template <class V, class Product>
void pack_row(const PanelMatrix<V, Product> m, Index k, SourceColumns<typename V::value> columns) {
  constexpr int kDeep = Product::kDepthStep, kWide = Product::kWidthStep;
  k -= k % kDeep;
  for (Index panel = 0; panel < m.count(); ++panel) {
    for (int w = 0; w < m.width; w += kWide) {
      V lanes[kDeep * kWide];
      for (int i = 0; i < kDeep * kWide; ++i) {
        typename V::value row[V::size] = {};
        const int across = w + i % kWide;
        const int lane = static_cast<int>(panel % m.panels()) * m.width + across;
        const Index unit = m.first_unit(panel / m.panels(), lane), at = k + i / kWide;
        for (Index j = 0; across < m.width && at < m.depth && j < V::size && unit + j < m.units;
             ++j)
          row[j] = columns.at(m.gate(lane), unit + j)[at];
        lanes[i] = V::load(row);
      }
      Product::store_block(m.block(panel, k, w), lanes);
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

// Calls visit(first, count, next) for [begin, end), `most` at a time; next is the first of the visit after
// it, or -1. Where a loop reads the same weights again and again, every other time goes `back` from the
// last: what was read last is still in a near cache, which a pass in one direction alone would have
// dropped before it came to it again.
template <class Visit>
[[gnu::always_inline]] inline void sweep(Index begin, Index end, Index most, bool back,
                                         Visit visit) {
  const Index blocks = (end - begin + most - 1) / most;
  for (Index k = 0; k < blocks; ++k) {
    const Index first = begin + (back ? blocks - 1 - k : k) * most;
    const Index next = k + 1 == blocks ? -1 : back ? first - most : first + most;
    visit(first, end - first < most ? end - first : most, next);
  }
}

// A tile that is not whole goes by way of scratch memory: `width` columns a row there, of which the
// first `real` are those of row[r] from `column` on.
template <class V>
[[gnu::always_inline]] inline void load_tile(const typename V::value* const* row, Index column,
                                             Index rows, Index real, Index width,
                                             typename V::value* tile) {
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < width; j += V::size) {
      load_some<V>(row[r] + column + j, real - j).store(tile + r * width + j);
    }
  }
}

template <class V>
[[gnu::always_inline]] inline void store_tile(typename V::value* const* row, Index column,
                                              Index rows, Index real, Index width,
                                              const typename V::value* tile) {
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < real; j += V::size) {
      store_some(row[r] + column + j, V::load(tile + r * width + j), real - j);
    }
  }
}

template <class V>
constexpr Index tile_scratch() {
  return Index{kMaxRegisterRows} * kPanelWidth<V> * kMaxPanels * V::size;
}

// Of the panels from p on, where there are any.
template <class V, class Product>
[[gnu::always_inline]] inline auto scales_of(const PanelMatrix<V, Product>& b, Index p) {
  if constexpr (Product::kScaled) {
    return Scales{b.scales(p), b.scales(p) + b.row_size(), b.stride()};
  } else {
    return NoScales{};
  }
}

// Panels [first, first + count) times `rows` rows, from the panels' initial values; row r of the sums
// goes to out + r·count·row_size, panel after panel. Meanwhile some of `ahead` is fetched.
template <class V, class Product>
[[gnu::always_inline]] inline void multiply_panels(const PanelMatrix<V, Product>& b,
                                                   const typename Product::Tiles& tiles,
                                                   const typename Product::Operand* const* a,
                                                   int rows, Index first, Index count, Ahead& ahead,
                                                   typename V::value* out) {
  for (Index p = 0, side; p < count; p += side) {
    side = tiles.panels(rows, count - p);
    const typename Product::Tile tile{.a = a,
                                      .a_begin = 0,
                                      .a_step = 1,
                                      .b = b.row(first + p, 0),
                                      .b_panel = b.panel_stride(),
                                      .depth = b.depth,
                                      .ahead = ahead.take(b.depth / Product::kDepthStep),
                                      .start = b.start(first + p),
                                      .start_row = 0,
                                      .start_panel = b.stride(),
                                      .add = false,
                                      .out = out + p * b.row_size(),
                                      .out_row = count * b.row_size(),
                                      .out_panel = b.row_size(),
                                      .scales = scales_of(b, first + p)};
    tiles.multiply(rows, static_cast<int>(side), tile);
  }
}

// Groups whose sums are best taken together: enough to keep the units busy when the rows are few.
template <class V, class Product>
[[gnu::always_inline]] inline Index groups_together(const PanelMatrix<V, Product>& b,
                                                    const typename Product::Tiles& tiles, int rows,
                                                    Index available) {
  const Index panels = tiles.panels(rows, available * b.panels());
  return panels > b.panels() ? panels / b.panels() : 1;
}

// C = A·B + start row, or C += A·B, for `rows` rows: a[i] of A and c[i] of C, c_row apart, or 0 where not evenly.
// Large depths go block by block; within one, a panel stays in the cache while all rows are multiplied.
template <class V, class Product>
void multiply(const PanelMatrix<V, Product>& b, const typename Product::Tiles& tiles,
              const typename Product::Operand* const* a, typename V::value* const* c, Index c_row,
              Index rows, bool accumulate, typename V::value* scratch, const Worker& worker) {
  using T = typename V::value;
  constexpr Index kDepth = Product::kScaled ? Index{1} << 40 : 1024;  // whole numbers: in one sum
  static_assert(kDepth % Product::kDepthMultiple == 0 && kDepth % kSumDepth == 0);
  const Index panel_columns = b.row_size();
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
      const Index depth = b.depth - k < kDepth ? b.depth - k : kDepth;
      Ahead ahead = k + kDepth < b.depth ? Ahead(b.row(p, k + kDepth), b.row(p, b.depth))
                                         : b.ahead(p + side, side);
      for (Index t = 0; t < cut.tiles; ++t) {
        const Index i = cut.begin(t);
        const int m = static_cast<int>(cut.begin(t + 1) - i);
        T* out = direct ? c[i] + column : scratch;
        typename Product::Tile tile{.a = a + i,
                                    .a_begin = k,
                                    .a_step = 1,
                                    .b = b.row(p, k),
                                    .b_panel = b.panel_stride(),
                                    .depth = depth,
                                    .ahead = ahead.take(depth / Product::kDepthStep),
                                    .start = b.start(p),
                                    .start_row = 0,
                                    .start_panel = b.stride(),
                                    .add = add,
                                    .out = out,
                                    .out_row = direct ? c_row : side * panel_columns,
                                    .out_panel = panel_columns,
                                    .scales = scales_of(b, p)};
        if (add) {
          tile.start = out;
          tile.start_row = tile.out_row;
          tile.start_panel = tile.out_panel;
          if (!direct) load_tile<V>(c + i, column, m, real, tile.out_row, scratch);
          // The next tile's, for its sums would wait for them.
          const Index end = cut.begin(t + 2 < cut.tiles ? t + 2 : cut.tiles);
          for (Index row = i + m; row < end; ++row) prefetch(c[row] + column, real);
        }
        tiles.multiply(m, static_cast<int>(side), tile);
        if (!direct) store_tile<V>(c + i, column, m, real, tile.out_row, scratch);
      }
      worker.progress(static_cast<double>(2 * rows * side * panel_columns * depth));
    }
  }
}

}  // namespace rnnkern
