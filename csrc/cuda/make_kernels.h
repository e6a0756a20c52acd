// SPDX-License-Identifier: Apache-2.0
// Folds the list of cells over an element type into its table of kernels.
#pragma once

#include "core/cells.h"
#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/launch.h"
#include "cuda/prepare.h"

namespace rnnkern::cuda {

// The launch of a kernel of a cell; null where there is no recurrent product, which the kernels are about,
// and for the own functions of a cell whose units have weights of their own: such a cell is run as one that was
// given its functions, so that there is one kernel less to compile.
template <class Cell, class Kernel, bool Given>
constexpr auto launch_of() {
  if constexpr (!Cell::recurrent_product || (Cell::unit_weights > 0 && !Given)) {
    return nullptr;
  } else {
    return launch<Kernel>;
  }
}

template <class P, template <class, class> class Functions, bool Given,
          template <class> class... Cells>
TimeLoops<typename P::Element::Sum> make_loops(CellList<Cells...>) {
  using V = Scalar<typename P::Element::Sum>;
  return {{launch_of<Cells<V>, ForwardKernel<Cells<V>, P, Functions>, Given>()...},
          {launch_of<Cells<V>, BackwardKernel<Cells<V>, P, Functions>, Given>()...}};
}

// Of cells whose equations have functions of their own, and of those that may be given others.
template <class P, class Own, class Given>
RecurrentKernels<typename P::Element::Sum> make_recurrent(bool vector, Own own, Given given) {
  using E = typename P::Element;
  return {{P::rows, P::columns, P::columns_at_once, sizeof(typename E::Storage),
           sizeof(typename E::Sum), vector},
          make_loops<P, OwnFunctions, false>(own),
          make_loops<P, GivenFunctions, true>(given)};
}

template <class P>
void run_matmul(void* stream, const MatmulArguments<typename P::Element::Sum>& args) {
  using K = MatmulKernel<P>;
  const Index tiles = ((args.rows + Index{K::rows} - 1) / K::rows) *
                      ((args.columns + Index{K::columns} - 1) / K::columns);
  launch<K>({.stream = stream, .blocks = tiles, .shared_bytes = K::shared_bytes}, args);
}

template <class E>
void run_pack(void* stream, const PackArguments<typename E::Sum>& args) {
  const Index bytes = args.plan.tiles(args.product) * args.plan.tile_bytes(args.product);
  launch<PackKernel<E>>(element_grid(stream, bytes / Index{sizeof(typename E::Storage)}), args);
}

// Register tiles: as many sums as leave room for their operands. Given functions do without kernels for few
// rows where these would be others than those for many: a quarter of what there is to compile.
template <class E>
ComputeKernels<typename E::Sum> make_kernels() {
  if constexpr (E::tensor) {
    return {make_recurrent<TensorProduct<E, 1, 4>>(false, AllCells(), AllCells()),
            make_recurrent<ScalarProduct<E, 4>>(true, AllCells(), CellList<>()), run_pack<E>,
            run_matmul<TensorProduct<E, 2, 4>>};
  } else {
    constexpr int columns = 32 / sizeof(typename E::Storage);
    using P = ScalarProduct<E, columns>;
    return {make_recurrent<P>(false, AllCells(), AllCells()),
            make_recurrent<P>(true, AllCells(), AllCells()), run_pack<E>,
            run_matmul<ScalarProduct<E, 2 * columns>>};
  }
}

}  // namespace rnnkern::cuda
