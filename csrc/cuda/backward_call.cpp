// SPDX-License-Identifier: Apache-2.0
#include "cuda/call.h"

namespace rnnkern::cuda {
namespace {

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
      begin = std::max<Index>(end - this->chunk_steps_, 0);
      auto problem = this->template problem_of<BackwardStrand<T>>(space, layers, begin, end);
      for (int k = 0; k < shape.strands; ++k) {
        const auto& layer = this->layer_of(layers, k);
        auto& strand = problem.strand[k];
        strand.h_0 = layer.h_0, strand.c_0 = layer.c_0, strand.y = layer.y;
        strand.saved = layer.saved, strand.cells = layer.cells;
        strand.dy = layer.dy, strand.mask = layer.mask;
        strand.dh = layer.dh, strand.dc = layer.dc, strand.delta = space.chunk[k];
        strand.dh_now = space.scratch[k];
        strand.options = layer.options, strand.unit_weights = layer.parameters.unit_weights;
        strand.h_factors = layer.h_factors, strand.fresh_c = layer.fresh_c;
        strand.zone_h = layer.zone_h, strand.zone_c = layer.zone_c;
      }
      this->recurrent_.loops(shape.given_functions)
          .backward[shape.cell](this->grid(stream), problem);
      // Strand by strand, so that a shared dx is added to in one order.
      for (int k = 0; k < shape.strands; ++k) {
        const auto& layer = this->layer_of(layers, k);
        const auto rows = this->rows_of(begin, end, layer.reverse);
        if (rows.count > 0) add_gradients(layer, space.schedule, rows, space.chunk[k], stream);
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

  // Sums over rows: both operands are read transposed.
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
    for (int p = 0; p < cell.phase_count(); ++p) {
      args.b = previous_h(layer, rows.first, p);
      // Gates whose deltas stand side by side are one product.
      const int end = cell.phases[p].first + cell.phases[p].count;
      for (int gate = cell.phases[p].first, next; gate < end; gate = next) {
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
    sums(cell.preactivation_deltas(), cell.unit_weights * units, layer.dunit_weights);
  }

  Operand<T> previous_h(const BackwardLayer<T>& layer, Index first, int phase) const {
    const auto& cell = this->cell_;
    const Index units = this->shape_.units;
    Operand<T> h{};
    h.kind = Operand<T>::kPrevious, h.reverse = layer.reverse;
    h.first = static_cast<std::int32_t>(first), h.columns = static_cast<std::int32_t>(units);
    h.sequence = layer.y, h.initial = layer.h_0, h.factors = layer.h_factors;
    if (phase > 0)
      h.gate = layer.saved + cell.operand_gate * units, h.gate_row = cell.saved * units;
    return h;
  }
};

}  // namespace

template <class T>
void backward(const Shape& shape, const std::vector<BackwardLayer<T>>& layers, std::byte* workspace,
              void* stream) {
  BackwardCall<T>(shape).run(layers, workspace, stream);
}

template void backward(const Shape&, const std::vector<BackwardLayer<float>>&, std::byte*, void*);
template void backward(const Shape&, const std::vector<BackwardLayer<double>>&, std::byte*, void*);

}  // namespace rnnkern::cuda
