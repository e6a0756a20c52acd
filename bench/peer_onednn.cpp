// SPDX-License-Identifier: Apache-2.0
// oneDNN's reset-before GRU.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "peer.h"

namespace {

using dnnl::memory;
using Format = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;

constexpr memory::dim kGates = 3;

// The caller's threads may be of the same OpenMP library: their number is left as it was.
class WithThreads {
 public:
  explicit WithThreads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  WithThreads(const WithThreads&) = delete;
  ~WithThreads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

class Gru {
 public:
  Gru(memory::dim steps, memory::dim batch, memory::dim units, bool training, int threads,
      const float* w_ih, const float* w_hh, const float* bias)
      : training_(training),
        threads_(threads),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_) {
    const memory::dims sequence{steps, batch, units}, state{1, 1, batch, units},
        weights{1, 1, units, kGates, units};
    const auto plain = [](const memory::dims& dims, Format format) {
      return memory::desc(dims, memory::data_type::f32, format);
    };
    const auto any = plain(weights, Format::any);
    const auto tnc = plain(sequence, Format::tnc), ldnc = plain(state, Format::ldnc),
               ldgo = plain({1, 1, kGates, units}, Format::ldgo);
    const auto direction = dnnl::rnn_direction::unidirectional_left2right;
    const auto kind =
        training ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference;
    const dnnl::gru_forward::primitive_desc forward(
        {kind, direction, tnc, ldnc, any, any, ldgo, tnc, ldnc}, engine_);
    forward_ = dnnl::gru_forward(forward);

    // Gates in their order, u r o; their u is 1 - ours, so its rows change sign.
    const auto plain_weights = plain(weights, Format::ldigo);
    w_ih_ = memory(plain_weights, engine_), w_hh_ = memory(plain_weights, engine_);
    bias_ = memory(ldgo, engine_);
    constexpr memory::dim kOurs[] = {1, 0, 2};
    constexpr float kSign[] = {-1, 1, 1};
    for (memory::dim g = 0; g < kGates; ++g) {
      for (memory::dim o = 0; o < units; ++o) {
        const memory::dim row = kOurs[g] * units + o;
        data(bias_)[g * units + o] = kSign[g] * bias[row];
        for (memory::dim i = 0; i < units; ++i) {
          const memory::dim at = (i * kGates + g) * units + o;
          data(w_ih_)[at] = kSign[g] * w_ih[row * units + i];
          data(w_hh_)[at] = kSign[g] * w_hh[row * units + i];
        }
      }
    }

    x_ = memory(tnc, engine_, nullptr), y_ = memory(tnc, engine_, nullptr);
    forward_arguments_ = {{DNNL_ARG_SRC_LAYER, x_},
                          {DNNL_ARG_SRC_ITER, zero(ldnc)},
                          {DNNL_ARG_WEIGHTS_LAYER, memory(forward.weights_layer_desc(), engine_)},
                          {DNNL_ARG_WEIGHTS_ITER, memory(forward.weights_iter_desc(), engine_)},
                          {DNNL_ARG_BIAS, bias_},
                          {DNNL_ARG_DST_LAYER, y_},
                          {DNNL_ARG_DST_ITER, memory(ldnc, engine_)}};
    pack(forward_arguments_);
    if (!training) return;

    forward_arguments_[DNNL_ARG_WORKSPACE] = memory(forward.workspace_desc(), engine_);
    const dnnl::gru_backward::primitive_desc backward(
        {dnnl::prop_kind::backward, direction, tnc, ldnc, any, any, ldgo, tnc, ldnc, tnc, ldnc, any,
         any, ldgo, tnc, ldnc},
        engine_, forward);
    backward_ = dnnl::gru_backward(backward);
    dy_ = memory(tnc, engine_, nullptr), dx_ = memory(tnc, engine_, nullptr);
    backward_arguments_ = forward_arguments_;
    backward_arguments_[DNNL_ARG_WEIGHTS_LAYER] = memory(backward.weights_layer_desc(), engine_);
    backward_arguments_[DNNL_ARG_WEIGHTS_ITER] = memory(backward.weights_iter_desc(), engine_);
    backward_arguments_[DNNL_ARG_DIFF_SRC_LAYER] = dx_;
    backward_arguments_[DNNL_ARG_DIFF_SRC_ITER] = memory(ldnc, engine_);
    backward_arguments_[DNNL_ARG_DIFF_DST_LAYER] = dy_;
    backward_arguments_[DNNL_ARG_DIFF_DST_ITER] = zero(ldnc);
    gradients_ = {memory(backward.diff_weights_layer_desc(), engine_),
                  memory(backward.diff_weights_iter_desc(), engine_), memory(ldgo, engine_)};
    backward_arguments_[DNNL_ARG_DIFF_WEIGHTS_LAYER] = gradients_[0];
    backward_arguments_[DNNL_ARG_DIFF_WEIGHTS_ITER] = gradients_[1];
    backward_arguments_[DNNL_ARG_DIFF_BIAS] = gradients_[2];
  }

