// SPDX-License-Identifier: Apache-2.0
// oneDNN's layers, of version 3: the simple RNN, the LSTM and both GRUs.
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

constexpr auto kDirection = dnnl::rnn_direction::unidirectional_left2right;
constexpr auto kTanh = dnnl::algorithm::eltwise_tanh;

// The caller's threads may be of the same OpenMP library: their number is left as it was.
class WithThreads {
 public:
  explicit WithThreads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  WithThreads(const WithThreads&) = delete;
  ~WithThreads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// Its arrays: a sequence, a state, weights in the format that a primitive picks, biases.
struct Shapes {
  memory::desc sequence, state, weights, bias;
};

// A gate of theirs: which it is of ours, and whether it is 1 minus ours, so that its rows change
// sign.
struct Gate {
  memory::dim ours;
  float sign;
};

struct Rnn {
  using Forward = dnnl::vanilla_rnn_forward;
  using Backward = dnnl::vanilla_rnn_backward;
  static constexpr Gate kGates[] = {{0, 1}};
  static constexpr bool kCellState = false, kOwnBias = false;

  static Forward::primitive_desc forward(const dnnl::engine& engine, dnnl::prop_kind kind,
                                         const Shapes& s) {
    return {engine,    kind,      kTanh,  kDirection, s.sequence, s.state,
            s.weights, s.weights, s.bias, s.sequence, s.state};
  }
  static Backward::primitive_desc backward(const dnnl::engine& engine, const Shapes& s,
                                           const Forward::primitive_desc& forward) {
    return {engine,     dnnl::prop_kind::backward,
            kTanh,      kDirection,
            s.sequence, s.state,
            s.weights,  s.weights,
            s.bias,     s.sequence,
            s.state,    s.sequence,
            s.state,    s.weights,
            s.weights,  s.bias,
            s.sequence, s.state,
            forward};
  }
};

template <class F, class B>
struct AnyGru {
  using Forward = F;
  using Backward = B;
  static constexpr Gate kGates[] = {{1, -1}, {0, 1}, {2, 1}};  // u, r, o
  static constexpr bool kCellState = false;

  static typename Forward::primitive_desc forward(const dnnl::engine& engine, dnnl::prop_kind kind,
                                                  const Shapes& s) {
    return {engine,    kind,      kDirection, s.sequence, s.state,
            s.weights, s.weights, s.bias,     s.sequence, s.state};
  }
  static typename Backward::primitive_desc backward(
      const dnnl::engine& engine, const Shapes& s,
      const typename Forward::primitive_desc& forward) {
    return {engine,     dnnl::prop_kind::backward,
            kDirection, s.sequence,
            s.state,    s.weights,
            s.weights,  s.bias,
            s.sequence, s.state,
            s.sequence, s.state,
            s.weights,  s.weights,
            s.bias,     s.sequence,
            s.state,    forward};
  }
};

struct GruBefore : AnyGru<dnnl::gru_forward, dnnl::gru_backward> {
  static constexpr bool kOwnBias = false;
};
struct GruAfter : AnyGru<dnnl::lbr_gru_forward, dnnl::lbr_gru_backward> {
  static constexpr bool kOwnBias = true;  // of the candidate's recurrent product
};

struct Lstm {
  using Forward = dnnl::lstm_forward;
  using Backward = dnnl::lstm_backward;
  static constexpr Gate kGates[] = {{0, 1}, {1, 1}, {2, 1}, {3, 1}};  // i, f, c, o
  static constexpr bool kCellState = true, kOwnBias = false;

  static Forward::primitive_desc forward(const dnnl::engine& engine, dnnl::prop_kind kind,
                                         const Shapes& s) {
    return {engine,    kind,      kDirection, s.sequence, s.state, s.state,
            s.weights, s.weights, s.bias,     s.sequence, s.state, s.state};
  }
  static Backward::primitive_desc backward(const dnnl::engine& engine, const Shapes& s,
                                           const Forward::primitive_desc& forward) {
    return {engine,     dnnl::prop_kind::backward,
            kDirection, s.sequence,
            s.state,    s.state,
            s.weights,  s.weights,
            s.bias,     s.sequence,
            s.state,    s.state,
            s.sequence, s.state,
            s.state,    s.weights,
            s.weights,  s.bias,
            s.sequence, s.state,
            s.state,    forward};
  }
};

class Peer {
 public:
  virtual ~Peer() = default;
  virtual void run(const float* x, const float* dy, float* y, float* dx) = 0;
};

template <class Kind>
class Layer : public Peer {
  static constexpr memory::dim kGates = sizeof(Kind::kGates) / sizeof(Gate);

