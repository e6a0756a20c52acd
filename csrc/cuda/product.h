// SPDX-License-Identifier: Apache-2.0
// A warp's part of a matrix product: the rows of a times the rows of b, both in shared memory and
// both running along the depth k, so that every load is a vector of 16 bytes.
//
// A step of the product covers 64 bytes of a row: lane l of the warp takes its vector l % 4 of row
// l / 4, of a and of b alike. Since both take the same places, the order in which the tensor cores
// number the k within a step does not matter, and fragments need no shuffling. Rows lie an odd
// multiple of 64 bytes apart, so that the eight lanes that share a transaction touch all banks.
#pragma once

#include <bit>
#include <iterator>
#include <type_traits>

#include "cuda/element.h"

namespace rnnkern::cuda {

inline constexpr int kStepBytes = 64;

// Row `row` of the matrix begins at data + row·stride; rows past count - 1 are not to be read.
struct Rows {
  const std::byte* data;
  int stride, count;

  RNNKERN_KERNEL const Vector& vector(int row, int step, int quarter) const {
    const int last = count - 1;
    return *reinterpret_cast<const Vector*>(data + Index{row < last ? row : last} * stride +
                                            step * kStepBytes + quarter * kVectorBytes);
  }
};

// The tensor cores' instruction. Lane 4g + t holds, of each stretch of four words that a step's
// lanes share, rows g (`low`) and g + 8 (`high`) of a and row g of b; word pair `half` of them is
// what one instruction takes. sums.v[i][j] gets (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#ifdef __CUDACC__

#define RNNKERN_MMA(shape, type)                                                                 \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type                                    \
      ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                               \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
      : "r"(low[0].word[2 * half]), "r"(high[0].word[2 * half]), "r"(low[0].word[2 * half + 1]), \
        "r"(high[0].word[2 * half + 1]), "r"(b[0].word[2 * half]), "r"(b[0].word[2 * half + 1]))

template <class E, class Sums>
RNNKERN_KERNEL void mma(Lanes<Sums>& sums, int i, int j, const Lanes<Vector>& low,
                        const Lanes<Vector>& high, const Lanes<Vector>& b, int half) {
  float (&d)[4] = sums[0].v[i][j];
  if constexpr (std::is_same_v<E, TensorFloat32>) {
    RNNKERN_MMA("m16n8k8", "tf32");
  } else if constexpr (std::is_same_v<E, BrainFloat16>) {
    RNNKERN_MMA("m16n8k16", "bf16");
  } else {
    RNNKERN_MMA("m16n8k16", "f16");
  }
}
#undef RNNKERN_MMA

// The sum over each four neighbouring lanes, to all four.
template <class Sums>
RNNKERN_KERNEL void sum_quads(Lanes<Sums>& sums) {
#pragma unroll
  for (auto& row : sums[0].v) {
#pragma unroll
    for (auto& v : row) {
      v += __shfl_xor_sync(0xffffffffu, v, 1);
      v += __shfl_xor_sync(0xffffffffu, v, 2);
    }
  }
}

#else

template <class E, class Sums>
void mma(Lanes<Sums>& sums, int i, int j, const Lanes<Vector>& low, const Lanes<Vector>& high,
         const Lanes<Vector>& b, int half) {
  constexpr int per_word = 4 / sizeof(typename E::Storage), depth = 8 * per_word;
  const auto value = [&](const Vector& v, int word, int k) {
    const auto bits = v.word[2 * half + word] >> (32 / per_word * k);
    if constexpr (per_word == 1) {
      return std::bit_cast<float>(bits);
    } else {
      return E::widen(static_cast<std::uint16_t>(bits));
    }
  };
  float left[16][depth], right[8][depth];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int word = 0; word < 2; ++word) {
      for (int e = 0; e < per_word; ++e) {
        const int k = word * depth / 2 + lane % 4 * per_word + e;
        left[lane / 4][k] = value(low[lane], word, e);
        left[lane / 4 + 8][k] = value(high[lane], word, e);
        right[lane / 4][k] = value(b[lane], word, e);
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < 4; ++r) {
      float& d = sums[lane].v[i][j][r];
      for (int k = 0; k < depth; ++k)
        d += left[lane / 4 + r / 2 * 8][k] * right[lane % 4 * 2 + r % 2][k];
    }
  }
}

template <class Sums>
void sum_quads(Lanes<Sums>& sums) {
  for (int lane = 0; lane < kLanes; lane += 4) {
    auto* v = &sums[lane].v;
    for (std::size_t i = 0; i < std::size(*v); ++i) {
      for (std::size_t j = 0; j < std::size(**v); ++j) {
        const auto sum = (v[0][i][j] + v[1][i][j]) + (v[2][i][j] + v[3][i][j]);
        for (int k = 0; k < 4; ++k) v[k][i][j] = sum;
      }
    }
  }
}

#endif

// On the tensor cores: 16·M rows of a by 8·N rows of b.
template <class E, int M, int N>
struct TensorProduct {
  using Element = E;
  static constexpr int rows = 16 * M, columns = 8 * N, columns_at_once = 8;
  struct Sums {
    float v[M][N][4];
  };

  RNNKERN_KERNEL static void multiply(Lanes<Sums>& sums, const Rows& a, const Rows& b, int begin,
                                      int end) {
    if (b.count <= 8) {
      multiply_columns<1>(sums, a, b, begin, end);
    } else if (b.count <= 16 && N > 2) {
      multiply_columns<2>(sums, a, b, begin, end);
    } else {
      multiply_columns<N>(sums, a, b, begin, end);
    }
  }

