// SPDX-License-Identifier: Apache-2.0
// Runs a layer, or several as a wavefront, on the device: plan, workspace, and the launches in
// their order. Nothing here waits for the device or allocates on it, so that calls may be captured
// in a graph.
#pragma once

#include <numeric>
#include <optional>
#include <vector>

#include "core/functions.h"
#include "core/problem.h"
#include "cuda/plan.h"

namespace rnnkern::cuda {

enum class Compute { exact, tfloat32, bfloat16, float16 };

// What a plan and a workspace depend on; sizes and their products fit 31 bits. Stacked, the strands
// are layers in one direction from the first up, and inputs and tokens are the first one's; or they
// are the directions of one layer.
struct Shape {
  int cell;
  Index inputs, units, steps, batch;
  int strands;
  bool stacked;
  bool tokens;
  Compute compute;
  bool drops;                                 // strands may have h_factors or zoneout
  std::optional<std::vector<Index>> lengths;  // one a batch row, on the host
  bool given_functions = false;               // and not those of the cell

  // The live steps of all rows.
  Index live_rows() const {
    return lengths ? std::accumulate(lengths->begin(), lengths->end(), Index{0}) : steps * batch;
  }
};

// One direction of a layer; every pointer is the device's. Shapes as in core/problem.h. Of stacked
// layers only the first has dx and, forward, x, and only the last dy. The others may have a mask,
// (T, B, H): then the next layer's x is y · mask.
template <class T>
struct ForwardLayer {
  bool reverse;
  Parameters<T> parameters;
  Sequence<const T> x;
  Sequence<const std::int64_t> tokens;
  T* h;
  T* c;
  Sequence<T> y;
  T* saved;
  T* cells;
  Sequence<const T> mask;
  const T* h_factors;  // (B, H): of what recurrent products take of h; null for none
  Zoneout<T> zone_h, zone_c;
  T* fresh_c;  // (N, H): every c_t before its zoneout; or null
  CellOptions<T> options;
};

template <class T>
struct BackwardLayer {
  bool reverse;
  Parameters<T> parameters;  // without the biases
  Sequence<const T> x;
  Sequence<const std::int64_t> tokens;
  const T* h_0;
  const T* c_0;
  Sequence<const T> y;
  const T* saved;
  const T* cells;
  Sequence<const T> dy;
  Sequence<const T> mask;
  const T* h_factors;
  Zoneout<T> zone_h, zone_c;  // what was drawn
  const T* fresh_c;           // null without a zoneout of c
  T* dh;
  T* dc;
  Sequence<T> dx;
  T* dw_ih;
  T* dw_hh;
  T* dbias;
  T* dbias_hn;
  T* dunit_weights;
  CellOptions<T> options;
};

template <class T>
ChosenPlan plan_of(const Shape& shape, bool backward);

// To measure with: the groups of the batch that every later plan must have; 0 as plans choose them.
void force_groups(int groups);

template <class T>
Index forward_workspace(const Shape& shape);
template <class T>
Index backward_workspace(const Shape& shape);

// How to divide `layers` stacked ones of that shape, whose `strands` do not count, among launches.
template <class T>
LayerSplit layer_split(const Shape& shape, int layers, bool backward);

// `workspace` has as many bytes as the functions above say, aligned to 64.
template <class T>
void forward(const Shape& shape, const std::vector<ForwardLayer<T>>& layers, std::byte* workspace,
             void* stream);
template <class T>
void backward(const Shape& shape, const std::vector<BackwardLayer<T>>& layers, std::byte* workspace,
              void* stream);

template <class T>
void matmul(const MatmulProblem<T>& problem, Compute compute, void* stream);

}  // namespace rnnkern::cuda
