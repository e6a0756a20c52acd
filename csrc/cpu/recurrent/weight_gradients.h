// SPDX-License-Identifier: Apache-2.0
// The gradients of the input and of all weights, once a chunk of steps: products of the
// pre-activations' gradients, the deltas, over all rows of the chunk.
#pragma once

#include <algorithm>

#include "core/cells.h"
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/recurrent/chunk.h"
#include "cpu/recurrent/norm_gradients.h"
#include "cpu/recurrent/row_factors.h"
#include "cpu/team/team.h"

namespace rnnkern {

// What row i's product of processed step s multiplied.
template <class T>
[[gnu::always_inline]] inline const T* previous_h(const BackwardProblem<T>& problem, Index s,
                                                  Index i) {
  const Schedule& schedule = problem.schedule;
  if (s == 0 || i >= schedule.live(s - 1)) return problem.h_0 + schedule.order[i] * problem.outputs;
  return problem.y.at(schedule.at(schedule.time(s - 1), i));
}

// What that row's c was before it.
template <class T>
[[gnu::always_inline]] inline const T* previous_c(const BackwardProblem<T>& problem, Index s,
                                                  Index i) {
  const Schedule& schedule = problem.schedule;
  if (s == 0 || i >= schedule.live(s - 1)) return problem.c_0 + schedule.order[i] * problem.units;
  return problem.cells + (schedule.offset[schedule.time(s - 1)] + i) * problem.units;
}

// Numbers in a row of deltas: (deltas, H), and behind them ∂L/∂h_t (P) where h is a projection.
[[gnu::always_inline]] inline Index delta_size(const CellFacts& cell, Index units, Index outputs) {
  return cell.deltas * units + (outputs != units ? outputs : 0);
}

template <class V, class Product>
class WeightGradients {
  using T = typename V::value;
  using Operand = typename Product::Operand;
  using Matrix = PanelMatrix<V, Product>;
  struct Gradients {
    T *dw_ih, *dw_hh, *dw_hr;
  };

  // So many rows are summed by themselves: the shorter the sums, the fewer digits they lose. A
  // token's gradient has one addend a row; those of weights are sums of the products' sums.
  static constexpr Index kSumRows = 1 << 14, kTokenSumRows = 1 << 10;
  // So many are worked on at once: one step may have any number of them.
  static constexpr Index kPartRows = 1 << 11;

  static bool many_rows(const Schedule& s) { return s.offset[s.steps] > kSumRows; }

 public:
  // What the team shares: it stays where it is while teams of other sizes take over.
  struct Shared {
    Matrix inputs;                 // x of a part, (rows, I)
    Matrix operands[kMostPhases];  // what a phase's product multiplied in a part, (rows, P)
    Matrix inner;                  // what a projection did, (rows, H)
    T* token_gradient;             // (distinct tokens, G·H)
    Gradients recent;              // of the latest rows, where there are many
    double* bias_sums;             // (deltas, H), or as NormGradients has them
    Operand* packed_delta;  // the part's deltas that meet a product, transposed, by tiles of rows
    Operand* delta_copies;  // (rows of a part, G·H), where operands are rounded

    Shared(const CellFacts& cell, const BackwardProblem<T>& problem, Arena& arena) {
      const Index units = problem.units, outputs = problem.outputs, rows = cell.gates * units;
      const bool projects = outputs != units;
      const Index part = largest_part(problem.schedule);
      const auto take = [&](Matrix matrix) {
        matrix.data = arena.take<T>(matrix.size());
        return matrix;
      };
      for (int p = 0; p < cell.phase_count(); ++p)
        operands[p] = take(Matrix(cell.recurrent_product ? part : 0, outputs, 1));
      if (projects) inner = take(Matrix(part, units, 1));
      if (!problem.tokens.slot) inputs = take(Matrix(part, problem.inputs, 1));
      token_gradient = arena.take<T>(problem.tokens.slot ? problem.tokens.count * rows : 0);
      const Index recent_rows = many_rows(problem.schedule) ? rows : 0;
      recent.dw_ih = arena.take<T>(problem.tokens.slot ? 0 : recent_rows * problem.inputs);
      recent.dw_hh = arena.take<T>(recent_rows * cell.recurrent_columns(outputs));
      recent.dw_hr = arena.take<T>(projects && recent_rows > 0 ? outputs * units : 0);
      bias_sums = arena.take<double>(sum_rows(cell) * units);
      packed_delta =
          arena.take<Operand>((cell.preactivation_deltas() * units + (projects ? outputs : 0)) *
                              round_up(part, Product::kDepthMultiple));
      delta_copies = take_copies<Product>(arena, problem.dx.data ? part : 0, rows);
    }
  };

