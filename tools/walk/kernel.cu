// SPDX-License-Identifier: Apache-2.0
// The kernels of one cell's time loop, on the product that is made for many rows of the batch or for few.
#include "cuda/make_kernels.h"

namespace rnnkern::cuda {

template <int Index, class List>
struct CellAt;
template <int Index, template <class> class First, template <class> class... Others>
struct CellAt<Index, CellList<First, Others...>> : CellAt<Index - 1, CellList<Others...>> {};
template <template <class> class First, template <class> class... Others>
struct CellAt<0, CellList<First, Others...>> {
  using Cell = First<Scalar<float>>;
};

using Cell = CellAt<RNNKERN_CELL, AllCells>::Cell;
#ifdef RNNKERN_FEW_ROWS
using Product = ScalarProduct<Float16, 4>;
#else
using Product = TensorProduct<Float16, 1, 4>;
#endif
template __global__ void entry<RNNKERN_WAY<Cell, Product, OwnFunctions>>(
    const __grid_constant__ RNNKERN_WAY<Cell, Product, OwnFunctions>::Arguments);

}  // namespace rnnkern::cuda
