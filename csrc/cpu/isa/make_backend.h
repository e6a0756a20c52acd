// SPDX-License-Identifier: Apache-2.0
// Folds the list of cells over a pair of lanes into a backend's tables.
#pragma once

#include <type_traits>

#include "core/cells.h"
#include "cpu/dispatch.h"
#include "cpu/gemm/matmul.h"
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/forward.h"
#include "cpu/recurrent/step.h"
#include "cpu/training.h"

namespace rnnkern {

template <class V>
void tanh_array(const typename V::value* in, typename V::value* out, Index n) {
  for (Index i = 0; i < n; i += V::size)
    store_some(out + i, tanh(load_some<V>(in + i, n - i)), n - i);
}

template <class V>
void sigmoid_array(const typename V::value* in, typename V::value* out, Index n) {
  for (Index i = 0; i < n; i += V::size)
    store_some(out + i, sigmoid(load_some<V>(in + i, n - i)), n - i);
}

template <class V>
void exp_negative_array(const typename V::value* in, typename V::value* out, Index n) {
  for (Index i = 0; i < n; i += V::size)
    store_some(out + i, exp_negative(load_some<V>(in + i, n - i)), n - i);
}

template <class V, class Cell, class Product>
constexpr StepKernels<typename V::value> step_kernels() {
  using S = Step<V, Cell, Product>;
  return {S::packed_bytes, S::pack, S::pack_token, S::scratch_bytes, S::run};
}

template <class V, class Cell>
constexpr StepKernels<typename V::value> narrow_step_kernels() {
  if constexpr (std::is_same_v<typename V::value, float>) {
    return step_kernels<V, Cell, WidenedProduct<V>>();
  } else {
    return {};
  }
}

template <class V, class Cell, class Product>
constexpr PassKernels<typename V::value> pass_kernels() {
  using F = Forward<V, Cell, Product>;
  using B = Backward<V, Cell, Product>;
  return {{F::packed_bytes, F::pack}, {B::packed_bytes, B::pack},
          F::scratch_bytes,           F::run,
          B::scratch_bytes,           B::run};
}

template <class Product, template <class> class... Cells>
constexpr Passes<typename Product::Lane::value> make_passes(CellList<Cells...>) {
  using V = typename Product::Lane;
  return {{pass_kernels<V, Cells<V>, Product>()...}, {step_kernels<V, Cells<V>, Product>()...}};
}

template <class V, template <class> class... Cells>
constexpr Kernels<typename V::value> make_kernels(CellList<Cells...>) {
  return {{CellKernels<typename V::value>{pass_kernels<V, Cells<V>, ExactProduct<V>>(),
                                          step_kernels<V, Cells<V>, ExactProduct<V>>(),
                                          narrow_step_kernels<V, Cells<V>>()}...},
          Matmul<V>::packed_bytes,
          Matmul<V>::pack,
          Matmul<V>::scratch_bytes,
          Matmul<V>::run,
          tanh_array<V>,
          sigmoid_array<V>,
          exp_negative_array<V>,
          adam<V>,
          sum_of_squares<V>,
          softmax_cross_entropy<V>};
}

template <class V>
inline constexpr auto kernels_of = make_kernels<V>(AllCells());
template <class Product>
inline constexpr auto passes_of = make_passes<Product>(AllCells());

template <class Float, class Double>
constexpr Backend make_backend(const char* name) {
  return {.name = name,
          .for_float = &kernels_of<Float>,
          .for_double = &kernels_of<Double>,
          .for_bfloat16 = &passes_of<WidenedProduct<Float>>,
          .bfloat16_product = "bfloat16 operands widened to float32 lanes",
          .tall_tiles = nullptr};
}

}  // namespace rnnkern
