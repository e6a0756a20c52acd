// SPDX-License-Identifier: Apache-2.0
#include "cpu/engine.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <type_traits>

namespace rnnkern {

namespace {

template <class T>
const Loops<T>& loops_of(Compute compute) {
  const Backend& backend = *chosen_backend().backend;
  if (compute == Compute::exact) return backend.kernels<T>().exact;
  if constexpr (std::is_same_v<T, float>) {
    return compute == Compute::int8 ? *int8_backend().for_int8 : *backend.for_bfloat16;
  } else {
    throw std::invalid_argument("compute 'bfloat16' or 'int8' needs float32 weights, got float64");
  }
}

// Equal shares, where the work is worth it.
std::function<Plan(int)> shared_if(bool worth_sharing) {
  return [=](int threads) {
    Plan plan;
    if (worth_sharing) plan.row_groups = threads;
    return plan;
  };
}

// Runs body(worker) on as many threads as copying so many bytes is worth.
void run_packing(Index bytes, const std::function<void(const Worker&)>& body) {
  constexpr Index kWorthSharing = Index{1} << 20;
  Call(static_cast<double>(bytes)).run(shared_if(bytes >= kWorthSharing), body);
}

template <class T>
Work work_of(int cell, const Schedule& schedule, Index inputs, Index units, Index outputs,
             Compute compute) {
  return work_of<T>(cell, schedule.steps, schedule.batch,
                    static_cast<double>(schedule.offset[schedule.steps]), inputs, units, outputs,
                    compute);
}

// A layer with a compute of its own steps with the products of its passes, for the same bits.
template <class T>
const StepKernels<T>& step_kernels(bool narrow, Compute compute) {
  const auto& kernels = chosen_backend().backend->kernels<T>();
  if (compute != Compute::exact) return loops_of<T>(compute).step;
  return narrow ? kernels.narrow_step : kernels.exact.step;
}

// Whatever a step rounds, its equations are on the lanes that its kernels have.
template <class T>
LoopCell<T> step_cell(int cell, Compute compute, bool options) {
  return loops_of<T>(compute).equations->of(cell, options);
}

}  // namespace

template <class T>
PackedWeights<T>::PackedWeights(int cell, const Parameters<T>& parameters, Pass pass,
                                bool with_input, Compute compute)
    : cell_(cell),
      inputs_(parameters.inputs),
      units_(parameters.units),
      outputs_(parameters.outputs),
      pass_(pass),
      with_input_(with_input),
      compute_(compute) {
  const auto& kernels = loops_of<T>(compute).pass;
  const CellFacts& facts = cell_facts(cell);
  const auto& panels = pass == Pass::forward ? kernels.forward_panels : kernels.backward_panels;
  if (!panels.bytes) throw std::invalid_argument("compute 'int8' is for inference alone");
  const Index bytes = panels.bytes(facts, parameters, with_input);
  bytes_ = AlignedBytes(bytes);
  run_packing(bytes, [&](const Worker& worker) {
    panels.pack(facts, parameters, with_input, worker, bytes_.get());
  });
}

template <class T>
bool PackedWeights<T>::fits(int cell, Index inputs, Index units, Index outputs, Pass pass,
                            bool with_input, Compute compute) const {
  return cell == cell_ && inputs == inputs_ && units == units_ && outputs == outputs_ &&
         pass == pass_ && with_input <= with_input_ && compute == compute_ && by_.in_use();
}

template <class T>
Stepper<T>::Stepper(int cell, const std::vector<Parameters<T>>& layers, Index batch, T* h, T* c,
                    bool narrow, Compute compute, bool by_token,
                    const std::optional<CellOptions<T>>& options, T zoneout, T cell_zoneout)
    : kernels_(step_kernels<T>(narrow, compute)),
      cell_(step_cell<T>(cell, compute, options.has_value())),
      options_(options),
      tall_(chosen_backend().backend->tall_tiles) {
  if (!kernels_.run) throw std::invalid_argument("narrow weights are for float32 alone");
  if (by_token && !kernels_.pack_token)
    throw std::invalid_argument("by_token needs another compute than 'int8'");
  Index scratch = 0;
  const T* below = nullptr;
  for (std::size_t k = 0; k < layers.size(); ++k) {
    const auto& layer = layers[k];
    problems_.push_back({.inputs = layer.inputs,
                         .units = layer.units,
                         .outputs = layer.outputs,
                         .batch = batch,
                         .x = below,
                         .x_row = layer.inputs,
                         .tokens = nullptr,
                         .h = h,
                         .c = c,
                         .round_operands = compute != Compute::exact,
                         .back = false,
                         .zone_h = {.share = zoneout},
                         .zone_c = {.share = cell_zoneout}});
    packed_.emplace_back(kernels_.packed_bytes(cell_.facts, layer));
    const bool with_input = !by_token || k > 0;
    kernels_.pack(cell_.facts, layer, with_input, packed_.back().get());
    flops_ += work_of<T>(cell, 1, batch, static_cast<double>(batch), layer.inputs, layer.units,
                         layer.outputs, compute)
                  .total_flops;
    scratch = std::max(scratch, kernels_.scratch(cell_.facts, problems_.back()));
    below = h;
    h += batch * layer.outputs;
    if (c) c += batch * layer.units;
  }
  scratch_ = AlignedBytes(scratch);
  if (by_token) first_ = layers[0], seen_.resize(static_cast<std::size_t>(layers[0].inputs));
}

template <class T>
void Stepper<T>::step(const T* x, const std::int64_t* tokens, T* y) {
  by_.require_in_use();
  back_ = !back_;
  for (Index b = 0; by_token() && b < batch(); ++b) {
    const auto token = static_cast<std::size_t>(tokens[b]);
    if (!seen_[token]) kernels_.pack_token(cell_.facts, first_, tokens[b], packed_[0].get());
    seen_[token] = true;
  }
  for (std::size_t k = 0; k < problems_.size(); ++k) {
    StepProblem<T> problem = problems_[k];
    if (k == 0) problem.x = x, problem.x_row = problem.inputs, problem.tokens = tokens;
    problem.back = back_;
    problem.options = options_ ? &*options_ : nullptr;
    kernels_.run(cell_, problem, tall_, packed_[k].get(), scratch_.get());
  }
  const auto& last = problems_.back();
  std::copy_n(last.h, last.batch * last.outputs, y);
}

template <class T>
Work work_of(int cell, Index steps, Index batch, double live, Index inputs, Index units,
             Index outputs, Compute compute) {
  const CellFacts& facts = cell_facts(cell);
  const double projection = outputs == units ? 0 : static_cast<double>(units);
  const double gate_units = facts.gates * static_cast<double>(units);
  const double per_row =
      2 * (gate_units + projection) * static_cast<double>(facts.recurrent_columns(outputs));
  constexpr double kMostBytes = 1e18;
  const double element = compute == Compute::exact      ? sizeof(T)
                         : compute == Compute::bfloat16 ? sizeof(Bfloat16)
                                                        : sizeof(std::int8_t);
  return {.steps = steps,
          .batch = batch,
          .units = units,
          .barriers = facts.recurrent_product,
          .step_flops = per_row * live / static_cast<double>(steps),
          .total_flops = live * (per_row + 2 * gate_units * static_cast<double>(inputs)),
          .weight_bytes = static_cast<Index>(std::min(per_row / 2 * element, kMostBytes)),
          .whole_rows = facts.layer_norm};
}

namespace {

// The whole of a pass, by one team after another.
template <class Segment>
void run_segments(Call& call, const Work& work, Segment segment) {
  const auto plan_for = [&](int threads) { return make_plan(work, threads); };
  Progress at, reached;
  const auto body = [&](const Worker& worker) {
    const Progress here = segment(worker, at);
    if (worker.id == 0) reached = here;
  };
  while (!at.done) {
    call.run(plan_for, std::cref(body));  // by reference: a function of its own takes memory
    at = reached;
  }
}

}  // namespace

template <class T>
void forward(int cell, const ForwardProblem<T>& given, Compute compute,
             const PackedWeights<T>* packed) {
  const auto& [kernels, step, equations] = loops_of<T>(compute);
  const LoopCell<T> loop_cell = equations->of(cell, given.options != nullptr);
  ForwardProblem<T> problem = given;
  const auto& parameters = problem.parameters;
  const Index inputs = parameters.inputs, units = parameters.units, outputs = parameters.outputs;
  const auto& schedule = problem.schedule;
  const Work work = work_of<T>(cell, schedule, inputs, units, outputs, compute);
  // So few rows are one chunk: every panel of W_ih is used once, and need not be kept.
  constexpr Index kWorthKeeping = 512;
  const bool worth_keeping = schedule.offset[schedule.steps] > kWorthKeeping;
  problem.input_packed = !problem.tokens.slot && (packed || worth_keeping);
  if (packed &&
      !packed->fits(cell, inputs, units, outputs, Pass::forward, problem.input_packed, compute))
    throw std::invalid_argument("packed must be of these weights, for this pass and compute");
  AlignedBytes own;
  std::byte* panels = packed ? packed->data() : nullptr;
  if (!packed) {
    own = AlignedBytes(
        kernels.forward_panels.bytes(loop_cell.facts, problem.parameters, problem.input_packed));
    panels = own.get();
  }
  const TallTiles* const tall = chosen_backend().backend->tall_tiles;
  Call call(work.total_flops);
  const AlignedBytes scratch(
      kernels.forward_scratch(loop_cell.facts, problem, call.most_threads()));
  run_segments(call, work, [&](const Worker& worker, Progress at) {
    if (!packed && at.steps == 0 && !at.inside) {
      kernels.forward_panels.pack(loop_cell.facts, problem.parameters, problem.input_packed, worker,
                                  panels);
      worker.wait_team();
    }
    return kernels.forward(loop_cell, problem, tall, worker, at, panels, scratch.get());
  });
}

template <class T>
void backward(int cell, const BackwardProblem<T>& problem, Compute compute,
              const PackedWeights<T>& packed) {
  if (!packed.fits(cell, problem.inputs, problem.units, problem.outputs, Pass::backward,
                   problem.dx.data != nullptr, compute))
    throw std::invalid_argument("packed must be of these weights, for this pass and compute");
  const auto& [kernels, step, equations] = loops_of<T>(compute);
  const LoopCell<T> loop_cell = equations->of(cell, problem.options != nullptr);
  const Work work =
      work_of<T>(cell, problem.schedule, problem.inputs, problem.units, problem.outputs, compute);
  const TallTiles* const tall = chosen_backend().backend->tall_tiles;
  Call call(2 * work.total_flops);
  const AlignedBytes scratch(
      kernels.backward_scratch(loop_cell.facts, problem, call.most_threads()));
  run_segments(call, work, [&](const Worker& worker, Progress at) {
    return kernels.backward(loop_cell, problem, tall, worker, at, packed.data(), scratch.get());
  });
}

template <class T>
PackedMatrix<T>::PackedMatrix(const T* matrix, const T* bias, Index rows, Index columns)
    : problem_{.rows = 0,
               .columns = rows,
               .depth = columns,
               .a = nullptr,
               .a_row = columns,
               .a_depth = 1,
               .b = matrix,
               .b_depth = 1,
               .b_column = columns,
               .bias = bias,
               .c = nullptr,
               .c_row = rows,
               .accumulate = false} {
  const auto& kernels = chosen_backend().backend->kernels<T>();
  const Index bytes = kernels.matmul_packed_bytes(problem_);
  bytes_ = AlignedBytes(bytes);
  run_packing(bytes,
              [&](const Worker& worker) { kernels.matmul_pack(problem_, worker, bytes_.get()); });
  problem_.packed = bytes_.get();
  problem_.b = problem_.bias = nullptr;
}

template <class T>
void PackedMatrix<T>::times(const T* x, Index count, T* y) const {
  by_.require_in_use();
  MatmulProblem<T> problem = problem_;
  problem.a = x, problem.rows = count, problem.c = y;
  matmul(problem);
}

template <class T>
void matmul(const MatmulProblem<T>& problem) {
  const auto& kernels = chosen_backend().backend->kernels<T>();
  const double flops = 2.0 * static_cast<double>(problem.rows) *
                       static_cast<double>(problem.columns) * static_cast<double>(problem.depth);
  constexpr double kWorthSharing = 1e6;  // flops
  Call call(flops);
  const AlignedBytes scratch(kernels.matmul_scratch(problem, call.most_threads()));
  call.run(shared_if(flops >= kWorthSharing),
           [&](const Worker& worker) { kernels.matmul(problem, worker, scratch.get()); });
}

template class PackedWeights<float>;
template class PackedWeights<double>;
template class PackedMatrix<float>;
template class PackedMatrix<double>;
template class Stepper<float>;
template class Stepper<double>;
template Work work_of<float>(int, Index, Index, double, Index, Index, Index, Compute);
template Work work_of<double>(int, Index, Index, double, Index, Index, Index, Compute);
template void forward(int, const ForwardProblem<float>&, Compute, const PackedWeights<float>*);
template void forward(int, const ForwardProblem<double>&, Compute, const PackedWeights<double>*);
template void backward(int, const BackwardProblem<float>&, Compute, const PackedWeights<float>&);
template void backward(int, const BackwardProblem<double>&, Compute, const PackedWeights<double>&);
template void matmul(const MatmulProblem<float>&);
template void matmul(const MatmulProblem<double>&);

}  // namespace rnnkern
