// Folds the list of cells over a pair of lanes into a backend's tables.
#pragma once

#include "core/backend.h"
#include "core/cells.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/matmul.h"
#include "cpu/step.h"

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

template <class V, template <class> class... Cells>
constexpr Kernels<typename V::value> make_kernels(CellList<Cells...>) {
  return {{CellKernels<typename V::value>{
              Forward<V, Cells<V>>::packed_bytes, Forward<V, Cells<V>>::pack,
              Forward<V, Cells<V>>::scratch_bytes, Forward<V, Cells<V>>::run,
              Backward<V, Cells<V>>::scratch_bytes, Backward<V, Cells<V>>::run,
              Step<V, Cells<V>>::packed_bytes, Step<V, Cells<V>>::pack,
              Step<V, Cells<V>>::scratch_bytes, Step<V, Cells<V>>::run}...},
          Matmul<V>::scratch_bytes,
          Matmul<V>::run,
          tanh_array<V>,
          sigmoid_array<V>};
}

template <class Float, class Double>
constexpr Backend make_backend(const char* name) {
  return {name, make_kernels<Float>(AllCells()), make_kernels<Double>(AllCells())};
}

}  // namespace rnnkern