  RNNKERN_KERNEL static void finish(Lanes<Sums>&) {}

  // visit(row, column, sum) for what this lane holds: all rows, the first `count` columns and those
  // up to a multiple of 8.
  template <class Visit>
  RNNKERN_KERNEL static void visit(const Sums& sums, int lane, int count, Visit visit) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j * 8 >= count) break;
#pragma unroll
      for (int i = 0; i < M; ++i) {
#pragma unroll
        for (int r = 0; r < 4; ++r)
          visit(i * 16 + lane / 4 + r / 2 * 8, j * 8 + lane % 4 * 2 + r % 2, sums.v[i][j][r]);
      }
    }
  }

 private:
  // The first 8·J rows of b, known to the compiler: an instruction that is left out while the kernel
  // runs keeps its place in the row. An instruction takes its sums from the one before, so where
  // there are few of them several chains of sums run side by side.
  template <int J>
  RNNKERN_KERNEL static void multiply_columns(Lanes<Sums>& sums, const Rows& a, const Rows& b,
                                              int begin, int end) {
    constexpr int chains = M * J >= 4 ? 1 : 4 / (M * J), at_once = J > 2 ? 2 : 4;
    Lanes<Sums> others[chains > 1 ? chains - 1 : 1]{};
    const auto chain = [&](int c) -> Lanes<Sums>& { return c == 0 ? sums : others[c - 1]; };
    const auto multiply_step = [&](int step, int first_chain) {
      Lanes<Vector> low[M], high[M];
#pragma unroll
      for (int i = 0; i < M; ++i) {
        each_lane([&](int lane) {
          low[i][lane] = a.vector(i * 16 + lane / 4, step, lane % 4);
          high[i][lane] = a.vector(i * 16 + 8 + lane / 4, step, lane % 4);
        });
      }
#pragma unroll
      for (int j = 0; j < J; ++j) {
        Lanes<Vector> right;
        each_lane([&](int lane) { right[lane] = b.vector(j * 8 + lane / 4, step, lane % 4); });
#pragma unroll
        for (int i = 0; i < M; ++i) {
          mma<E>(chain(first_chain), i, j, low[i], high[i], right, 0);
          mma<E>(chain(first_chain + (chains > 1)), i, j, low[i], high[i], right, 1);
        }
      }
    };
    // Several steps at once, so that the later ones' loads are on their way.
    int step = begin;
    for (; step + at_once <= end; step += at_once) {
#pragma unroll
      for (int k = 0; k < at_once; ++k) multiply_step(step + k, 2 * k % chains);
    }
    for (; step < end; ++step) multiply_step(step, 0);
    if constexpr (chains > 1) {
      each_lane([&](int lane) {
#pragma unroll
        for (int i = 0; i < M; ++i) {
#pragma unroll
          for (int j = 0; j < J; ++j) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              float& sum = sums[lane].v[i][j][r];
#pragma unroll
              for (int c = 0; c < chains - 1; ++c) sum += others[c][lane].v[i][j][r];
            }
          }
        }
      });
    }
  }
};

// On the scalar units: 32 rows of a by N rows of b. Lane 4g + t sums rows g, g + 8, g + 16, g + 24
// over its quarter of the depth.
template <class E, int N>
struct ScalarProduct {
  using Element = E;
  using Sum = typename E::Sum;
  static constexpr int rows = 32, columns = N, columns_at_once = 1;
  struct Sums {
    Sum v[4][N];
  };

  RNNKERN_KERNEL static void multiply(Lanes<Sums>& sums, const Rows& a, const Rows& b, int begin,
                                      int end) {
    if (b.count == 1) {
      multiply_columns<1>(sums, a, b, begin, end);
    } else if (b.count <= N / 2) {
      multiply_columns<N / 2>(sums, a, b, begin, end);
    } else {
      multiply_columns<N>(sums, a, b, begin, end);
    }
  }

  RNNKERN_KERNEL static void finish(Lanes<Sums>& sums) { sum_quads(sums); }

  template <class Visit>
  RNNKERN_KERNEL static void visit(const Sums& sums, int lane, int count, Visit visit) {
    // All four lanes have the sums of all four rows. One gives them all: were each to give one
    // row's, the index would put the sums in memory.
    if (lane % 4 != 0) return;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j >= count) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(lane / 4 + 8 * i, j, sums.v[i][j]);
    }
  }

 private:
  static constexpr int kPerVector = kVectorBytes / sizeof(typename E::Storage);
  struct Values {
    typename E::Storage value[kPerVector];
  };

  // The first Columns rows of b, known to the compiler, which so keeps the sums in registers.
  template <int Columns>
  RNNKERN_KERNEL static void multiply_columns(Lanes<Sums>& sums, const Rows& a, const Rows& b,
                                              int begin, int end) {
    each_lane([&](int lane) {
      auto& v = sums[lane].v;
      for (int step = begin; step < end; ++step) {
        Values left[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          left[i] = std::bit_cast<Values>(a.vector(lane / 4 + 8 * i, step, lane % 4));
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
          const auto right = std::bit_cast<Values>(b.vector(j, step, lane % 4));
#pragma unroll
          for (int e = 0; e < kPerVector; ++e) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              v[i][j] += E::widen(left[i].value[e]) * E::widen(right.value[e]);
          }
        }
      }
    });
  }
};

}  // namespace rnnkern::cuda
