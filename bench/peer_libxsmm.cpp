// SPDX-License-Identifier: Apache-2.0
// libxsmm's cells: RNN, reset-before GRU and LSTM, weights blocked, activations as they stand.
#include <libxsmm.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "peer.h"

namespace {

void check(libxsmm_dnn_err_t status, const char* what) {
  const bool warned = status >= LIBXSMM_DNN_WARN_RNN_SUBOPTIMAL_N_BLOCKING &&
                      status <= LIBXSMM_DNN_WARN_RNN_SUBOPTIMAL_K_BLOCKING;
  if (status != LIBXSMM_DNN_SUCCESS && !warned)
    throw std::runtime_error(std::string("cannot do it: ") + what + ": " +
                             libxsmm_dnn_get_error(status));
}

// Their gates in their order: which of ours, and the sign of its rows (a GRU's u is 1 - ours).
struct Gate {
  std::int64_t ours;
  float sign;
};

struct Cell {
  libxsmm_dnn_rnncell_type type;
  std::vector<Gate> gates;
};

const std::map<std::string, Cell>& cells() {
  static const std::map<std::string, Cell> all{
      {"rnn", {LIBXSMM_DNN_RNNCELL_RNN_TANH, {{0, 1.0f}}}},
      {"gru_before", {LIBXSMM_DNN_RNNCELL_GRU, {{0, 1.0f}, {1, -1.0f}, {2, 1.0f}}}},
      // i, c~, f, o
      {"lstm", {LIBXSMM_DNN_RNNCELL_LSTM, {{0, 1.0f}, {2, 1.0f}, {1, 1.0f}, {3, 1.0f}}}}};
  return all;
}

// Its AVX-512 code writes past the caches, which takes whole cache lines.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const = default;
};

class Network {
 public:
  Network(const Cell& cell, std::int64_t steps, std::int64_t batch, std::int64_t units,
          bool training, int threads, const float* w_ih, const float* w_hh, const float* bias)
      : training_(training), threads_(threads), sequence_(steps * batch * units) {
    const auto block = block_of(units);
    libxsmm_dnn_rnncell_desc desc{};
    desc.threads = threads;
    desc.K = desc.C = static_cast<libxsmm_blasint>(units);
    desc.N = static_cast<libxsmm_blasint>(batch);
    desc.max_T = static_cast<libxsmm_blasint>(steps);
    desc.bk = desc.bc = static_cast<libxsmm_blasint>(block);
    desc.bn = static_cast<libxsmm_blasint>(batch % 16 == 0 ? 16 : batch);
    desc.cell_type = cell.type;
    desc.datatype_in = desc.datatype_out = LIBXSMM_DNN_DATATYPE_F32;
    desc.buffer_format = LIBXSMM_DNN_TENSOR_FORMAT_NC;
    desc.filter_format = LIBXSMM_DNN_TENSOR_FORMAT_CKPACKED;
    libxsmm_dnn_err_t status = LIBXSMM_DNN_SUCCESS;
    handle_ = libxsmm_dnn_create_rnncell(desc, &status);
    check(status, "create");
    try {
      set_up(cell, steps, batch, units, block, w_ih, w_hh, bias);
    } catch (...) {
      release();
      throw;
    }
  }
  Network(const Network&) = delete;
  ~Network() { release(); }

  void run(const float* x, const float* dy, float* y, float* dx) {
    point(x_, x), point(h_, y);
    execute(LIBXSMM_DNN_COMPUTE_KIND_FWD);
    if (!training_) return;
    point(dh_, dy), point(dx_, dx);
    std::fill_n(dx, sequence_, 0.0f);  // some cells add to it, as all do to the others
    for (auto* gradient : gradients_) std::fill(gradient->begin(), gradient->end(), 0.0f);
    execute(LIBXSMM_DNN_COMPUTE_KIND_BWDUPD);
  }

 private:
  using Numbers = std::vector<float, LineAllocator<float>>;

  static std::int64_t block_of(std::int64_t units) {
    for (const std::int64_t block : {64, 32, 16, 8}) {
      if (units % block == 0) return block;
    }
    return units;
  }

