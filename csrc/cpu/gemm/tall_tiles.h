// SPDX-License-Identifier: Apache-2.0
// A tall tile of sums by matrix tile registers.
//
// Amx is the instructions, each on the registers that its template arguments number:
//   configure(rows)             registers 0 to 4 have that many rows, 5 to 7 sixteen, of 64 bytes each
//   release()                   undoes that
//   load<T>(p, distance)        rows `distance` bytes apart
//   store<T>(p, distance)
//   dot<C, A, B>()              C += A·B, float32 from bfloat16 pairs
#pragma once

#include <utility>

#include "cpu/gemm/pair_product.h"

namespace rnnkern {

// Registers 0 to 3 hold sums, 4 the rows of A, 5 to 7 columns of the panel.
template <class Amx, int... W>
void multiply_tall(const PairTile& t, int rows, std::integer_sequence<int, W...>) {
  constexpr int kWidth = sizeof...(W), kRows = 4, kPanel = 5, kPanelRegisters = 3;
  constexpr Index kPairBytes = 2 * sizeof(Bfloat16), kRowBytes = kWidth * kTallColumns * kPairBytes;
  const auto bytes = [](Index floats) { return floats * Index{sizeof(float)}; };
  const Bfloat16* a = t.a[0] + t.a_begin;
  const Index a_bytes = rows > 1 ? (t.a[1] - t.a[0]) * Index{sizeof(Bfloat16)} : 0;
  const Bfloat16* b = t.b;
  Amx::configure(rows);
  (Amx::template load<W>(t.start + W * kTallColumns, bytes(t.start_row)), ...);
  for (Index k = 0; k < t.depth; k += kTallDepth) {
    Amx::template load<kRows>(a, a_bytes);
    ((Amx::template load<kPanel + W % kPanelRegisters>(b + W * 2 * kTallColumns, kRowBytes),
      Amx::template dot<W, kRows, kPanel + W % kPanelRegisters>()),
     ...);
    a += kTallDepth;
    b += kTallDepth * kWidth * kTallColumns;
  }
  (Amx::template store<W>(t.out + W * kTallColumns, bytes(t.out_row)), ...);
}

template <class Amx, int W>
void multiply_tall(const PairTile& tile, int rows) {
  multiply_tall<Amx>(tile, rows, std::make_integer_sequence<int, W>());
}

template <class Amx>
inline constexpr TallTiles tall_tiles_of = {
    {multiply_tall<Amx, 1>, multiply_tall<Amx, 2>, multiply_tall<Amx, 3>, multiply_tall<Amx, 4>},
    Amx::release};

}  // namespace rnnkern
