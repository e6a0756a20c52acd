// SPDX-License-Identifier: Apache-2.0
// What the forward and the backward time loop share: a block's place in the launch, its weights in
// shared memory, the product of a phase, and the exchange with the other blocks of its group.
//
// The exchange has no barrier. In a phase a block stores its part of an operand into one half of
// that operand's buffer, then publishes in its flag how many phases it has done. Before it reads an
// operand, a block awaits the flags of all blocks of its group. The halves take turns step by step:
// when a block stores into one again, it has awaited flags that every block published after it last
// read that half.
//
// In a wavefront a block also awaits the flags of its group in the layer before, which waits for no
// later one. What that layer hands on is never overwritten in the launch, so it may run ahead.
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

template <class P, class Strand>
class Recurrence {
  using E = typename P::Element;

 public:
  using Problem = RecurrentProblem<Strand>;
  using Sum = typename E::Sum;
  using Storage = typename E::Storage;

  RNNKERN_KERNEL Recurrence(Block block, const Problem& problem)
      : block_(block),
        problem_(problem),
        plan_(problem.plan),
        strand_index_(static_cast<int>(block.index() / blocks_of_strand())),
        group_(static_cast<int>(block.index() % blocks_of_strand() / plan_.blocks)),
        member_(static_cast<int>(block.index() % plan_.blocks)),
        own_slices_((plan_.slices - member_ + plan_.blocks - 1) / plan_.blocks),
        factored_(strand().h_factors != nullptr),
        zoned_(strand().zone_h.on() || strand().zone_c.on()),
        flag_(flags(strand()) + member_) {
    const int rows = least(share(problem.schedule.batch), plan_.order_rows);
    block_.each([&](int thread) {
      for (int j = thread; j < rows; j += kThreads) order()[j] = problem.schedule.order[row(j)];
    });
    for (int p = 0; p < plan_.phases; ++p) {
      load_resident(p);
      if (fed()) load_resident(kBetween + p);
    }
  }

  RNNKERN_KERNEL const Strand& strand() const { return problem_.strand[strand_index_]; }
  RNNKERN_KERNEL Index first_row() const { return problem_.first_row[strand_index_]; }

  // Whether the layer before in the wavefront hands something on to this one.
  RNNKERN_KERNEL bool fed() const { return problem_.stacked && strand_index_ > 0; }

  // How many of the first `live` sorted rows are this group's: its row j is sorted row row(j).
  RNNKERN_KERNEL int share(Index live) const {
    return static_cast<int>((live - group_ + plan_.groups - 1) / plan_.groups);
  }
  RNNKERN_KERNEL Index row(int j) const { return Index{j} * plan_.groups + group_; }

  // This block's slices, counted from 0 by `local`.
  RNNKERN_KERNEL int slice(int local) const { return member_ + local * plan_.blocks; }
  RNNKERN_KERNEL int own_slices() const { return own_slices_; }

  // To be called behind a barrier: this block has done `count` phases. Then rest(thread), for which
  // no other block waits.
  template <class Rest>
  RNNKERN_KERNEL void publish_phase(std::uint32_t count, Rest rest) const {
    block_.each_alone([&](int thread) {
      if (thread == kHerald) publish(flag_, count);
      rest(thread);
    });
  }

  // Group row j of phase p's operand, in the half for `parity`.
  RNNKERN_KERNEL Storage* operand(int p, Index parity, int j) const {
    return reinterpret_cast<Storage*>(
        strand().exchange.operand[p] + (parity & 1) * plan_.exchange_bytes(p) +
        (Index{group_} * plan_.group_rows + j) * plan_.product[p].depth_bytes);
  }

  // Whether the next layer takes up what this one hands on, and a packed row of it.
  RNNKERN_KERNEL bool hands_on() const { return strand().exchange.handed != nullptr; }
  RNNKERN_KERNEL Storage* handed(Index packed) const {
    return reinterpret_cast<Storage*>(handed_row(strand(), packed));
  }