  void set_up(const Cell& cell, std::int64_t steps, std::int64_t batch, std::int64_t units,
              std::int64_t block, const float* w_ih, const float* w_hh, const float* bias) {
    const auto gates = cell.gates.size();
    const auto square = static_cast<std::size_t>(units * units),
               rows = static_cast<std::size_t>(units),
               state = static_cast<std::size_t>(batch * units),
               sequence = state * static_cast<std::size_t>(steps);
    // (gate, block of outputs k, block of inputs c, c, k), and with k and c changed about, which
    // some backward passes want. Packed once, also for training, where it would be every step's work.
    Numbers w(gates * square), r(gates * square), w_turned(gates * square),
        r_turned(gates * square), b(gates * rows);
    const auto blocked = [&](std::size_t g, std::int64_t major, std::int64_t minor) {
      const std::int64_t tile = major / block * (units / block) + minor / block;
      return g * square +
             static_cast<std::size_t>((tile * block + minor % block) * block + major % block);
    };
    for (std::size_t g = 0; g < gates; ++g) {
      const auto [ours, sign] = cell.gates[g];
      for (std::int64_t k = 0; k < units; ++k) {
        const std::int64_t row = ours * units + k;
        b[g * rows + static_cast<std::size_t>(k)] = sign * bias[row];
        for (std::int64_t c = 0; c < units; ++c) {
          w[blocked(g, k, c)] = w_turned[blocked(g, c, k)] = sign * w_ih[row * units + c];
          r[blocked(g, k, c)] = r_turned[blocked(g, c, k)] = sign * w_hh[row * units + c];
        }
      }
    }
    const auto zeros = [](std::size_t size) { return Numbers(size); };
    x_ = bind(LIBXSMM_DNN_RNN_REGULAR_INPUT, nullptr);
    h_ = bind(LIBXSMM_DNN_RNN_REGULAR_HIDDEN_STATE, nullptr);
    own(LIBXSMM_DNN_RNN_REGULAR_HIDDEN_STATE_PREV, zeros(state));
    own(LIBXSMM_DNN_RNN_REGULAR_WEIGHT, std::move(w));
    own(LIBXSMM_DNN_RNN_REGULAR_RECUR_WEIGHT, std::move(r));
    own(LIBXSMM_DNN_RNN_REGULAR_WEIGHT_TRANS, std::move(w_turned));
    own(LIBXSMM_DNN_RNN_REGULAR_RECUR_WEIGHT_TRANS, std::move(r_turned));
    own(LIBXSMM_DNN_RNN_REGULAR_BIAS, std::move(b));
    const bool lstm = cell.type == LIBXSMM_DNN_RNNCELL_LSTM;
    if (lstm) {
      own(LIBXSMM_DNN_RNN_REGULAR_CS_PREV, zeros(state));
      own(LIBXSMM_DNN_RNN_REGULAR_CS, zeros(sequence));
    }
    if (gates > 1) {
      for (const auto type : {LIBXSMM_DNN_RNN_INTERNAL_I, LIBXSMM_DNN_RNN_INTERNAL_F,
                              LIBXSMM_DNN_RNN_INTERNAL_O, LIBXSMM_DNN_RNN_INTERNAL_CI})
        own(type, zeros(sequence));
    }
    if (lstm) {
      own(LIBXSMM_DNN_RNN_INTERNAL_CO, zeros(sequence));
      check(libxsmm_dnn_rnncell_allocate_forget_bias(handle_, 0.0f), "forget bias");
    }
    auto kind = LIBXSMM_DNN_COMPUTE_KIND_FWD;
    if (training_) {
      kind = LIBXSMM_DNN_COMPUTE_KIND_ALL;
      dx_ = bind(LIBXSMM_DNN_RNN_GRADIENT_INPUT, nullptr);
      dh_ = bind(LIBXSMM_DNN_RNN_GRADIENT_HIDDEN_STATE, nullptr);
      own(LIBXSMM_DNN_RNN_GRADIENT_HIDDEN_STATE_PREV, zeros(state));
      if (lstm) {
        own(LIBXSMM_DNN_RNN_GRADIENT_CS_PREV, zeros(state));
        own(LIBXSMM_DNN_RNN_GRADIENT_CS, zeros(state));
      }
      gradients_ = {&own(LIBXSMM_DNN_RNN_GRADIENT_WEIGHT, zeros(gates * square)),
                    &own(LIBXSMM_DNN_RNN_GRADIENT_RECUR_WEIGHT, zeros(gates * square)),
                    &own(LIBXSMM_DNN_RNN_GRADIENT_BIAS, zeros(gates * rows))};
    }
    libxsmm_dnn_err_t status = LIBXSMM_DNN_SUCCESS;
    for (const bool internal : {false, true}) {
      const auto bytes = internal
                             ? libxsmm_dnn_rnncell_get_internalstate_size(handle_, kind, &status)
                             : libxsmm_dnn_rnncell_get_scratch_size(handle_, kind, &status);
      check(status, "size of scratch");
      if (bytes == 0) continue;
      scratch_.push_back(libxsmm_aligned_malloc(bytes, 2097152));
      std::memset(scratch_.back(), 0, bytes);
      check(internal ? libxsmm_dnn_rnncell_bind_internalstate(handle_, kind, scratch_.back())
                     : libxsmm_dnn_rnncell_bind_scratch(handle_, kind, scratch_.back()),
            "scratch");
    }
  }

