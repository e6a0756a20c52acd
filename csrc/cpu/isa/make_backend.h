// SPDX-License-Identifier: Apache-2.0
// Folds the list of cells over a pair of lanes into a backend's tables.
#pragma once

#include <type_traits>

#include "core/cells.h"
#include "cpu/dispatch.h"
#include "cpu/gemm/int8_product.h"
#include "cpu/gemm/matmul.h"
#include "cpu/recurrent/backward.h"
#include "cpu/recurrent/cell_io.h"
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

template <class V, template <class> class... Cells>
constexpr Equations<typename V::value> make_equations(CellList<Cells...>) {
  return {{equations<V, Cells<V>, OwnFunctions<V, Cells<V>>>()...},
          {equations<V, Cells<V>, GivenFunctions<V, Cells<V>>>()...}};
}
template <class V>
inline constexpr auto equations_of = make_equations<V>(AllCells());

template <class Product>
constexpr StepKernels<typename Product::Lane::value> step_kernels() {
  using S = Step<typename Product::Lane, Product>;
  StepKernels<typename Product::Lane::value> kernels{S::packed_bytes, S::pack, nullptr,
                                                     S::scratch_bytes, S::run};
  if constexpr (!Product::kScaled) kernels.pack_token = S::pack_token;
  return kernels;
}

// With the equations of lanes as wide as the product's.
template <class Product>
constexpr auto make_loops(const Equations<typename Product::Lane::value>* equations) {
  using F = Forward<typename Product::Lane, Product>;
  using B = Backward<typename Product::Lane, Product>;
  return Loops<typename Product::Lane::value>{{{F::packed_bytes, F::pack},
                                               {B::packed_bytes, B::pack},
                                               F::scratch_bytes,
                                               F::run,
                                               B::scratch_bytes,
                                               B::run},
                                              step_kernels<Product>(),
                                              equations};
}

// For inference alone: weights of one scale a row are no weights that one trains.
template <class Product>
constexpr auto make_forward_loops(const Equations<typename Product::Lane::value>* equations) {
  using F = Forward<typename Product::Lane, Product>;
  return Loops<typename Product::Lane::value>{
      {{F::packed_bytes, F::pack}, {}, F::scratch_bytes, F::run, nullptr, nullptr},
      step_kernels<Product>(),
      equations};
}

template <class V>
constexpr auto make_kernels() {
  using T = typename V::value;
  Kernels<T> kernels{make_loops<ExactProduct<V>>(&equations_of<V>),
                     {},
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
  if constexpr (std::is_same_v<T, float>) kernels.narrow_step = step_kernels<WidenedProduct<V>>();
  return kernels;
}

template <class V>
inline constexpr auto kernels_of = make_kernels<V>();
template <class V>
inline constexpr auto widened_loops_of = make_loops<WidenedProduct<V>>(&equations_of<V>);

template <class V, class Dot>
inline constexpr auto int8_loops_of = make_forward_loops<Int8Product<V, Dot>>(&equations_of<V>);

template <class Float, class Double>
constexpr Backend make_backend(const char* name) {
  return {.name = name,
          .for_float = &kernels_of<Float>,
          .for_double = &kernels_of<Double>,
          .for_bfloat16 = &widened_loops_of<Float>,
          .bfloat16_product = "bfloat16 operands widened to float32 lanes",
          .tall_tiles = nullptr,
          .for_int8 = nullptr,
          .int8_product = nullptr};
}

// With a product of its own for int8.
template <class Float, class Double, class Int8>
constexpr Backend make_backend(const char* name, const char* int8_product) {
  Backend backend = make_backend<Float, Double>(name);
  backend.for_int8 = &int8_loops_of<Float, Int8>;
  backend.int8_product = int8_product;
  return backend;
}

}  // namespace rnnkern