  // Whether what recurrent products take of h counts so many times, and the factor of a row and unit.
  RNNKERN_KERNEL bool factored() const { return factored_; }
  RNNKERN_KERNEL const Sum* h_factor(Index b, int unit) const {
    return strand().h_factors + b * problem_.units + unit;
  }
  // The value times the factor that stands in a field, where there are any.
  RNNKERN_KERNEL Sum times_factor(Sum value, int index, const Place& at) const {
    return factored_ ? value * *field(index, at) : value;
  }

  // Whether units of h or c may keep their value of the step before.
  RNNKERN_KERNEL bool zoned() const { return zoned_; }
  // To a field, whether a unit does at step t, where that is drawn.
  RNNKERN_KERNEL void read_zone(const Zoneout<Sum>& zone, Index t, int index,
                                const Place& at) const {
    if (zone.drawn.data) *field(index, at) = Sum(zone.drawn.at(t, at.b)[at.unit]);
  }

  // A phase of a step.
  struct PhaseOfStep {
    int phase;
    int rows;             // of the group, from its first, that take part
    int fed_rows;         // of them those to which the layer before hands something on
    Index offset;         // packed row of the step's first row
    std::uint32_t done;   // phases that the group's blocks have done before
    std::uint32_t ahead;  // those that the layer before has done when it has handed on this step
    Index parity;         // of the operand's half
  };

  // before(place) for what is had without other blocks; where the strand is fed, the product of what
  // was handed on, and receive(place); the product of the phase's operand, and after(place), which
  // leaves for other blocks what they wait for, and in the fields what store(place) then takes to
  // where it is kept. receive and after find their sums by sums().
  template <class Before, class Receive, class After, class Store>
  RNNKERN_KERNEL void run_phase(const PhaseOfStep& at, Before before, Receive receive, After after,
                                Store store) const {
    bool received = at.phase > 0, awaited = false;  // phase 0 has waited for the layer before
    // What is stored once the flag is up: of the last tile, for the others' fields are taken again.
    int stored_slice = 0, stored_first = 0, stored_count = 0;
    for (int local = 0; local < own_slices(); ++local) {
      for (int first = 0; first < at.rows; first += plan_.tile_rows) {
        const int count = least(at.rows - first, plan_.tile_rows);
        block_.each_alone([&](int thread) {
          each_place(stored_slice, stored_first, stored_count, at.offset, thread, store);
        });
        block_.each_alone(
            [&](int thread) { each_place(local, first, count, at.offset, thread, before); });
        // Before the wait for the own group, for the layer before is often ahead.
        const int fed_count = least(at.fed_rows - first, count);
        if (fed() && fed_count > 0) {
          const int between = kBetween + at.phase;
          const Strand& source = problem_.strand[strand_index_ - 1];
          if (!received) await_group(source, at.ahead);
          received = true;
          const Index row_bytes = plan_.product[between].depth_bytes;
          multiply_tile(block_, tile_of(between, local, handed_row(source, at.offset + row(first)),
                                        plan_.groups * row_bytes, fed_count));
          block_.each(
              [&](int thread) { each_place(local, first, fed_count, at.offset, thread, receive); });
        }
        if (!awaited) await_group(strand(), at.done);
        awaited = true;
        multiply_tile(
            block_, tile_of(at.phase, local,
                            reinterpret_cast<const std::byte*>(operand(at.phase, at.parity, first)),
                            plan_.product[at.phase].depth_bytes, count));
        block_.each([&](int thread) { each_place(local, first, count, at.offset, thread, after); });
        stored_slice = local, stored_first = first, stored_count = count;
      }
    }
    publish_phase(at.done + 1, [&](int thread) {
      each_place(stored_slice, stored_first, stored_count, at.offset, thread, store);
    });
  }

  // For the unit and row of a place, the rows of the slice's weights, one a gate, times the row of
  // the tile.
  template <int Gates>
  RNNKERN_KERNEL void sums(int p, const Place& at, Sum (&total)[Gates]) const {
    const ProductPlan& product = plan_.product[p];
    const Sum* from = partial(block_, plan_.partial_at, product.partial_row, at.n, at.m);
#pragma unroll
    for (int g = 0; g < Gates; ++g) total[g] = from[g * plan_.units];
#pragma unroll 1
    for (int share = 1; share < product.depth_shares; ++share) {
      from += plan_.partial_rows * product.partial_row;
#pragma unroll
      for (int g = 0; g < Gates; ++g) total[g] += from[g * plan_.units];
    }
  }

