#include "core/engine.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

namespace rnnkern {

namespace {

template <class T>
const PassKernels<T>& pass_kernels(int cell, Compute compute) {
  const Backend& backend = *chosen_backend().backend;
  if (compute == Compute::exact) return backend.kernels<T>().cells[cell].pass;
  if constexpr (std::is_same_v<T, float>) {
    return backend.for_bfloat16->cells[cell];
  } else {
    throw std::invalid_argument("compute 'bfloat16' needs float32 weights, got float64");
  }
}

}  // namespace

template <class T>
PackedWeights<T>::PackedWeights(int cell, const Parameters<T>& parameters, bool with_input,
                                Compute compute) {
  const auto& kernels = pass_kernels<T>(cell, compute);
  bytes_ = AlignedBytes(kernels.packed_bytes(parameters, with_input));
  run_team(Plan{}, [&](const Worker& worker) {
    kernels.pack(parameters, with_input, worker, bytes_.get());
  });
}

template <class T>
Stepper<T>::Stepper(int cell, const std::vector<Parameters<T>>& layers, Index batch, T* h, T* c,
                    bool narrow, Compute compute)
    : kernels_(narrow || compute == Compute::bfloat16
                   ? chosen_backend().backend->kernels<T>().cells[cell].narrow_step
                   : chosen_backend().backend->kernels<T>().cells[cell].step) {
  if (!kernels_.run) throw std::invalid_argument("narrow weights are for float32 alone");
  Index scratch = 0;
  const T* below = nullptr;
  for (const auto& layer : layers) {
    problems_.push_back({.inputs = layer.inputs,
                         .units = layer.units,
                         .batch = batch,
                         .x = below,
                         .x_row = layer.units,
                         .tokens = nullptr,
                         .h = h,
                         .c = c,
                         .round_operands = compute == Compute::bfloat16});
    packed_.emplace_back(kernels_.packed_bytes(layer));
    kernels_.pack(layer, packed_.back().get());
    flops_ += 2.0 * static_cast<double>(all_cells()[static_cast<std::size_t>(cell)].gates * batch *
                                        layer.units * (layer.units + layer.inputs));
    scratch = std::max(scratch, kernels_.scratch(problems_.back()));
    below = h;
    h += batch * layer.units;
    if (c) c += batch * layer.units;
  }
  scratch_ = AlignedBytes(scratch);
}

template <class T>
void Stepper<T>::step(const T* x, const std::int64_t* tokens, T* y) const {
  for (std::size_t k = 0; k < problems_.size(); ++k) {
    StepProblem<T> problem = problems_[k];
    if (k == 0) problem.x = x, problem.x_row = problem.inputs, problem.tokens = tokens;
    kernels_.run(problem, packed_[k].get(), scratch_.get());
  }
  const auto& last = problems_.back();
  std::copy_n(last.h, last.batch * last.units, y);
}

template <class T>
Plan plan_for(int cell, const Schedule& schedule, const Parameters<T>& parameters,
              Compute compute) {
  const double gates = all_cells()[static_cast<std::size_t>(cell)].gates;
  const double units = static_cast<double>(parameters.units),
               inputs = static_cast<double>(parameters.inputs);
  const double per_row = 2 * gates * units * units;
  const Index live = schedule.offset[schedule.steps];
  const double element = compute == Compute::exact ? sizeof(T) : sizeof(Bfloat16);
  return make_plan(
      {.steps = schedule.steps,
       .batch = schedule.batch,
       .units = parameters.units,
       .step_flops = per_row * static_cast<double>(live) / static_cast<double>(schedule.steps),
       .total_flops = static_cast<double>(live) * (per_row + 2 * gates * units * inputs),
       .weight_bytes = static_cast<Index>(gates * units * units * element)},
      max_threads());
}

template <class T>
void forward(int cell, const ForwardProblem<T>& given, Compute compute,
             const PackedWeights<T>* packed) {
  const auto& kernels = pass_kernels<T>(cell, compute);
  ForwardProblem<T> problem = given;
  const auto& schedule = problem.schedule;
  const Plan plan = plan_for(cell, schedule, problem.parameters, compute);
  // So few rows are one run of steps: every panel of W_ih is used once, and need not be kept.
  constexpr Index kWorthKeeping = 512;
  const bool worth_keeping = schedule.offset[schedule.steps] > kWorthKeeping;
  problem.input_packed = !problem.tokens.slot && (packed || worth_keeping);
  AlignedBytes own;
  std::byte* panels = packed ? packed->data() : nullptr;
  if (!packed) {
    own = AlignedBytes(kernels.packed_bytes(problem.parameters, problem.input_packed));
    panels = own.get();
  }
  const AlignedBytes scratch(kernels.forward_scratch(problem, plan.threads()));
  run_team(plan, [&](const Worker& worker) {
    if (!packed) {
      kernels.pack(problem.parameters, problem.input_packed, worker, panels);
      worker.wait_team();
    }
    kernels.forward(problem, worker, panels, scratch.get());
  });
}

template <class T>
void backward(int cell, const BackwardProblem<T>& problem, Compute compute) {
  const auto& kernels = pass_kernels<T>(cell, compute);
  const Plan plan = plan_for(cell, problem.schedule, problem.parameters, compute);
  const AlignedBytes scratch(kernels.backward_scratch(problem, plan.threads()));
  run_team(plan, [&](const Worker& worker) { kernels.backward(problem, worker, scratch.get()); });
}

template <class T>
void matmul(const MatmulProblem<T>& problem) {
  const auto& kernels = chosen_backend().backend->kernels<T>();
  const double flops = 2.0 * static_cast<double>(problem.rows) *
                       static_cast<double>(problem.columns) * static_cast<double>(problem.depth);
  constexpr double kWorthSharing = 1e6;  // flops
  Plan plan;
  plan.row_groups = flops < kWorthSharing ? 1 : max_threads();
  const AlignedBytes scratch(kernels.matmul_scratch(problem, plan.threads()));
  run_team(plan, [&](const Worker& worker) { kernels.matmul(problem, worker, scratch.get()); });
}

template class PackedWeights<float>;
template class PackedWeights<double>;
template class Stepper<float>;
template class Stepper<double>;
template Plan plan_for(int, const Schedule&, const Parameters<float>&, Compute);
template Plan plan_for(int, const Schedule&, const Parameters<double>&, Compute);
template void forward(int, const ForwardProblem<float>&, Compute, const PackedWeights<float>*);
template void forward(int, const ForwardProblem<double>&, Compute, const PackedWeights<double>*);
template void backward(int, const BackwardProblem<float>&, Compute);
template void backward(int, const BackwardProblem<double>&, Compute);
template void matmul(const MatmulProblem<float>&);
template void matmul(const MatmulProblem<double>&);

}  // namespace rnnkern
