// SPDX-License-Identifier: Apache-2.0
// C = A·B (+ bias), a plain matrix product on the panels, for the layers around the recurrent ones.
#pragma once

#include <algorithm>

#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/team/team.h"

namespace rnnkern {

template <class V>
class Matmul {
  using T = typename V::value;

 public:
  static Index packed_bytes(const MatmulProblem<T>& problem) {
    return PanelMatrix<V>(problem.depth, problem.columns, 1).size() * static_cast<Index>(sizeof(T));
  }

  // B and the bias in panels; the team must wait before it reads them.
  static void pack(const MatmulProblem<T>& problem, const Worker& worker, std::byte* packed) {
    PanelMatrix<V> b(problem.depth, problem.columns, 1);
    b.data = reinterpret_cast<T*>(packed);
    const auto share = worker.share(b.count());
    pack_start(b, share.begin, share.end, &problem.bias);
    if (problem.b_column == 1) {
      pack_rows(b, share.begin, share.end, problem.b, problem.b_depth);
    } else {
      pack_columns(b, share.begin, share.end, {problem.b, problem.b_column});
    }
  }

  static Index scratch_bytes(const MatmulProblem<T>& problem, int threads) {
    Arena measure(nullptr);
    Scratch(problem, threads, 0, measure);
    return measure.used();
  }

  static void run(const MatmulProblem<T>& problem, const Worker& worker, std::byte* base) {
    Arena arena(base);
    const Scratch scratch(problem, worker.count, worker.id, arena);
    if (!problem.packed) pack(problem, worker, reinterpret_cast<std::byte*>(scratch.b.data));
    if (scratch.turned) turn(problem, worker, scratch.turned);
    if (!problem.packed || scratch.turned) worker.wait_team();
    // Few rows: share the columns instead.
    const bool by_rows = problem.rows >= kMaxRegisterRows * worker.count;
    const auto rows = by_rows ? worker.share(problem.rows) : Worker::Share{0, problem.rows};
    const auto panels =
        by_rows ? Worker::Share{0, scratch.b.count()} : worker.share(scratch.b.count());
    if (panels.begin == panels.end) return;
    PanelMatrix<V> b = scratch.b;
    const Index first_column = panels.begin * b.row_size(), end_column = panels.end * b.row_size();
    b.data = b.start(panels.begin);
    b.units = (end_column < b.units ? end_column : b.units) - first_column;
    for (Index i = rows.begin; i < rows.end; ++i) {
      scratch.a[i] =
          scratch.turned ? scratch.turned + i * problem.depth : problem.a + i * problem.a_row;
      scratch.c[i] = problem.c + i * problem.c_row + first_column;
    }
    // So many rows at a time that an interruption is soon seen.
    constexpr Index kRows = 4096;
    const typename ExactProduct<V>::Tiles tiles(b.width, problem.rows, nullptr);
    for (Index i = rows.begin; i < rows.end; i += kRows) {
      multiply(b, tiles, scratch.a + i, scratch.c + i, problem.c_row, std::min(kRows, rows.end - i),
               problem.accumulate, scratch.tile, worker);
    }
  }

 private:
  struct Scratch {
    PanelMatrix<V> b;
    T* turned;  // A with its depth contiguous, where it is not so already
    T* tile;    // this thread's, as the row pointers
    const T** a;
    T** c;

    Scratch(const MatmulProblem<T>& problem, int threads, int id, Arena& arena)
        : b(problem.depth, problem.columns, 1) {
      b.data = problem.packed ? reinterpret_cast<T*>(problem.packed) : arena.take<T>(b.size());
      turned = problem.a_depth == 1 ? nullptr : arena.take<T>(problem.rows * problem.depth);
      for (int i = 0; i < threads; ++i) {
        T* tile_i = arena.take<T>(tile_scratch<V>());
        const T** a_i = arena.take<const T*>(problem.rows);
        T** c_i = arena.take<T*>(problem.rows);
        if (i == id) tile = tile_i, a = a_i, c = c_i;
      }
    }
  };

  static void turn(const MatmulProblem<T>& problem, const Worker& worker, T* turned) {
    constexpr Index kBlock = 16;
    const auto rows = worker.share(problem.rows);
    for (Index k0 = 0; k0 < problem.depth; k0 += kBlock) {
      const Index k1 = k0 + kBlock < problem.depth ? k0 + kBlock : problem.depth;
      for (Index i = rows.begin; i < rows.end; ++i) {
#pragma omp simd
        for (Index k = k0; k < k1; ++k) {
          turned[i * problem.depth + k] = problem.a[i * problem.a_row + k * problem.a_depth];
        }
      }
    }
  }
};

}  // namespace rnnkern
