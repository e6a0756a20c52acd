// SPDX-License-Identifier: Apache-2.0
// The chunks of steps whose products with W_ih, and whose weight gradients, are taken as one; and
// the rows of their operands.
#pragma once

#include "core/memory.h"
#include "core/problem.h"
#include "cpu/gemm/product.h"

namespace rnnkern {

// Processed steps [begin, end) whose packed rows [first_row, last_row) are worked on as one.
struct Chunk {
  Index begin, end, first_row, last_row;

  [[gnu::always_inline]] Index rows() const { return last_row - first_row; }
};

// Rows that make a chunk: enough for the products over it, few enough for it to stay in cache.
inline constexpr Index kChunkRows = 512;

// Of a chunk of at least `rows` rows, or all there are.
[[gnu::always_inline]] inline Index largest_chunk(const Schedule& s, Index rows) {
  const Index all = s.offset[s.steps], most = rows + s.batch;
  return all < most ? all : most;
}

[[gnu::always_inline]] inline void set_rows(const Schedule& s, Chunk& chunk) {
  const Index first = s.reverse ? s.time(chunk.end - 1) : chunk.begin;
  chunk.first_row = s.offset[first];
  chunk.last_row = s.offset[first + (chunk.end - chunk.begin)];
}

[[gnu::always_inline]] inline Chunk chunk_from(const Schedule& s, Index begin, Index least) {
  Chunk chunk{begin, begin, 0, 0};
  for (Index rows = 0; chunk.end < s.steps && rows < least; ++chunk.end) rows += s.live(chunk.end);
  set_rows(s, chunk);
  return chunk;
}

[[gnu::always_inline]] inline Chunk chunk_until(const Schedule& s, Index end) {
  Chunk chunk{end, end, 0, 0};
  for (Index rows = 0; chunk.begin > 0 && rows < kChunkRows; --chunk.begin) {
    rows += s.live(chunk.begin - 1);
  }
  set_rows(s, chunk);
  return chunk;
}

// Calls visit(packed row, t, i) for the packed rows [begin, end).
template <class V, class Visit>
[[gnu::always_inline]] inline void for_packed_rows(const Schedule& s, Index begin, Index end,
                                                   Visit visit) {
  Index low = 0, high = s.steps;  // the step that holds `begin`: the last t with offset[t] <= begin
  while (high - low > 1) {
    const Index middle = low + (high - low) / 2;
    (s.offset[middle] <= begin ? low : high) = middle;
  }
  for (Index t = low, p = begin; p < end; ++t) {
    for (; p < end && p < s.offset[t + 1]; ++p) visit(p, t, p - s.offset[t]);
  }
}

// Copies of A's rows, each with its scale in front if it has one, and filled with zeros to a whole multiple
// of the depth; none where A is used where it stands.
template <class Product>
constexpr Index copy_size(Index depth) {
  Index header = 0;
  if constexpr (Product::kScaled) header = Product::kHeader;
  return Product::kRounds ? header + round_up(depth, Product::kDepthMultiple) : 0;
}

template <class Product>
[[gnu::always_inline]] inline typename Product::Operand* take_copies(Arena& arena, Index rows,
                                                                     Index depth) {
  return arena.take<typename Product::Operand>(rows * copy_size<Product>(depth));
}

}  // namespace rnnkern
