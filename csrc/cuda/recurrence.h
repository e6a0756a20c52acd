// What the forward and the backward time loop share: a block's place in the launch, its weights in
// shared memory, the product of a phase, and the exchange with the other blocks of its group.
//
// The exchange has no barrier. In a phase a block stores its part of an operand into one half of that
// operand's buffer, then publishes in its flag how many phases it has done. Before it reads an operand,
// a block awaits the flags of all blocks of its group. The halves take turns step by step: when a block
// stores into one again, it has awaited flags that every block published after it last read that half.
#pragma once

#include "core/cell.h"
#include "cuda/problem.h"
#include "cuda/product.h"

namespace rnnkern::cuda {

// One unit of one row of the batch in one step.
struct Place {
  int n, m;      // row and unit within the tile
  int j, unit;   // row of the group, unit of the layer
  Index i, b;    // the row's place in the sorted order, the batch row
  Index packed;  // the packed row
};

template <class P, class Pass>
class Recurrence {
  using E = typename P::Element;

 public:
  using Problem = RecurrentProblem<Pass>;
  using Sum = typename E::Sum;
  using Storage = typename E::Storage;

  RNNKERN_KERNEL Recurrence(const Block& block, const Problem& problem)
      : block_(block),
        problem_(problem),
        plan_(problem.plan),
        pass_index_(static_cast<int>(block.index() / blocks_of_pass())),
        group_(static_cast<int>(block.index() % blocks_of_pass() / plan_.blocks)),
        member_(static_cast<int>(block.index() % plan_.blocks)) {
    for (int p = 0; p < plan_.phases; ++p) load_resident(p);
  }

  RNNKERN_KERNEL const Pass& pass() const { return problem_.pass[pass_index_]; }
  RNNKERN_KERNEL Index first_row() const { return problem_.first_row[pass_index_]; }

  // How many of the first `live` sorted rows are this group's: its row j is sorted row row(j).
  RNNKERN_KERNEL int share(Index live) const {
    return static_cast<int>((live - group_ + plan_.groups - 1) / plan_.groups);
  }
  RNNKERN_KERNEL Index row(int j) const { return Index{j} * plan_.groups + group_; }

  // This block's slices, counted from 0 by `local`.
  RNNKERN_KERNEL int slice(int local) const { return member_ + local * plan_.blocks; }
  RNNKERN_KERNEL int own_slices() const {
    return (plan_.slices - member_ + plan_.blocks - 1) / plan_.blocks;
  }

  // To be called behind a barrier: this block has done `count` phases.
  RNNKERN_KERNEL void publish_phase(std::uint32_t count) const {
    block_.each([&](int thread) {
      if (thread == 0) publish(flags() + member_, count);
    });
  }

  // Group row j of phase p's operand, in the half for `parity`.
  RNNKERN_KERNEL Storage* operand(int p, Index parity, int j) const {
    return reinterpret_cast<Storage*>(
        pass().exchange.operand[p] + (parity & 1) * plan_.exchange_bytes(p) +
        (Index{group_} * plan_.group_rows + j) * plan_.exchange_row(p));
  }

  // Phase p of a step for the group's first `rows` rows, whose packed rows begin at `offset`, after
  // `done` phases: before(place) for what is had without the other blocks, the product of the operand
  // in the half for `parity`, and after(place), which finds its sums by sum().
  template <class Before, class After>
  RNNKERN_KERNEL void run_phase(int p, int rows, Index offset, std::uint32_t done, Index parity,
                                Before before, After after) const {
    bool awaited = false;
    for (int local = 0; local < own_slices(); ++local) {
      for (int first = 0; first < rows; first += plan_.tile_rows) {
        const int count = rows - first < plan_.tile_rows ? rows - first : plan_.tile_rows;
        block_.each([&](int thread) { each_place(local, first, count, offset, thread, before); });
        if (!awaited) await_group(done);
        awaited = true;
        multiply_tile(*this, p, local, parity, first, count);
        block_.each([&](int thread) { each_place(local, first, count, offset, thread, after); });
      }
    }
    publish_phase(done + 1);
  }

  // Row m of the slice's weights times row n of the tile.
  RNNKERN_KERNEL Sum sum(int p, int n, int m) const {
    const PhasePlan& phase = plan_.phase[p];
    Sum total = *partial(phase, 0, n, m);
    for (int share = 1; share < phase.depth_shares; ++share) total += *partial(phase, share, n, m);
    return total;
  }

  // Shared memory for the index-th value that the equations at a place need besides the product.
  RNNKERN_KERNEL Sum* field(int index, const Place& at) const {
    return reinterpret_cast<Sum*>(block_.shared() + plan_.fields_at) +
           (index * plan_.tile_rows + at.n) * plan_.units + at.m;
  }

 private:
  // visit(place) for a thread's places of a tile: the same thread's in every step.
  template <class Visit>
  RNNKERN_KERNEL void each_place(int local, int first, int count, Index offset, int thread,
                                 Visit visit) const {
    for (int e = thread; e < count * plan_.units; e += kThreads) {
      const int n = e / plan_.units, m = e % plan_.units;
      const int unit = slice(local) * plan_.units + m;
      const Index i = row(first + n);
      if (unit < problem_.units)
        visit(Place{n, m, first + n, unit, i, problem_.schedule.order[i], offset + i});
    }
  }