 public:
  explicit Layer(const PeerLayer& ours)
      : training_(ours.training != 0),
        threads_(ours.threads),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_) {
    const memory::dim units = ours.units;
    const memory::dims weights{1, 1, units, kGates, units};
    const auto plain = [](const memory::dims& dims, Format format) {
      return memory::desc(dims, memory::data_type::f32, format);
    };
    const Shapes shapes{plain({ours.steps, ours.batch, units}, Format::tnc),
                        plain({1, 1, ours.batch, units}, Format::ldnc), plain(weights, Format::any),
                        plain({1, 1, kGates + Kind::kOwnBias, units}, Format::ldgo)};
    const auto forward = Kind::forward(
        engine_, training_ ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference,
        shapes);
    forward_ = typename Kind::Forward(forward);

    const auto plain_weights = plain(weights, Format::ldigo);
    w_ih_ = memory(plain_weights, engine_), w_hh_ = memory(plain_weights, engine_);
    const memory bias = zero(shapes.bias);
    for (memory::dim g = 0; g < kGates; ++g) {
      const Gate gate = Kind::kGates[g];
      for (memory::dim o = 0; o < units; ++o) {
        const memory::dim row = gate.ours * units + o;
        data(bias)[g * units + o] = gate.sign * ours.bias[row];
        for (memory::dim i = 0; i < units; ++i) {
          const memory::dim at = (i * kGates + g) * units + o;
          data(w_ih_)[at] = gate.sign * ours.w_ih[row * units + i];
          data(w_hh_)[at] = gate.sign * ours.w_hh[row * units + i];
        }
      }
    }
    if constexpr (Kind::kOwnBias) std::copy_n(ours.bias_hn, units, data(bias) + kGates * units);

    x_ = memory(shapes.sequence, engine_, nullptr), y_ = memory(shapes.sequence, engine_, nullptr);
    forward_arguments_ = {{DNNL_ARG_SRC_LAYER, x_},
                          {DNNL_ARG_SRC_ITER, zero(shapes.state)},
                          {DNNL_ARG_WEIGHTS_LAYER, memory(forward.weights_layer_desc(), engine_)},
                          {DNNL_ARG_WEIGHTS_ITER, memory(forward.weights_iter_desc(), engine_)},
                          {DNNL_ARG_BIAS, bias},
                          {DNNL_ARG_DST_LAYER, y_},
                          {DNNL_ARG_DST_ITER, memory(shapes.state, engine_)}};
    if constexpr (Kind::kCellState) {
      forward_arguments_[DNNL_ARG_SRC_ITER_C] = zero(shapes.state);
      forward_arguments_[DNNL_ARG_DST_ITER_C] = memory(shapes.state, engine_);
    }
    pack(forward_arguments_);
    if (!training_) return;

    forward_arguments_[DNNL_ARG_WORKSPACE] = memory(forward.workspace_desc(), engine_);
    const auto backward = Kind::backward(engine_, shapes, forward);
    backward_ = typename Kind::Backward(backward);
    dy_ = memory(shapes.sequence, engine_, nullptr),
    dx_ = memory(shapes.sequence, engine_, nullptr);
    gradients_ = {memory(backward.diff_weights_layer_desc(), engine_),
                  memory(backward.diff_weights_iter_desc(), engine_), memory(shapes.bias, engine_)};
    backward_arguments_ = forward_arguments_;
    for (const auto& [index, argument] :
         {std::pair{DNNL_ARG_WEIGHTS_LAYER, memory(backward.weights_layer_desc(), engine_)},
          std::pair{DNNL_ARG_WEIGHTS_ITER, memory(backward.weights_iter_desc(), engine_)},
          std::pair{DNNL_ARG_DIFF_SRC_LAYER, dx_},
          std::pair{DNNL_ARG_DIFF_SRC_ITER, memory(shapes.state, engine_)},
          std::pair{DNNL_ARG_DIFF_DST_LAYER, dy_},
          std::pair{DNNL_ARG_DIFF_DST_ITER, zero(shapes.state)},
          std::pair{DNNL_ARG_DIFF_WEIGHTS_LAYER, gradients_[0]},
          std::pair{DNNL_ARG_DIFF_WEIGHTS_ITER, gradients_[1]},
          std::pair{DNNL_ARG_DIFF_BIAS, gradients_[2]}})
      backward_arguments_[index] = argument;
    if constexpr (Kind::kCellState) {
      backward_arguments_[DNNL_ARG_DIFF_SRC_ITER_C] = memory(shapes.state, engine_);
      backward_arguments_[DNNL_ARG_DIFF_DST_ITER_C] = zero(shapes.state);
    }
  }

  void run(const float* x, const float* dy, float* y, float* dx) override {
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
  typename Kind::Forward forward_;
  typename Kind::Backward backward_;
  memory x_, y_, dy_, dx_, w_ih_, w_hh_;
  Arguments forward_arguments_, backward_arguments_;
  std::vector<memory> gradients_;
};

template <class Kind>
Peer* make(const PeerLayer& layer) {
  return new Layer<Kind>(layer);
}

}  // namespace

void* peer_new(const char* cell, const PeerLayer* layer, char* error, std::int64_t error_bytes) {
  return make_peer(error, error_bytes, [&] {
    struct Known {
      const char* cell;
      Peer* (*make)(const PeerLayer&);
    };
    for (const Known& known : {Known{"rnn", make<Rnn>}, Known{"gru_before", make<GruBefore>},
                               Known{"gru_after", make<GruAfter>}, Known{"lstm", make<Lstm>}}) {
      if (std::strcmp(cell, known.cell) == 0) return known.make(*layer);
    }
    throw std::invalid_argument("has no such cell");
  });
}

int peer_run(void* peer, const float* x, const float* dy, float* y, float* dx) {
  return run_peer([&] { static_cast<Peer*>(peer)->run(x, dy, y, dx); });
}

void peer_delete(void* peer) { delete static_cast<Peer*>(peer); }

const char* peer_version() {
  static const std::string text = [] {
    const dnnl_version_t& v = *dnnl_version();
    return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
  }();
  return text.c_str();
}