  // What is one thread's.
  struct Own {
    T* tile;
    const Operand** a;  // (rows of a part): rows of a product over it, in and
    T** c;              // out
    const T** source;   // likewise: what its panels are packed from
    const T** factors;  // and their factors, where h has any

    Own() = default;
    Own(const BackwardProblem<T>& problem, Arena& arena) {
      const Index part = largest_part(problem.schedule);
      tile = arena.take<T>(tile_scratch<V>());
      a = arena.take<const Operand*>(part);
      c = arena.take<T*>(part);
      source = arena.take<const T*>(part);
      factors = arena.take<const T*>(problem.h_factors ? part : 0);
    }
  };

  // `delta`, a chunk's rows of deltas, is what the time loop leaves; of a cell that normalises they change.
  WeightGradients(const CellFacts& cell, const BackwardProblem<T>& problem, const TallTiles* tall,
                  const Worker& worker, const Matrix& input_panels, const NormWeights<T>& norm,
                  const Shared& shared, const Own& own, T* delta)
      : cell_(cell),
        phases_(cell.phase_count()),
        gates_(cell.gates),
        deltas_(cell.deltas),
        multiplied_(cell.preactivation_deltas()),
        problem_(problem),
        schedule_(problem.schedule),
        tall_(tall),
        units_(problem.units),
        outputs_(problem.outputs),
        delta_size_(delta_size(cell, units_, outputs_)),
        worker_(worker),
        input_panels_(input_panels),
        shared_(shared),
        own_(own),
        delta_(delta),
        norm_(cell, problem, worker, norm, delta_size_, shared.bias_sums),
        sums_(many_rows(schedule_) ? shared.recent
                                   : Gradients{problem.dw_ih, problem.dw_hh, problem.dw_hr}) {}

  void clear() const {
    for_recent_sums([&](T* from, T*, Index n) {
      const auto share = worker_.share(n);
      for (Index j = share.begin; j < share.end; ++j) from[j] = T(0);
    });
    const auto biases = worker_.share(sum_rows(cell_) * units_);
    for (Index j = biases.begin; j < biases.end; ++j) shared_.bias_sums[j] = 0;
    if (!problem_.tokens.slot) return;
    const auto share = worker_.share(problem_.tokens.count * gates_ * units_);
    for (Index j = share.begin; j < share.end; ++j) shared_.token_gradient[j] = T(0);
  }

  // The chunk's deltas are there, all threads'. Whether the team shall break up.
  bool add(const Chunk& chunk) const {
    bool breaks_up = false;
    Index done = 0;
    do {
      const Chunk part = part_of(chunk, done);
      add_part(part, delta_ + (part.first_row - chunk.first_row) * delta_size_);
      breaks_up = worker_.wait_team();
      collect(part);
      done += part.rows();
    } while (done < chunk.rows());
    return breaks_up;
  }

 private:
  static Index sum_rows(const CellFacts& cell) {
    return cell.layer_norm ? NormGradients<V>::sum_rows(cell) : cell.deltas;
  }

  static Index largest_part(const Schedule& schedule) {
    const Index chunk = largest_chunk(schedule, kChunkRows);
    return chunk < kPartRows ? chunk : kPartRows;
  }

  // What is left of a chunk, or so much of it; rows come in the order in which chunks do.
  Chunk part_of(const Chunk& chunk, Index done) const {
    Chunk part = chunk;
    if (schedule_.reverse) {
      part.first_row += done;
      if (part.rows() > kPartRows) part.last_row = part.first_row + kPartRows;
    } else {
      part.last_row -= done;
      if (part.rows() > kPartRows) part.first_row = part.last_row - kPartRows;
    }
    return part;
  }

  void add_part(const Chunk& part, T* delta) const {
    if (cell_.layer_norm) norm_.add(part, delta);
    pack_part(part, delta);
    worker_.offer(kInputRows, problem_.dx.data ? part.rows() : 0, kPieceRows);
    worker_.offer(kWeightTiles, all_tiles(), kPieceTiles);
    worker_.wait_team();
    worker_.for_pieces(
        kInputRows, [&](Index begin, Index end) { add_input_gradient(part, delta, begin, end); });
    if (!cell_.layer_norm) add_bias_gradients(part.rows(), delta);
    worker_.for_pieces(kWeightTiles, [&](Index begin, Index end) {
      add_weight_gradients(part.rows(), begin, end);
    });
    if (problem_.tokens.slot) add_token_gradients(part, delta);
  }

