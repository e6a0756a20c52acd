// SPDX-License-Identifier: Apache-2.0
// What the host hands to the kernel of a time loop, printed: the engine itself, with kernels that write down
// their arguments and device memory that is addresses alone.
//   arguments CELL UNITS BATCH STEPS INPUTS forward|backward
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/call.h"
#include "cuda/make_kernels.h"

namespace rnnkern::cuda {
namespace {

int walked_cell;
bool few_rows;

template <class Problem>
void print(const Grid& grid, const Problem& problem) {
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  std::printf("{\"cell\": %d, \"few_rows\": %d, \"blocks\": %td, \"phases\": %d, ", walked_cell,
              few_rows, grid.blocks, problem.plan.phases);
  const auto& s = problem.schedule;
  std::printf("\"order\": %zu, \"offset\": %zu, \"flags\": %zu, \"parameters\": \"",
              address(s.order), address(s.offset), address(problem.strand[0].exchange.flags));
  const auto* const bytes = reinterpret_cast<const unsigned char*>(&problem);
  for (std::size_t i = 0; i < sizeof problem; ++i) std::printf("%02x", bytes[i]);
  std::puts("\"}");
  std::exit(0);
}

template <class E>
ComputeKernels<float> recording() {
  ComputeKernels<float> kernels{};
  kernels.matrix.product =
      make_recurrent<TensorProduct<E, 1, 4>>(false, CellList<>(), CellList<>()).product;
  kernels.vector.product =
      make_recurrent<ScalarProduct<E, 4>>(true, CellList<>(), CellList<>()).product;
  for (auto* const set : {&kernels.matrix, &kernels.vector}) {
    for (auto& f : set->own.forward) f = print<RecurrentProblem<ForwardStrand<float>>>;
    for (auto& f : set->own.backward) f = print<RecurrentProblem<BackwardStrand<float>>>;
  }
  kernels.pack = [](void*, const PackArguments<float>&) {};
  kernels.matmul = [](void*, const MatmulArguments<float>&) {};
  return kernels;
}

// Memory of the device: a region of its own for each array.
template <class T>
T* region() {
  static std::uintptr_t next = 0;
  return reinterpret_cast<T*>(next += std::uintptr_t{1} << 36);
}

}  // namespace

const ComputeKernels<float>& float16_kernels() {
  static const auto kernels = recording<Float16>();
  return kernels;
}
const ComputeKernels<float>& float32_kernels() { return float16_kernels(); }
const ComputeKernels<float>& tfloat32_kernels() { return float16_kernels(); }
const ComputeKernels<float>& bfloat16_kernels() { return float16_kernels(); }
const ComputeKernels<double>& float64_kernels() {
  static const ComputeKernels<double> kernels{};
  return kernels;
}
template <class T>
const StorageKernels<T>& storage_kernels() {
  static const StorageKernels<T> kernels{};
  return kernels;
}
template const StorageKernels<float>& storage_kernels();
template const StorageKernels<double>& storage_kernels();
void fill_schedule(void*, const SchedulePart&) {}
void expand_schedule(void*, const DeviceSchedule&) {}
void zero(void*, const ZeroArguments&) {}
const DeviceFacts& current_device() {
  static const DeviceFacts h100{.name = "H100",
                                .major = 9,
                                .minor = 0,
                                .multiprocessors = 132,
                                .shared_bytes = 227 << 10,
                                .memory_bytes = Index{80} << 30};
  return h100;
}

namespace {

template <class T>
Sequence<T> sequence(Index batch, Index width) {
  return {region<T>(), batch * width, width};
}

void run(int cell, Index units, Index batch, Index steps, Index inputs, bool backward_pass) {
  const bool c = cell_facts(cell).cell_state;
  Shape shape{.cell = cell, .inputs = inputs, .units = units, .steps = steps, .batch = batch};
  shape.strands = 1, shape.compute = Compute::float16;
  Parameters<float> parameters{};
  parameters.inputs = inputs, parameters.w_ih = region<float>(), parameters.w_hh = region<float>();
  parameters.bias = region<float>();
  auto* const workspace = region<std::byte>();
  walked_cell = cell;
  few_rows = batch <= kFewRows;
  if (backward_pass) {
    BackwardLayer<float> layer{};
    layer.parameters = parameters, layer.x = sequence<const float>(batch, inputs);
    layer.y = sequence<const float>(batch, units), layer.dy = sequence<const float>(batch, units);
    layer.h_0 = region<float>(), layer.dh = region<float>();
    if (c) layer.c_0 = region<float>(), layer.dc = region<float>(), layer.cells = region<float>();
    layer.saved = region<float>();
    backward<float>(shape, {layer}, workspace, nullptr);
  } else {
    ForwardLayer<float> layer{};
    layer.parameters = parameters, layer.x = sequence<const float>(batch, inputs);
    layer.y = sequence<float>(batch, units), layer.h = region<float>();
    if (c) layer.c = region<float>(), layer.cells = region<float>();
    layer.saved = region<float>();
    forward<float>(shape, {layer}, workspace, nullptr);
  }
}

}  // namespace
}  // namespace rnnkern::cuda

int main(int, char** argv) {
  const auto number = [&](int i) { return rnnkern::Index{std::atol(argv[i])}; };
  rnnkern::cuda::run(rnnkern::find_cell(argv[1]), number(2), number(3), number(4), number(5),
                     std::string(argv[6]) == "backward");
}
