// SPDX-License-Identifier: Apache-2.0
#include "cuda/engine.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <type_traits>

#include "core/cells.h"
#include "core/memory.h"
#include "core/schedule.h"
#include "cuda/kernels.h"

namespace rnnkern::cuda {
namespace {

// A cell's facts as numbers, for those who are no templates.
struct CellShape {
  int gates, saved, deltas, phases;
  bool c;
  Range phase[kMaxPhases];
  int recurrent_bias_gate, operand_gate;

  int recurrent_delta(int gate) const { return gate == recurrent_bias_gate ? gates : gate; }
};

template <class Cell>
constexpr CellShape shape_of() {
  static_assert(phase_count<Cell> <= kMaxPhases);
  CellShape shape{.gates = Cell::gates,
                  .saved = Cell::saved,
                  .deltas = delta_count<Cell>,
                  .phases = phase_count<Cell>,
                  .c = has_c<Cell>,
                  .phase = {},
                  .recurrent_bias_gate = Cell::recurrent_bias_gate,
                  .operand_gate = Cell::operand_gate};
  for (int p = 0; p < phase_count<Cell>; ++p) shape.phase[p] = Cell::phases[p];
  return shape;
}

template <template <class> class... Cells>
const CellShape& shape_of(int cell, CellList<Cells...>) {
  static constexpr CellShape shapes[] = {shape_of<Cells<Scalar<float>>>()...};
  return shapes[cell];
}

const CellShape& cell_shape(int cell) { return shape_of(cell, AllCells()); }

template <class T>
const ComputeKernels<T>& kernels_for(Compute compute) {
  if constexpr (std::is_same_v<T, double>) {
    if (compute != Compute::exact)
      throw std::invalid_argument("compute must be None for float64 arrays");
    return float64_kernels();
  } else {
    switch (compute) {
      case Compute::tfloat32:
        return tfloat32_kernels();
      case Compute::bfloat16:
        return bfloat16_kernels();
      case Compute::float16:
        return float16_kernels();
      default:
        return float32_kernels();
    }
  }
}

constexpr Index kFewRows = 4;  // of the batch, up to which products are not padded for tensor cores

template <class T>
const RecurrentKernels<T>& recurrent_kernels(const Shape& shape) {
  const auto& kernels = kernels_for<T>(shape.compute);
  return shape.batch <= kFewRows ? kernels.vector : kernels.matrix;
}

// The schedule's place in the workspace.
DeviceSchedule take_schedule(const Shape& shape, Index live, Arena& arena) {
  const auto take = [&](Index count) { return arena.take<std::int32_t>(count); };
  return {static_cast<std::int32_t>(shape.steps),
          static_cast<std::int32_t>(shape.batch),
          take(shape.batch),
          take(shape.batch),
          take(shape.batch),
          take(shape.steps + 1),
          take(live),
          take(live)};
}

void fill(const DeviceSchedule& schedule, const Shape& shape, const ScheduleStorage& storage,
          void* stream) {
  const Index* order = storage.schedule(false).order;
  SchedulePart part{};
  part.schedule = schedule, part.ragged = storage.ragged();
  const Index most = storage.ragged() ? SchedulePart::kRows : shape.batch;
  for (Index first = 0; first < shape.batch; first += most) {
    const Index count = std::min(most, shape.batch - first);
    part.first = static_cast<std::int32_t>(first), part.count = static_cast<std::int32_t>(count);
    for (Index i = 0; storage.ragged() && i < count; ++i) {
      part.order[i] = static_cast<std::int32_t>(order[first + i]);
      part.length[i] = static_cast<std::int32_t>(storage.length(order[first + i]));
    }
    fill_schedule(stream, part);
  }
  expand_schedule(stream, schedule);
}

// What a call of either way lays out in its workspace, pass by pass.
template <class T>
struct Workspace {
  DeviceSchedule schedule;
  Exchange exchange[kMaxPasses];
  std::byte* weights[kMaxPasses][kMaxProducts];
  ZeroArguments zeroed;  // all operands and flags, and what is handed on where its rows are padded
  T* run[kMaxPasses];    // (rows of a run, row_size): x_part, where there is one, or deltas
  T* scratch[kMaxPasses];  // of a cell of two phases: (B, saved, H), or backward dh_now
};

std::atomic<int> forced_groups = 0;

template <class T>
PlanRequest request_of(const Shape& shape, bool backward) {
  const auto& cell = cell_shape(shape.cell);
  PlanRequest request{.device = current_device(),
                      .product = recurrent_kernels<T>(shape).product,
                      .weights = {},
                      .phases = cell.phases,
                      .fields = backward ? cell.saved + 7 : cell.gates + 2 + cell.c,
                      .field_bytes = sizeof(T),
                      .units = shape.units,
                      .batch = shape.batch,
                      .passes = shape.passes,
                      .groups = forced_groups};
  for (int p = 0; p < cell.phases; ++p) {
    const int gates = cell.phase[p].count;
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

// Bytes of a packed row that one layer hands on to the next.
Index handed_bytes(const RecurrentPlan& plan) { return plan.product[kBetween].depth_bytes; }

// Elements of a row of x_part or the deltas.
Index run_row_size(const Shape& shape, bool backward) {
  const auto& cell = cell_shape(shape.cell);
  return (backward ? cell.deltas : cell.gates) * shape.units;
}

// As many steps as the buffers of a run have room for.
template <class T>
Index steps_of_run(const Shape& shape, const RecurrentPlan& plan, bool backward) {
  const Index row_sizes = shape.stacked && !backward ? 1 : shape.passes;
  const Index row_bytes = row_sizes * run_row_size(shape, backward) * Index{sizeof(T)} +
                          (shape.passes - 1) * handed_bytes(plan);
  return std::clamp<Index>(current_device().run_bytes / row_bytes / shape.batch, 1, shape.steps);
}

// How a call, forward or backward, is cut up, and its workspace: arithmetic on sizes.
template <class T>
class Layout {
 public:
  Layout(const Shape& shape, bool backward)
      : shape_(shape),
        cell_(cell_shape(shape.cell)),
        backward_(backward),
        live_rows_(shape.live_rows()),
        kernels_(kernels_for<T>(shape.compute)),
        recurrent_(recurrent_kernels<T>(shape)),
        plan_(plan_of<T>(shape, backward).plan),
        row_size_(run_row_size(shape, backward)),
        run_steps_(steps_of_run<T>(shape, plan_, backward)) {}

  Index workspace_bytes() const {
    Arena measure(nullptr);
    make_workspace(measure);
    return measure.used();
  }

 protected:
  Workspace<T> make_workspace(Arena& arena) const {
    Workspace<T> space{};
    const Index run_rows = std::min(run_steps_ * shape_.batch, live_rows_);
    space.schedule = take_schedule(shape_, live_rows_, arena);
    const Index zeros_begin = arena.used();
    for (int k = 0; k < shape_.passes; ++k) {
      auto& exchange = space.exchange[k];
      for (int p = 0; p < plan_.phases; ++p)
        exchange.operand[p] = arena.take<std::byte>(2 * plan_.exchange_bytes(p));
      exchange.flags = arena.take<std::uint32_t>(Index{plan_.groups} * plan_.blocks);
    }
    Index zeros_end = arena.used();
    for (int k = 0; shape_.stacked && k + 1 < shape_.passes; ++k)
      space.exchange[k].handed = arena.take<std::byte>(run_rows * handed_bytes(plan_));
    if (handed_units() * recurrent_.product.element_bytes < handed_bytes(plan_))
      zeros_end = arena.used();
    space.zeroed = {reinterpret_cast<std::uint32_t*>(space.exchange[0].operand[0]),
                    (zeros_end - zeros_begin) / Index{sizeof(std::uint32_t)}};
    for (int k = 0; k < shape_.passes; ++k) {
      for (int p = 0; p < (fed(k) ? kMaxProducts : kBetween); ++p) {
        space.weights[k][p] = arena.take<std::byte>(plan_.tiles(p) * plan_.tile_bytes(p));
        space.exchange[k].weights[p] = space.weights[k][p];
      }
      if (backward_ || !fed(k)) space.run[k] = arena.take<T>(run_rows * row_size_);
      if (cell_.phases > 1)
        space.scratch[k] =
            arena.take<T>(shape_.batch * (backward_ ? 1 : cell_.saved) * shape_.units);
    }
    return space;
  }

  bool fed(int k) const { return shape_.stacked && k > 0; }
  // What a row that a layer hands on holds, but for its padding.
  Index handed_units() const { return (backward_ ? cell_.gates : 1) * shape_.units; }

  const Shape& shape_;
  const CellShape& cell_;
  const bool backward_;
  const Index live_rows_;
  const ComputeKernels<T>& kernels_;
  const RecurrentKernels<T>& recurrent_;
  const RecurrentPlan plan_;
  const Index row_size_, run_steps_;
};

// A call itself: what both ways have in common.
template <class T>
class Call : Layout<T> {
 protected:
  using Layout<T>::shape_, Layout<T>::cell_, Layout<T>::backward_, Layout<T>::kernels_,
      Layout<T>::recurrent_, Layout<T>::plan_, Layout<T>::row_size_, Layout<T>::run_steps_,
      Layout<T>::make_workspace, Layout<T>::fed;

  Call(const Shape& shape, bool backward)
      : Layout<T>(shape, backward), storage_(shape.steps, shape.batch, shape.lengths) {}

  // The layer that is pass k: backward, the last of stacked ones comes first.
  template <class Layer>
  const Layer& layer_of(const std::vector<Layer>& layers, int k) const {
    return layers[static_cast<std::size_t>(shape_.stacked && backward_ ? shape_.passes - 1 - k
                                                                       : k)];
  }

  // What comes before the first run.
  template <class Layer>
  void prepare(const Workspace<T>& space, const std::vector<Layer>& layers, void* stream) const {
    fill(space.schedule, shape_, storage_, stream);
    zero(stream, space.zeroed);
    for (int k = 0; k < shape_.passes; ++k) {
      for (int p = 0; p < plan_.phases; ++p)
        pack(space, k, p, layer_of(layers, k).parameters.w_hh, cell_.phase[p], stream);
      if (!fed(k)) continue;
      if (backward_) {
        pack(space, k, kBetween, layer_of(layers, k - 1).parameters.w_ih, {0, cell_.gates}, stream);
      } else {
        for (int p = 0; p < plan_.phases; ++p)
          pack(space, k, kBetween + p, layer_of(layers, k).parameters.w_ih, cell_.phase[p], stream);
      }
    }
  }

  void pack(const Workspace<T>& space, int k, int product, const T* weights, Range gates,
            void* stream) const {
    kernels_.pack(stream, {.weights = weights,
                           .packed = space.weights[k][product],
                           .plan = plan_,
                           .product = product,
                           .first_gate = gates.first,
                           .gates = gates.count,
                           .units = static_cast<std::int32_t>(shape_.units),
                           .backward = backward_});
  }

  // The packed rows of the processed steps [begin, end) of a pass.
  struct Rows {
    Index first, count;
  };
  Rows rows_of(Index begin, Index end, bool reverse) const {
    const auto schedule = storage_.schedule(reverse);
    const Index first = reverse ? shape_.steps - end : begin;
    return {schedule.offset[first],
            schedule.offset[first + (end - begin)] - schedule.offset[first]};
  }

  template <class Pass, class Layer>
  RecurrentProblem<Pass> problem_of(const Workspace<T>& space, const std::vector<Layer>& layers,
                                    Index begin, Index end) const {
    RecurrentProblem<Pass> problem{};
    problem.plan = plan_, problem.schedule = space.schedule, problem.stacked = shape_.stacked;
    problem.units = static_cast<std::int32_t>(shape_.units);
    problem.begin = static_cast<std::int32_t>(begin), problem.end = static_cast<std::int32_t>(end);
    for (int k = 0; k < shape_.passes; ++k) {
      const bool reverse = layer_of(layers, k).reverse;
      problem.first_row[k] = static_cast<std::int32_t>(rows_of(begin, end, reverse).first);
      problem.pass[k].reverse = reverse;
      problem.pass[k].exchange = space.exchange[k];
    }
    return problem;
  }

  Grid grid(void* stream) const {
    return {.stream = stream,
            .blocks = Index{shape_.passes} * plan_.groups * plan_.blocks,
            .shared_bytes = plan_.shared_bytes,
            .together = true};
  }

  // x of a run, as a product reads it.
  template <class Layer>
  Operand<T> input_of(const Layer& layer, Index first) const {
    Operand<T> x{};
    x.kind = layer.tokens.data ? Operand<T>::kTokens : Operand<T>::kSequence;
    x.first = static_cast<std::int32_t>(first);
    x.columns = static_cast<std::int32_t>(layer.parameters.inputs);
    x.sequence = layer.x, x.tokens = layer.tokens;
    return x;
  }
  static Operand<T> matrix(const T* data, Index row) {
    Operand<T> m{};
    m.kind = Operand<T>::kMatrix, m.data = data, m.row = row;
    return m;
  }

  const ScheduleStorage storage_;
};

template <class T>
class ForwardCall : Call<T> {
 public:
  explicit ForwardCall(const Shape& shape) : Call<T>(shape, false) {}
  void run(const std::vector<ForwardLayer<T>>& layers, std::byte* workspace, void* stream) const {
    Arena arena(workspace);
    const auto space = this->make_workspace(arena);
    const auto& shape = this->shape_;
    this->prepare(space, layers, stream);
    for (const auto& layer : layers) {
      if (this->storage_.ragged()) {
        storage_kernels<T>().zero_tail(
            stream, {space.schedule, layer.y, static_cast<std::int32_t>(shape.units)});
      }
    }
    for (Index begin = 0, end; begin < shape.steps; begin = end) {
      end = std::min(begin + this->run_steps_, shape.steps);
      auto problem = this->template problem_of<ForwardPass<T>>(space, layers, begin, end);
      for (int k = 0; k < shape.passes; ++k) {
        const auto& layer = this->layer_of(layers, k);
        if (!this->fed(k)) {
          multiply_inputs(layer, space.schedule, this->rows_of(begin, end, layer.reverse),
                          space.run[k], stream);
        }
        auto& pass = problem.pass[k];
        pass.x_part = space.run[k];
        pass.bias = layer.parameters.bias, pass.bias_hn = layer.parameters.bias_hn;
        pass.h = layer.h, pass.c = layer.c, pass.y = layer.y, pass.mask = layer.mask;
        pass.saved = layer.saved, pass.cells = layer.cells, pass.scratch = space.scratch[k];
      }
      this->recurrent_.forward[shape.cell](this->grid(stream), problem);
    }
  }

 private:
  // x_part of a run: W_ih x + b.
  void multiply_inputs(const ForwardLayer<T>& layer, const DeviceSchedule& schedule,
                       typename Call<T>::Rows rows, T* x_part, void* stream) const {
    if (rows.count == 0) return;
    const auto& shape = this->shape_;
    const auto first = static_cast<std::int32_t>(rows.first);
    const auto count = static_cast<std::int32_t>(rows.count);
    const auto gate_units = static_cast<std::int32_t>(this->row_size_);
    const auto inputs = static_cast<std::int32_t>(shape.inputs);
    if (shape.tokens) {
      storage_kernels<T>().gather(stream, {schedule, layer.tokens, first, count, gate_units, inputs,
                                           layer.parameters.w_ih, layer.parameters.bias, x_part});
      return;
    }
    MatmulArguments<T> args{};
    args.schedule = schedule;
    args.a = this->input_of(layer, rows.first);
    args.b = this->matrix(layer.parameters.w_ih, shape.inputs);
    args.rows = count, args.columns = gate_units, args.depth = inputs;
    args.bias = layer.parameters.bias;
    args.out = x_part, args.out_row = gate_units;
    this->kernels_.matmul(stream, args);
  }
};

template <class T>
class BackwardCall : Call<T> {
 public:
  explicit BackwardCall(const Shape& shape) : Call<T>(shape, true) {}
  void run(const std::vector<BackwardLayer<T>>& layers, std::byte* workspace, void* stream) const {
    Arena arena(workspace);
    const auto space = this->make_workspace(arena);
    const auto& shape = this->shape_;
    this->prepare(space, layers, stream);
    for (Index end = shape.steps, begin; end > 0; end = begin) {
      begin = std::max<Index>(end - this->run_steps_, 0);
      auto problem = this->template problem_of<BackwardPass<T>>(space, layers, begin, end);
      for (int k = 0; k < shape.passes; ++k) {
        const auto& layer = this->layer_of(layers, k);
        auto& pass = problem.pass[k];
        pass.h_0 = layer.h_0, pass.c_0 = layer.c_0, pass.y = layer.y;
        pass.saved = layer.saved, pass.cells = layer.cells;
        pass.dy = layer.dy, pass.mask = layer.mask;
        pass.dh = layer.dh, pass.dc = layer.dc, pass.delta = space.run[k];
        pass.dh_now = space.scratch[k];
      }
      this->recurrent_.backward[shape.cell](this->grid(stream), problem);
      // Pass by pass, so that a shared dx is added to in one order.
      for (int k = 0; k < shape.passes; ++k) {
        const auto& layer = this->layer_of(layers, k);
        const auto rows = this->rows_of(begin, end, layer.reverse);
        if (rows.count > 0) add_gradients(layer, space.schedule, rows, space.run[k], stream);
      }
    }
  }

 private:
  void add_gradients(const BackwardLayer<T>& layer, const DeviceSchedule& schedule,
                     typename Call<T>::Rows rows, const T* delta, void* stream) const {
    const auto& cell = this->cell_;
    const Index units = this->shape_.units, inputs = layer.parameters.inputs;
    const auto gate_units = static_cast<std::int32_t>(cell.gates * units);
    MatmulArguments<T> args{};
    args.schedule = schedule, args.accumulate = true;
    args.first = static_cast<std::int32_t>(rows.first);

    if (layer.dx.data) {
      args.a = this->matrix(delta, this->row_size_);
      args.b = this->matrix(layer.parameters.w_ih, inputs), args.b_transposed = true;
      args.rows = static_cast<std::int32_t>(rows.count), args.depth = gate_units;
      args.columns = static_cast<std::int32_t>(inputs);
      args.scattered = layer.dx;
      this->kernels_.matmul(stream, args);
    }

    // Few enough rows at a time that their sums in float32 lose no digits that matter.
    constexpr Index kSumRows = 4096;
    for (Index part = 0; part < rows.count; part += kSumRows) {
      add_weight_gradients(layer, schedule,
                           {rows.first + part, std::min(kSumRows, rows.count - part)},
                           delta + part * this->row_size_, stream);
    }
  }

  // Sums over rows: both operands run the other way.
  void add_weight_gradients(const BackwardLayer<T>& layer, const DeviceSchedule& schedule,
                            typename Call<T>::Rows rows, const T* delta, void* stream) const {
    const auto& cell = this->cell_;
    const Index units = this->shape_.units, inputs = layer.parameters.inputs;
    const auto gate_units = static_cast<std::int32_t>(cell.gates * units);
    MatmulArguments<T> args{};
    args.schedule = schedule, args.accumulate = true;
    args.a_transposed = args.b_transposed = true;
    args.depth = static_cast<std::int32_t>(rows.count);
    args.a = this->matrix(delta, this->row_size_);
    args.b = this->input_of(layer, rows.first);
    args.rows = gate_units, args.columns = static_cast<std::int32_t>(inputs);
    args.out = layer.dw_ih, args.out_row = inputs;
    this->kernels_.matmul(stream, args);

    args.columns = static_cast<std::int32_t>(units), args.out_row = units;
    for (int p = 0; p < cell.phases; ++p) {
      args.b = previous_h(layer, rows.first, p);
      // Gates whose deltas stand side by side are one product.
      const int end = cell.phase[p].first + cell.phase[p].count;
      for (int gate = cell.phase[p].first, next; gate < end; gate = next) {
        for (next = gate + 1;
             next < end && cell.recurrent_delta(next) == cell.recurrent_delta(next - 1) + 1;)
          ++next;
        args.a = this->matrix(delta + cell.recurrent_delta(gate) * units, this->row_size_);
        args.rows = static_cast<std::int32_t>((next - gate) * units);
        args.out = layer.dw_hh + gate * units * units;
        this->kernels_.matmul(stream, args);
      }
    }

    const auto sums = [&](int first, Index columns, T* out) {
      if (!out) return;
      storage_kernels<T>().column_sums(
          stream, {delta + first * units, this->row_size_, static_cast<std::int32_t>(rows.count),
                   static_cast<std::int32_t>(columns), out});
    };
    sums(0, gate_units, layer.dbias);
    if (cell.recurrent_bias_gate != kNoGate) sums(cell.gates, units, layer.dbias_hn);
  }

  Operand<T> previous_h(const BackwardLayer<T>& layer, Index first, int phase) const {
    const auto& cell = this->cell_;
    const Index units = this->shape_.units;
    Operand<T> h{};
    h.kind = Operand<T>::kPrevious, h.reverse = layer.reverse;
    h.first = static_cast<std::int32_t>(first), h.columns = static_cast<std::int32_t>(units);
    h.sequence = layer.y, h.initial = layer.h_0;
    if (phase > 0)
      h.gate = layer.saved + cell.operand_gate * units, h.gate_row = cell.saved * units;
    return h;
  }
};

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
  for (int count = 1; count <= std::min(layers, kMaxPasses); ++count) {
    Shape launch = shape;
    launch.passes = count, launch.stacked = count > 1;
    const auto plan = known_plan(request_of<T>(launch, backward));
    if (!plan) {
      cycles.push_back(std::numeric_limits<double>::infinity());
      continue;
    }
    const Index run = steps_of_run<T>(launch, plan->plan, backward);
    const Index runs = (shape.steps + run - 1) / run;
    // In each run the last layer begins count - 1 steps after the first.
    cycles.push_back(static_cast<double>(shape.steps + runs * (count - 1)) * plan->cycles);
  }
  const auto request = request_of<T>(shape, backward);
  const Index gate_units = cell_shape(shape.cell).gates * shape.units;
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
void forward(const Shape& shape, const std::vector<ForwardLayer<T>>& layers, std::byte* workspace,
             void* stream) {
  ForwardCall<T>(shape).run(layers, workspace, stream);
}
template <class T>
void backward(const Shape& shape, const std::vector<BackwardLayer<T>>& layers, std::byte* workspace,
              void* stream) {
  BackwardCall<T>(shape).run(layers, workspace, stream);
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

#define RNNKERN_INSTANTIATE(T)                                                                   \
  template ChosenPlan plan_of<T>(const Shape&, bool);                                            \
  template LayerSplit layer_split<T>(const Shape&, int, bool);                                   \
  template Index forward_workspace<T>(const Shape&);                                             \
  template Index backward_workspace<T>(const Shape&);                                            \
  template void forward(const Shape&, const std::vector<ForwardLayer<T>>&, std::byte*, void*);   \
  template void backward(const Shape&, const std::vector<BackwardLayer<T>>&, std::byte*, void*); \
  template void matmul(const MatmulProblem<T>&, Compute, void*)
RNNKERN_INSTANTIATE(float);
RNNKERN_INSTANTIATE(double);
#undef RNNKERN_INSTANTIATE

}  // namespace rnnkern::cuda