  // To be called once all threads have added.
  void collect(const Chunk& part) const {
    const Index all = schedule_.offset[schedule_.steps];
    const Index done = schedule_.reverse ? part.last_row : all - part.first_row;
    const auto ends_rows = [&](Index rows) {
      return done == all || done / rows != (done - part.rows()) / rows;
    };
    if (ends_rows(kSumRows)) {
      for_recent_sums([&](T* from, T* to, Index n) {
        const auto share = worker_.share(to ? n : 0);
#pragma omp simd
        for (Index j = share.begin; j < share.end; ++j) to[j] += from[j], from[j] = T(0);
      });
    }
    if (done == all) {
      const auto collect_biases = [&](T* to, double* from, Index n) {
        const auto share = worker_.share(to ? n : 0);
#pragma omp simd
        for (Index j = share.begin; j < share.end; ++j)
          to[j] += static_cast<T>(from[j]), from[j] = 0;
      };
      if (cell_.layer_norm) {
        norm_.for_sums(collect_biases);
      } else {
        collect_biases(problem_.dbias, shared_.bias_sums, gates_ * units_);
        if (multiplied_ > gates_)
          collect_biases(problem_.dbias_hn, shared_.bias_sums + gates_ * units_, units_);
      }
      if (cell_.unit_weights > 0) {
        collect_biases(problem_.dunit_weights, shared_.bias_sums + multiplied_ * units_,
                       (deltas_ - multiplied_) * units_);
      }
    }
    if (!problem_.tokens.slot) return;
    // Rarely enough that few rows of the many tokens are gone through for each one added.
    const Index all_tokens = 4 * problem_.tokens.count;
    if (ends_rows(all_tokens > kTokenSumRows ? all_tokens : kTokenSumRows))
      scatter_token_gradients();
  }

  // Queues of pieces of a part's products, and how large one is: some hundred microseconds' worth.
  enum { kInputRows, kWeightTiles };
  static constexpr Index kPieceRows = 64, kPieceTiles = 8;

  // Calls visit(from, to, n) for each array of sums and what it is added to at last; `to` may be
  // null.
  template <class Visit>
  [[gnu::always_inline]] void for_recent_sums(Visit visit) const {
    if (!many_rows(schedule_)) return;
    const Gradients& recent = shared_.recent;
    const Index rows = gates_ * units_;
    if (!problem_.tokens.slot) visit(recent.dw_ih, problem_.dw_ih, rows * problem_.inputs);
    if (cell_.recurrent_product) visit(recent.dw_hh, problem_.dw_hh, rows * outputs_);
    if (projects()) visit(recent.dw_hr, problem_.dw_hr, outputs_ * units_);
  }

  bool projects() const { return outputs_ != units_; }

  // Columns of delta d, of those that meet a product: ∂L/∂h_t of a projection counts as one more.
  Index columns_of(int d) const { return d < multiplied_ ? units_ : outputs_; }
  // And where in a row of deltas they begin.
  Index first_column(int d) const { return (d < multiplied_ ? d : deltas_) * units_; }

  // For products whose left-hand side has the columns of delta d as its rows.
  typename Product::Tiles tiles_over_part(const Matrix& matrix, int d) const {
    return {matrix.width, columns_of(d), tall_};
  }

  // The same for all deltas.
  int delta_tile_rows() const {
    int rows = tiles_over_part(shared_.operands[0], 0).height();
    if (!problem_.tokens.slot) rows = std::min(rows, tiles_over_part(shared_.inputs, 0).height());
    if (projects()) rows = std::min(rows, tiles_over_part(shared_.inner, multiplied_).height());
    return rows;
  }

  // Of one delta's rows.
  TileCut delta_tiles(int d) const { return TileCut(columns_of(d), delta_tile_rows()); }

  Index all_tiles() const {
    return multiplied_ * delta_tiles(0).tiles + (projects() ? delta_tiles(multiplied_).tiles : 0);
  }

  // Calls visit(d, {first of its tiles, how many}) for the tiles [begin, end) of all deltas.
  template <class Visit>
  [[gnu::always_inline]] void for_deltas(Index begin, Index end, Visit visit) const {
    const Index tiles = delta_tiles(0).tiles;
    for (Index t = begin, next; t < end; t = next) {
      const int d = t < multiplied_ * tiles ? static_cast<int>(t / tiles) : multiplied_;
      next = d < multiplied_ && (d + 1) * tiles < end ? (d + 1) * tiles : end;
      visit(d, Range{static_cast<int>(t - d * tiles), static_cast<int>(next - t)});
    }
  }

