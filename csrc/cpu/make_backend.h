// Folds the list of cells over a pair of lanes into a backend's tables.
#pragma once

#include "core/backend.h"
#include "core/cells.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/matmul.h"
#include "cpu/step.h"
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

template <class V, class Cell, class B>
constexpr StepKernels<typename V::value> step_kernels() {
  using S = Step<V, Cell, B>;
  return {S::packed_bytes, S::pack, S::scratch_bytes, S::run};
}

template <class V, class Cell>
constexpr StepKernels<typename V::value> narrow_step_kernels() {
  if constexpr (std::is_same_v<typename V::value, float>) {
    return step_kernels<V, Cell, Bfloat16>();
  } else {
    return {};
  }
}

template <class V, template <class> class... Cells>
constexpr Kernels<typename V::value> make_kernels(CellList<Cells...>) {
  return {
      {CellKernels<typename V::value>{
          Forward<V, Cells<V>>::packed_bytes, Forward<V, Cells<V>>::pack,
          Forward<V, Cells<V>>::scratch_bytes, Forward<V, Cells<V>>::run,
          Backward<V, Cells<V>>::scratch_bytes, Backward<V, Cells<V>>::run,
          step_kernels<V, Cells<V>, typename V::value>(), narrow_step_kernels<V, Cells<V>>()}...},
      Matmul<V>::scratch_bytes,
      Matmul<V>::run,
      tanh_array<V>,
      sigmoid_array<V>,
      exp_negative_array<V>,
      adam<V>,
      sum_of_squares<V>,
      softmax_cross_entropy<V>};
}

template <class Float, class Double>
constexpr Backend make_backend(const char* name) {
  return {name, make_kernels<Float>(AllCells()), make_kernels<Double>(AllCells())};
}

}  // namespace rnnkern
