// SPDX-License-Identifier: Apache-2.0
#include "cuda/call.h"

namespace rnnkern::cuda {
namespace {

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
      end = std::min(begin + this->chunk_steps_, shape.steps);
      auto problem = this->template problem_of<ForwardStrand<T>>(space, layers, begin, end);
      for (int k = 0; k < shape.strands; ++k) {
        const auto& layer = this->layer_of(layers, k);
        if (!this->fed(k)) {
          multiply_inputs(layer, space.schedule, this->rows_of(begin, end, layer.reverse),
                          space.chunk[k], stream);
        }
        auto& strand = problem.strand[k];
        strand.x_part = space.chunk[k];
        strand.bias = layer.parameters.bias, strand.bias_hn = layer.parameters.bias_hn;
        strand.h = layer.h, strand.c = layer.c, strand.y = layer.y, strand.mask = layer.mask;
        strand.saved = layer.saved, strand.cells = layer.cells, strand.scratch = space.scratch[k];
        strand.options = layer.options, strand.unit_weights = layer.parameters.unit_weights;
        strand.h_factors = layer.h_factors, strand.fresh_c = layer.fresh_c;
        strand.zone_h = layer.zone_h, strand.zone_c = layer.zone_c;
      }
      this->recurrent_.loops(shape.given_functions)
          .forward[shape.cell](this->grid(stream), problem);
    }
  }

 private:
  // x_part of a chunk: W_ih x + b.
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

}  // namespace

template <class T>
void forward(const Shape& shape, const std::vector<ForwardLayer<T>>& layers, std::byte* workspace,
             void* stream) {
  ForwardCall<T>(shape).run(layers, workspace, stream);
}

template void forward(const Shape&, const std::vector<ForwardLayer<float>>&, std::byte*, void*);
template void forward(const Shape&, const std::vector<ForwardLayer<double>>&, std::byte*, void*);

}  // namespace rnnkern::cuda
