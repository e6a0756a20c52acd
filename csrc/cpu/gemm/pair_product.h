// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 pairs along k, for processors that have instructions for them.
//
// Dot is those instructions on registers:
//   Pairs                       as many pairs as V has lanes
//   load(p), broadcast(p)       V::size pairs from memory, or one of them for all lanes
//   dot(sum, a, b)              sum + both products of every pair
//   store(p, v)                 V::size values, rounded to bfloat16
#pragma once

#include "cpu/gemm/panels.h"

namespace rnnkern {

using PairTile = TileProduct<float, Bfloat16, Bfloat16>;

inline constexpr Index kTallDepth = 32;  // values of k that one tile register holds
inline constexpr int kTallColumns = 16;  // and columns
inline constexpr int kTallWidth = 4;     // of them side by side in a panel
inline constexpr Index kTallFrom = 16;   // a product of fewer rows is left to registers

// Kernels for tiles of up to kMaxTileRows rows by one panel of `width` lanes of kTallColumns, whose
// rows of A are evenly spaced. Their sums are not to the last bit those of Dot, so that whether
// they are used must depend on the sizes of the problem alone.
struct TallTiles {
  void (*multiply[kTallWidth])(const PairTile& tile, int rows);  // found by width - 1
  void (*release)();  // on a thread that has multiplied, once it is done
};

// The tiles of a product of so many rows: tall ones where there are any.
template <class Product>
class PairTiles {
 public:
  PairTiles(int width, Index rows, const TallTiles* tall)
      : registers_(width, rows, nullptr),
        tall_(rows >= kTallFrom ? tall : nullptr),
        width_(width) {}

  int height() const { return tall_ ? kMaxTileRows : registers_.height(); }
  int panels(int rows, Index available) const {
    return tall_ ? 1 : registers_.panels(rows, available);
  }
  void multiply(int rows, int panels, const PairTile& tile) const {
    if (tall_) {
      tall_->multiply[width_ - 1](tile, rows);
    } else {
      registers_.multiply(rows, panels, tile);
    }
  }

 private:
  const RegisterTiles<Product> registers_;
  const TallTiles* const tall_;
  const int width_;
};

// Not copied: what ends with it is the thread's use of the tiles.
class TallSession {
 public:
  explicit TallSession(const TallTiles* tall) : tall_(tall) {}
  TallSession(const TallSession&) = delete;
  TallSession& operator=(const TallSession&) = delete;
  ~TallSession() {
    if (tall_) tall_->release();
  }

 private:
  const TallTiles* const tall_;
};

template <class V, class Dot>
struct PairProduct {
  using Lane = V;
  using Panel = Bfloat16;
  using Operand = Bfloat16;
  using Columns = typename Dot::Pairs;
  using Tile = PairTile;
  using Tiles = PairTiles<PairProduct>;
  using Session = TallSession;
  static constexpr int kSums = tile_budget<V>(1);
  static constexpr bool kRounds = true, kScaled = false;
  static constexpr int kDepthStep = 2, kWidthStep = 1;
  static constexpr Index kDepthMultiple = kTallDepth;
  static_assert(V::size == kTallColumns && V::size == kMaxTileRows);
  static_assert(kPanelWidth<V> == kTallWidth);

  template <int W, class Visit>
  [[gnu::always_inline]] static void for_columns(const Bfloat16* b, Visit visit) {
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) visit(w, Dot::load(b + w * 2 * V::size));
  }
  [[gnu::always_inline]] static Columns broadcast(const Bfloat16* a) { return Dot::broadcast(a); }
  [[gnu::always_inline]] static V multiply_add(Columns row, Columns column, V sum) {
    return Dot::dot(sum, row, column);
  }

  [[gnu::always_inline]] static void store_block(Bfloat16* p, const V* lanes) {
    V::store_pair(p, round_to_bfloat16(lanes[0]), round_to_bfloat16(lanes[1]));
  }
  static void load_block(const Bfloat16* p, V* lanes) { V::load_pair(p, lanes[0], lanes[1]); }
  [[gnu::always_inline]] static float rounded(float v) { return round_to_bfloat16(v); }

  static const Bfloat16* copy_row(const float* from, Index n, Bfloat16* to) {
    const Index all = round_up(n, kDepthMultiple);
    for (Index j = 0; j < all; j += V::size) Dot::store(to + j, load_some<V>(from + j, n - j));
    return to;
  }

  // Square by square: the instructions take neighbours along k.
  static void pack_across(const float* from, Index from_row, Index depth, Index height,
                          Bfloat16* to) {
    const Index distance = row_distance(depth);
    for (Index k = 0; k < distance; k += V::size) {
      V square[V::size];
      for (int i = 0; i < V::size; ++i)
        square[i] = k + i < depth ? load_some<V>(from + (k + i) * from_row, height) : V(0);
      transpose(square);
      for (Index m = 0; m < height; ++m) Dot::store(to + m * distance + k, square[m]);
    }
  }
  static Index row_distance(Index depth) { return round_up(depth, kDepthMultiple); }
  static Index step_distance(Index) { return 1; }
};

}  // namespace rnnkern