  void pack_part(const Chunk& part, const T* delta) const {
    const Index rows = part.rows();
    const T** const a = own_.source;
    for (int p = 0; p < phases_ && cell_.recurrent_product; ++p) {
      Matrix matrix = shared_.operands[p];
      matrix.depth = rows;
      const auto share = worker_.share(matrix.count());
      for_packed_rows<V>(schedule_, part.first_row, part.last_row,
                         [&](Index row, Index t, Index i) {
                           const Index s = schedule_.time(t), k = row - part.first_row;
                           a[k] = previous_h(problem_, s, i);
                           if (problem_.h_factors)
                             own_.factors[k] = row_factors(problem_, outputs_, s, i);
                         });
      pack_rows(matrix, share.begin, share.end, [&](Index k, Index unit, Index n) {
        V h = load_some<V>(a[k] + unit, n);
        if (problem_.h_factors) h = h * load_some<V>(own_.factors[k] + unit, n);
        if (p == 0) return h;
        const T* saved = problem_.saved + (part.first_row + k) * cell_.saved * units_;
        return load_some<V>(saved + cell_.operand_gate * units_ + unit, n) * h;
      });
    }
    if (!problem_.tokens.slot) {
      Matrix matrix = shared_.inputs;
      matrix.depth = rows;
      const auto share = worker_.share(matrix.count());
      for_packed_rows<V>(schedule_, part.first_row, part.last_row,
                         [&](Index row, Index t, Index i) {
                           a[row - part.first_row] = problem_.x.at(schedule_.at(t, i));
                         });
      pack_rows(matrix, share.begin, share.end,
                [&](Index k, Index unit, Index n) { return load_some<V>(a[k] + unit, n); });
    }
    if (projects()) {
      Matrix matrix = shared_.inner;
      matrix.depth = rows;
      const auto share = worker_.share(matrix.count());
      pack_rows(matrix, share.begin, share.end, problem_.inner + part.first_row * units_, units_);
    }
    const auto tiles = worker_.share(all_tiles());
    for_deltas(tiles.begin, tiles.end, [&](int d, Range of) {
      const TileCut cut = delta_tiles(d);
      for (Index t = of.first; t < of.first + of.count; ++t) {
        const Index first = cut.begin(t);
        Product::pack_across(delta + first_column(d) + first, delta_size_, rows,
                             cut.begin(t + 1) - first, packed_delta(d, first, rows));
      }
    });
  }

  // dx += deltas · W_ih for rows [begin, end) of the part.
  void add_input_gradient(const Chunk& part, const T* delta, Index begin, Index end) const {
    const Index first = part.first_row + begin;
    for_packed_rows<V>(schedule_, first, part.first_row + end, [&](Index p, Index t, Index i) {
      const Index row = p - part.first_row;
      own_.a[p - first] =
          Product::copy_row(delta + row * delta_size_, gates_ * units_,
                            shared_.delta_copies + row * copy_size<Product>(gates_ * units_));
      own_.c[p - first] = problem_.dx.at(schedule_.at(t, i));
    });
    multiply(input_panels_, typename Product::Tiles(input_panels_.width, part.rows(), tall_),
             own_.a, own_.c, 0, end - begin, true, own_.tile, worker_);
  }

  // Column sums of the deltas, for this thread's columns.
  void add_bias_gradients(Index rows, const T* delta) const {
    const Index lanes = (units_ + V::size - 1) / V::size;
    const auto share = worker_.share(deltas_ * lanes);
    for (Index j = share.begin; j < share.end; ++j) {
      const Index d = j / lanes, unit = j % lanes * V::size, n = units_ - unit;
      const T* from = delta + d * units_ + unit;
      add_column<V>(rows, n, shared_.bias_sums + d * units_ + unit,
                    [&](Index k) __attribute__((always_inline)) {
                      return load_some<V>(from + k * delta_size_, n);
                    });
    }
  }