  // Shared memory for the index-th value that the equations at a place need besides the product.
  RNNKERN_KERNEL Sum* field(int index, const Place& at) const {
    return reinterpret_cast<Sum*>(block_.shared() + plan_.fields_at) +
           (index * plan_.tile_rows + at.n) * plan_.units + at.m;
  }

 private:
  // Who publishes: of the last warp. Those before it await flags, from the last down, which so does
  // not wait for the fence; and where places are few, the first warps have them, and meanwhile store
  // what they found and fetch what they need next.
  static constexpr int kHerald = kThreads - kLanes;

  // visit(place) for a thread's places of a tile: the same thread's in every step.
  template <class Visit>
  RNNKERN_KERNEL void each_place(int local, int first, int count, Index offset, int thread,
                                 Visit visit) const {
    for (int e = thread; e < count * plan_.units; e += kThreads) {
      const int n = e / plan_.by_units, m = e - n * plan_.units;
      const int unit = slice(local) * plan_.units + m;
      const Index i = row(first + n);
      if (unit < problem_.units)
        visit(Place{n, m, first + n, unit, i, batch_row(first + n), offset + i});
    }
  }

  RNNKERN_KERNEL static int least(int a, int b) { return a < b ? a : b; }

  // All blocks of this group in a strand have done `count` phases.
  RNNKERN_KERNEL void await_group(const Strand& strand, std::uint32_t count) const {
    block_.each([&](int thread) {
      if (thread >= kHerald) return;
      for (int i = kHerald - 1 - thread; i < plan_.blocks; i += kHerald)
        await(flags(strand) + i, count);
    });
  }

  // Which part of a product is a warp's.
  struct Share {
    int row, column, depth;
    bool works;
  };
  RNNKERN_KERNEL static Share share_of(const ProductPlan& product, int warp, int count) {
    const int tile = warp / product.by_depth_shares, over = tile / product.by_row_tiles;
    const int column = over * P::columns;
    return {(tile - over * product.row_tiles) * P::rows, column, warp - tile * product.depth_shares,
            column < count};
  }

  // What the product of a slice and of `count` rows of its operand, row_bytes apart, is made of. By
  // value: behind a pointer the called function could not tell the kernel's parameters from any
  // other memory, and would load them anew behind each copy and each flag.
  struct Tile {
    ProductPlan product;
    int staged_at, operand_at, partial_at, partial_rows;
    int resident;  // of the slice's weight tiles, the first so many
    int resident_at, count;
    Index row_bytes;
    const std::byte *rows, *weights;
  };
  RNNKERN_KERNEL Tile tile_of(int p, int local, const std::byte* rows, Index row_bytes,
                              int count) const {
    const ProductPlan& product = plan_.product[p];
    const int first = local * product.parts;
    return {
        product,
        plan_.staged_at,
        plan_.operand_at,
        plan_.partial_at,
        plan_.partial_rows,
        product.resident - first,
        product.resident_at + first * product.rows * stride(product),
        count,
        row_bytes,
        rows,
        strand().exchange.weights[p] + Index{slice(local)} * product.parts * plan_.tile_bytes(p)};
  }

