// SPDX-License-Identifier: Apache-2.0
#include "cuda/engine.h"

#include <atomic>
#include <limits>
#include <map>
#include <mutex>

#include "cuda/call.h"

namespace rnnkern::cuda {
namespace {

std::atomic<int> forced_groups = 0;

template <class T>
PlanRequest request_of(const Shape& shape, bool backward) {
  const auto& cell = facts_of(shape);
  PlanRequest request{.device = current_device(),
                      .product = recurrent_kernels<T>(shape).product,
                      .weights = {},
                      .phases = cell.phase_count(),
                      .fields = (backward ? cell.saved + 7 : cell.gates + 2 + cell.cell_state) +
                                cell.unit_weights + (shape.drops ? 2 + cell.cell_state : 0),
                      .field_bytes = sizeof(T),
                      .units = shape.units,
                      .batch = shape.batch,
                      .strands = shape.strands,
                      .groups = forced_groups};
  for (int p = 0; p < cell.phase_count(); ++p) {
    const int gates = cell.phases[p].count;
    request.weights[p] =
        backward ? WeightFacts{1, gates * shape.units} : WeightFacts{gates, shape.units};
    // Backward, what is handed on joins ∂L/∂h_t, of which phase 0 is the first to know.
    if (shape.stacked && !backward) request.weights[kBetween + p] = request.weights[p];
  }
  if (shape.stacked && backward) request.weights[kBetween] = {1, cell.gates * shape.units};
  return request;
}

// A plan takes a while to choose, and a training loop asks for the same few again and again.
std::optional<ChosenPlan> known_plan(const PlanRequest& request) {
  static std::map<PlanRequest, std::optional<ChosenPlan>> chosen;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const auto known = chosen.find(request);
  if (known != chosen.end()) return known->second;
  return chosen.emplace(request, choose_plan(request)).first->second;
}

}  // namespace

template <class T>
ChosenPlan plan_of(const Shape& shape, bool backward) {
  const auto request = request_of<T>(shape, backward);
  const auto plan = known_plan(request);
  if (!plan) refuse_plan(request);
  return *plan;
}

void force_groups(int groups) { forced_groups = groups; }

template <class T>
LayerSplit layer_split(const Shape& shape, int layers, bool backward) {
  std::vector<double> cycles;
  for (int count = 1; count <= std::min(layers, kMaxStrands); ++count) {
    Shape launch = shape;
    launch.strands = count, launch.stacked = count > 1;
    const auto plan = known_plan(request_of<T>(launch, backward));
    if (!plan) {
      cycles.push_back(std::numeric_limits<double>::infinity());
      continue;
    }
    const Index chunk = steps_of_chunk<T>(launch, plan->plan, backward);
    const Index chunks = (shape.steps + chunk - 1) / chunk;
    // In each chunk the last layer begins count - 1 steps after the first.
    cycles.push_back(static_cast<double>(shape.steps + chunks * (count - 1)) * plan->cycles);
  }
  const auto request = request_of<T>(shape, backward);
  const Index gate_units = facts_of(shape).gates * shape.units;
  return split_layers(layers, cycles,
                      launch_cycles(request, shape.steps * shape.batch, gate_units, shape.units));
}

template <class T>
Index forward_workspace(const Shape& shape) {
  return Layout<T>(shape, false).workspace_bytes();
}
template <class T>
Index backward_workspace(const Shape& shape) {
  return Layout<T>(shape, true).workspace_bytes();
}

template <class T>
void matmul(const MatmulProblem<T>& problem, Compute compute, void* stream) {
  if (problem.rows == 0 || problem.columns == 0) return;
  MatmulArguments<T> args{};
  const auto matrix = [](const T* data, Index row, Index depth, bool& transposed) {
    transposed = depth != 1;
    Operand<T> m{};
    m.kind = Operand<T>::kMatrix, m.data = data, m.row = transposed ? depth : row;
    return m;
  };
  args.a = matrix(problem.a, problem.a_row, problem.a_depth, args.a_transposed);
  args.b = matrix(problem.b, problem.b_column, problem.b_depth, args.b_transposed);
  args.rows = static_cast<std::int32_t>(problem.rows);
  args.columns = static_cast<std::int32_t>(problem.columns);
  args.depth = static_cast<std::int32_t>(problem.depth);
  args.bias = problem.bias, args.accumulate = problem.accumulate;
  args.out = problem.c, args.out_row = problem.c_row;
  kernels_for<T>(compute).matmul(stream, args);
}

#define RNNKERN_INSTANTIATE(T)                                 \
  template ChosenPlan plan_of<T>(const Shape&, bool);          \
  template LayerSplit layer_split<T>(const Shape&, int, bool); \
  template Index forward_workspace<T>(const Shape&);           \
  template Index backward_workspace<T>(const Shape&);          \
  template void matmul(const MatmulProblem<T>&, Compute, void*)
RNNKERN_INSTANTIATE(float);
RNNKERN_INSTANTIATE(double);
#undef RNNKERN_INSTANTIATE

}  // namespace rnnkern::cuda