  // dW += deltasᵀ · (x, operand or inner) for tiles [begin, end) of the deltas' rows.
  void add_weight_gradients(Index rows, Index begin, Index end) const {
    for_deltas(begin, end, [&](int d, Range part) {
      if (d == multiplied_) multiply_delta(rows, d, part, shared_.inner, sums_.dw_hr, units_);
      for (int g = 0; g < gates_; ++g) {
        if (!problem_.tokens.slot && g == d) {
          multiply_delta(rows, d, part, shared_.inputs, sums_.dw_ih + g * units_ * problem_.inputs,
                         problem_.inputs);
        }
        for (int p = 0; p < phases_ && cell_.recurrent_product; ++p) {
          const Range phase = cell_.phases[p];
          if (cell_.recurrent_delta(g) != d || g < phase.first || g >= phase.first + phase.count)
            continue;
          multiply_delta(rows, d, part, shared_.operands[p], sums_.dw_hh + g * units_ * outputs_,
                         outputs_);
        }
      }
    });
  }

  // Rows of units [first, ...) of delta d.
  Operand* packed_delta(int d, Index first, Index rows) const {
    return shared_.packed_delta + (d * units_ + first) * round_up(rows, Product::kDepthMultiple);
  }

  void multiply_delta(Index rows, int d, Range part, Matrix matrix, T* out, Index out_row) const {
    const TileCut cut = delta_tiles(d);
    matrix.depth = rows;
    const Index columns = matrix.row_size();
    const auto tiles = tiles_over_part(matrix, d);
    for (Index p = 0; p < matrix.count(); ++p) {
      const Index real = matrix.units - p * columns;
      Ahead ahead = matrix.ahead(p + 1, 1);
      for (Index t = part.first; t < part.first + part.count; ++t) {
        const Index first = cut.begin(t), height = cut.begin(t + 1) - first;
        const Operand* a[kMaxTileRows];
        T* c[kMaxTileRows];
        for (Index m = 0; m < height; ++m) {
          a[m] = packed_delta(d, first, rows) + m * Product::row_distance(rows);
          c[m] = out + (first + m) * out_row + p * columns;
        }
        // What the next tile will add to: its sums would wait for it.
        for (Index m = 0; m < height; ++m) prefetch(c[m] + height * out_row, columns);
        const bool direct = real >= columns;
        const typename Product::Tile tile{.a = a,
                                          .a_begin = 0,
                                          .a_step = Product::step_distance(height),
                                          .b = matrix.row(p, 0),
                                          .b_panel = 0,
                                          .depth = rows,
                                          .ahead = ahead.take(rows / Product::kDepthStep),
                                          .start = direct ? c[0] : own_.tile,
                                          .start_row = direct ? out_row : columns,
                                          .start_panel = 0,
                                          .add = true,
                                          .out = direct ? c[0] : own_.tile,
                                          .out_row = direct ? out_row : columns,
                                          .out_panel = 0};
        if (!direct) load_tile<V>(c, 0, height, real, columns, own_.tile);
        tiles.multiply(static_cast<int>(height), 1, tile);
        if (!direct) store_tile<V>(c, 0, height, real, columns, own_.tile);
      }
      worker_.progress(static_cast<double>(2 * part.count * delta_tile_rows() * columns * rows));
    }
  }

  void add_token_gradients(const Chunk& part, const T* delta) const {
    const auto share = worker_.share(gates_ * units_);
    for (Index k = 0; k < part.rows(); ++k) {
      const T* from = delta + k * delta_size_;
      T* to = shared_.token_gradient + problem_.tokens.slot[part.first_row + k] * gates_ * units_;
#pragma omp simd
      for (Index j = share.begin; j < share.end; ++j) to[j] += Product::rounded(from[j]);
    }
  }

  void scatter_token_gradients() const {
    const auto share = worker_.share(gates_ * units_);
    for (Index slot = 0; slot < problem_.tokens.count; ++slot) {
      T* from = shared_.token_gradient + slot * gates_ * units_;
      T* column = problem_.dw_ih + problem_.tokens.token[slot];
      for (Index j = share.begin; j < share.end; ++j) {
        column[j * problem_.inputs] += from[j];
        from[j] = T(0);
      }
    }
  }

  const CellFacts& cell_;
  const int phases_, gates_, deltas_, multiplied_;
  const BackwardProblem<T>& problem_;
  const Schedule& schedule_;
  const TallTiles* const tall_;
  const Index units_, outputs_;
  const Index delta_size_;  // of a row of deltas
  const Worker& worker_;
  const Matrix input_panels_;  // W_ih
  const Shared shared_;
  const Own own_;
  T* const delta_;
  const NormGradients<V> norm_;
  const Gradients sums_;  // what the products over a chunk are added to
};

}  // namespace rnnkern