  RNNKERN_KERNEL void await_group(std::uint32_t count) const {
    block_.each([&](int thread) {
      for (int i = thread; i < plan_.blocks; i += kThreads) await(flags() + i, count);
    });
  }

  // Which part of a product is a warp's.
  struct Share {
    int row, column, depth;
    bool works;
  };
  RNNKERN_KERNEL static Share share_of(const PhasePlan& phase, int warp, int count) {
    const int tile = warp / phase.depth_shares, column = tile / phase.row_tiles * P::columns;
    return {tile % phase.row_tiles * P::rows, column, warp % phase.depth_shares, column < count};
  }

  // The sums of phase p for the tile's rows [first, first + count) and a slice. No cell is in it, so
  // that all of them share its code.
  RNNKERN_KERNEL_CALLED static void multiply_tile(Recurrence loop, int p, int local, Index parity,
                                                  int first, int count) {
    loop.multiply(p, local, parity, first, count);
  }
  RNNKERN_KERNEL void multiply(int p, int local, Index parity, int first, int count) const {
    const PhasePlan& phase = plan_.phase[p];
    Warps<Lanes<typename P::Sums>> sums{};
    for (int chunk = 0; chunk < phase.chunks; ++chunk) {
      const int tile = local * phase.chunks + chunk;
      const int begin = chunk * phase.chunk_bytes, left = phase.depth_bytes - begin;
      const int bytes = left < phase.chunk_bytes ? left : phase.chunk_bytes;
      const bool resident = tile < phase.resident;
      block_.each([&](int thread) {
        if (!resident) copy_weights(p, tile, plan_.staged_at, thread);
        const int vectors = bytes / kVectorBytes;
        for (int i = thread; i < count * vectors; i += kThreads) {
          const int n = i / vectors, v = i % vectors;
          block_.copy(
              vector(plan_.operand_at + n * stride(phase)) + v,
              reinterpret_cast<const Vector*>(
                  reinterpret_cast<const std::byte*>(operand(p, parity, first + n)) + begin) +
                  v);
        }
        block_.copies_done();
      });
      block_.each_warp([&](int warp) {
        const Share share = share_of(phase, warp, count);
        if (!share.works) return;
        const int steps = bytes / kStepBytes;
        const int weights_at =
            resident ? phase.resident_at + tile * phase.rows * stride(phase) : plan_.staged_at;
        P::multiply(
            sums[warp],
            rows_at(weights_at + share.row * stride(phase), phase, phase.rows - share.row),
            rows_at(plan_.operand_at + share.column * stride(phase), phase, count - share.column),
            steps * share.depth / phase.depth_shares,
            steps * (share.depth + 1) / phase.depth_shares);
      });
    }
    block_.each_warp([&](int warp) {
      const Share share = share_of(phase, warp, count);
      if (!share.works) return;
      P::finish(sums[warp]);
      each_lane([&](int lane) {
        P::visit(sums[warp][lane], lane, [&](int m, int n, Sum sum) {
          m += share.row, n += share.column;
          if (m < phase.rows && n < count) *partial(phase, share.depth, n, m) = sum;
        });
      });
    });
  }

  RNNKERN_KERNEL Index blocks_of_pass() const { return Index{plan_.groups} * plan_.blocks; }
  RNNKERN_KERNEL std::uint32_t* flags() const {
    return pass().exchange.flags + group_ * plan_.blocks;
  }
  RNNKERN_KERNEL static int stride(const PhasePlan& phase) {
    return phase.chunk_bytes + kRowPadding;
  }
  RNNKERN_KERNEL Vector* vector(int at) const {
    return reinterpret_cast<Vector*>(block_.shared() + at);
  }
  RNNKERN_KERNEL Rows rows_at(int at, const PhasePlan& phase, int count) const {
    return {block_.shared() + at, stride(phase), count};
  }
  RNNKERN_KERNEL Sum* partial(const PhasePlan& phase, int share, int n, int m) const {
    return reinterpret_cast<Sum*>(block_.shared() + plan_.partial_at) +
           (share * plan_.tile_rows + n) * phase.rows + m;
  }

  RNNKERN_KERNEL void copy_weights(int p, int tile, int at, int thread) const {
    const PhasePlan& phase = plan_.phase[p];
    const int chunk = tile % phase.chunks, vectors = phase.chunk_bytes / kVectorBytes;
    const Index index = Index{slice(tile / phase.chunks)} * phase.chunks + chunk;
    const auto* from =
        reinterpret_cast<const Vector*>(pass().exchange.weights[p] + index * plan_.tile_bytes(p));
    for (int i = thread; i < phase.rows * vectors; i += kThreads)
      block_.copy(vector(at + i / vectors * stride(phase)) + i % vectors, from + i);
  }

  RNNKERN_KERNEL void load_resident(int p) const {
    const PhasePlan& phase = plan_.phase[p];
    const int own = own_slices() * phase.chunks;
    block_.each([&](int thread) {
      for (int tile = 0; tile < phase.resident && tile < own; ++tile)
        copy_weights(p, tile, phase.resident_at + tile * phase.rows * stride(phase), thread);
      block_.copies_done();
    });
  }

  const Block& block_;
  const Problem& problem_;
  const RecurrentPlan& plan_;
  const int pass_index_, group_, member_;
};

}  // namespace rnnkern::cuda