  void run(const float* x, const float* dy, float* y, float* dx) {
    const WithThreads within(threads_);
    x_.set_data_handle(const_cast<float*>(x));
    y_.set_data_handle(y);
    // A step of training has new weights every time; those of inference were packed once.
    if (training_) pack(forward_arguments_);
    forward_.execute(stream_, forward_arguments_);
    if (training_) {
      dy_.set_data_handle(const_cast<float*>(dy));
      dx_.set_data_handle(dx);
      pack(backward_arguments_);
      for (auto& gradient : gradients_) clear(gradient);  // they are added to
      backward_.execute(stream_, backward_arguments_);
    }
    stream_.wait();
  }

 private:
  static float* data(const memory& m) { return static_cast<float*>(m.get_data_handle()); }

  static void clear(const memory& m) {
    std::fill_n(static_cast<char*>(m.get_data_handle()), m.get_desc().get_size(), char(0));
  }

  memory zero(const memory::desc& desc) const {
    memory m(desc, engine_);
    clear(m);
    return m;
  }

  // The weights in the format that a primitive wants.
  void pack(const Arguments& arguments) {
    for (const auto& [index, from] :
         {std::pair{DNNL_ARG_WEIGHTS_LAYER, &w_ih_}, std::pair{DNNL_ARG_WEIGHTS_ITER, &w_hh_}}) {
      memory to = arguments.at(index);
      dnnl::reorder(*from, to).execute(stream_, *from, to);
    }
    stream_.wait();
  }

  bool training_;
  int threads_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::gru_forward forward_;
  dnnl::gru_backward backward_;
  memory x_, y_, dy_, dx_, w_ih_, w_hh_, bias_;
  Arguments forward_arguments_, backward_arguments_;
  std::vector<memory> gradients_;
};

}  // namespace

void* peer_new(const char* cell, std::int64_t steps, std::int64_t batch, std::int64_t units,
               int training, int threads, const float* w_ih, const float* w_hh, const float* bias,
               char* error, std::int64_t error_bytes) {
  return make_peer(error, error_bytes, [&] {
    if (std::strcmp(cell, "gru_before") != 0)
      throw std::invalid_argument("is measured on the reset-before GRU alone");
    return new Gru(steps, batch, units, training != 0, threads, w_ih, w_hh, bias);
  });
}

int peer_run(void* peer, const float* x, const float* dy, float* y, float* dx) {
  return run_peer([&] { static_cast<Gru*>(peer)->run(x, dy, y, dx); });
}

void peer_delete(void* peer) { delete static_cast<Gru*>(peer); }

const char* peer_version() {
  static const std::string text = [] {
    const dnnl_version_t& v = *dnnl_version();
    return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
  }();
  return text.c_str();
}