  libxsmm_dnn_tensor* bind(libxsmm_dnn_tensor_type type, const float* data) {
    libxsmm_dnn_err_t status = LIBXSMM_DNN_SUCCESS;
    auto* layout = libxsmm_dnn_rnncell_create_tensor_datalayout(handle_, type, &status);
    check(status, "layout");
    // Linking wants memory; run() brings the callers' own.
    static const float nothing = 0;
    auto* tensor = libxsmm_dnn_link_tensor(layout, data ? data : &nothing, &status);
    check(status, "tensor");
    libxsmm_dnn_destroy_tensor_datalayout(layout);
    check(libxsmm_dnn_rnncell_bind_tensor(handle_, tensor, type), "bind");
    tensors_.push_back({tensor, type});
    return tensor;
  }

  Numbers& own(libxsmm_dnn_tensor_type type, Numbers&& numbers) {
    auto& kept = owned_[type] = std::move(numbers);
    bind(type, kept.data());
    return kept;
  }

  static void point(libxsmm_dnn_tensor* tensor, const float* data) {
    check(libxsmm_dnn_set_tensor_data_ptr(tensor, data), "data");
  }

  void execute(libxsmm_dnn_compute_kind kind) {
    libxsmm_dnn_err_t failed = LIBXSMM_DNN_SUCCESS;
#pragma omp parallel num_threads(threads_)
    {
      const auto status = libxsmm_dnn_rnncell_execute_st(handle_, kind, 0, omp_get_thread_num());
      if (status != LIBXSMM_DNN_SUCCESS) {
#pragma omp critical
        failed = status;
      }
    }
    check(failed, "execute");
  }

  void release() {
    for (const auto& [tensor, type] : tensors_) {
      libxsmm_dnn_rnncell_release_tensor(handle_, type);
      libxsmm_dnn_destroy_tensor(tensor);
    }
    libxsmm_dnn_destroy_rnncell(handle_);
    for (void* memory : scratch_) libxsmm_free(memory);
  }

  bool training_;
  int threads_;
  std::int64_t sequence_;  // numbers of x
  libxsmm_dnn_rnncell* handle_ = nullptr;
  libxsmm_dnn_tensor *x_ = nullptr, *h_ = nullptr, *dx_ = nullptr, *dh_ = nullptr;
  std::vector<std::pair<libxsmm_dnn_tensor*, libxsmm_dnn_tensor_type>> tensors_;
  std::map<libxsmm_dnn_tensor_type, Numbers> owned_;
  std::vector<Numbers*> gradients_;
  std::vector<void*> scratch_;
};

}  // namespace

void* peer_new(const char* cell, const PeerLayer* layer, char* error, std::int64_t error_bytes) {
  return make_peer(error, error_bytes, [&] {
    const auto found = cells().find(cell);
    if (found == cells().end()) throw std::invalid_argument("has no such cell");
    return new Network(found->second, layer->steps, layer->batch, layer->units,
                       layer->training != 0, layer->threads, layer->w_ih, layer->w_hh, layer->bias);
  });
}

int peer_run(void* peer, const float* x, const float* dy, float* y, float* dx) {
  return run_peer([&] { static_cast<Network*>(peer)->run(x, dy, y, dx); });
}

void peer_delete(void* peer) { delete static_cast<Network*>(peer); }

const char* peer_version() { return LIBXSMM_CONFIG_VERSION; }