  // No cell is in it, so that all of them share its code.
  RNNKERN_KERNEL_CALLED static void multiply_tile(Block block, Tile tile) {
    const ProductPlan& product = tile.product;
    const int tile_bytes = product.rows * product.part_bytes;
    const auto rows_at = [&](int at, int count) {
      return Rows{block.shared() + at, stride(product), count};
    };
    Warps<Lanes<typename P::Sums>> sums{};
    for (int part = 0; part < product.parts; ++part) {
      const int begin = part * product.part_bytes, left = product.depth_bytes - begin;
      const int bytes = left < product.part_bytes ? left : product.part_bytes;
      const bool resident = part < tile.resident;
      block.each([&](int thread) {
        if (!resident) {
          copy_weights(block, product, tile.weights + Index{part} * tile_bytes, tile.staged_at,
                       thread);
        }
        for (int n = thread / kLanes; n < tile.count; n += kWarps) {
          copy_row(block, vector(block, tile.operand_at + n * stride(product)),
                   tile.rows + n * tile.row_bytes + begin, bytes, thread);
        }
        block.copies_done();
      });
      block.each_warp([&](int warp) {
        const Share share = share_of(product, warp, tile.count);
        if (!share.works) return;
        const int steps = bytes / kStepBytes;
        const int weights_at =
            resident ? tile.resident_at + part * product.rows * stride(product) : tile.staged_at;
        P::multiply(
            sums[warp], rows_at(weights_at + share.row * stride(product), product.rows - share.row),
            rows_at(tile.operand_at + share.column * stride(product), tile.count - share.column),
            steps * share.depth / product.by_depth_shares,
            steps * (share.depth + 1) / product.by_depth_shares);
        if (part + 1 < product.parts) return;
        P::finish(sums[warp]);
        Sum* const to = partial(block, tile.partial_at, product.partial_row,
                                share.depth * tile.partial_rows + share.column, share.row);
        each_lane([&](int lane) {
          P::visit(sums[warp][lane], lane, tile.count - share.column, [&](int m, int n, Sum sum) {
            if (share.row + m < product.rows) to[n * product.partial_row + m] = sum;
          });
        });
      });
    }
  }

  RNNKERN_KERNEL Index blocks_of_strand() const { return Index{plan_.groups} * plan_.blocks; }
  RNNKERN_KERNEL std::uint32_t* flags(const Strand& strand) const {
    return strand.exchange.flags + group_ * plan_.blocks;
  }
  // All strands of a wavefront have one direction, and begin with the same packed row.
  RNNKERN_KERNEL std::byte* handed_row(const Strand& strand, Index packed) const {
    return strand.exchange.handed + (packed - first_row()) * plan_.product[kBetween].depth_bytes;
  }
  RNNKERN_KERNEL static int stride(const ProductPlan& product) {
    return product.part_bytes + kRowPadding;
  }
  RNNKERN_KERNEL static Vector* vector(Block block, int at) {
    return reinterpret_cast<Vector*>(block.shared() + at);
  }
  RNNKERN_KERNEL static Sum* partial(Block block, int partial_at, int row, int n, int m) {
    return reinterpret_cast<Sum*>(block.shared() + partial_at) + n * row + m;
  }
  RNNKERN_KERNEL int batch_row(int j) const {
    return j < plan_.order_rows ? order()[j] : problem_.schedule.order[row(j)];
  }
  // The first of the group's batch rows, in its order.
  RNNKERN_KERNEL std::int32_t* order() const {
    return reinterpret_cast<std::int32_t*>(block_.shared() + plan_.order_at);
  }

  // A warp's threads copy a row.
  RNNKERN_KERNEL static void copy_row(Block block, Vector* to, const std::byte* from, int bytes,
                                      int thread) {
    for (int v = thread % kLanes; v < bytes / kVectorBytes; v += kLanes)
      block.copy(to + v, reinterpret_cast<const Vector*>(from) + v);
  }

  RNNKERN_KERNEL static void copy_weights(Block block, const ProductPlan& product,
                                          const std::byte* from, int at, int thread) {
    for (int m = thread / kLanes; m < product.rows; m += kWarps) {
      copy_row(block, vector(block, at + m * stride(product)), from + Index{m} * product.part_bytes,
               product.part_bytes, thread);
    }
  }

  RNNKERN_KERNEL void load_resident(int p) const {
    const ProductPlan& product = plan_.product[p];
    const int own = own_slices() * product.parts;
    block_.each([&](int thread) {
      for (int tile = 0; tile < product.resident && tile < own; ++tile) {
        const Index index =
            Index{slice(tile / product.parts)} * product.parts + tile % product.parts;
        copy_weights(block_, product, strand().exchange.weights[p] + index * plan_.tile_bytes(p),
                     product.resident_at + tile * product.rows * stride(product), thread);
      }
      block_.copies_done();
    });
  }

  const Block block_;
  const Problem& problem_;
  const RecurrentPlan& plan_;
  const int strand_index_, group_, member_, own_slices_;
  const bool factored_, zoned_;
  std::uint32_t* const flag_;
};

}  // namespace rnnkern::cuda
