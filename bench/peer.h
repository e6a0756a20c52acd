// SPDX-License-Identifier: Apache-2.0
// What python/rnnkern/bench/native.py calls of a library: one layer, one direction, float32, I = H.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>

#define PEER_EXPORT extern "C" [[gnu::visibility("default")]]

// What a layer is made with, gates stacked as in rnnkern.
struct PeerLayer {
  std::int64_t steps, batch, units;
  std::int32_t training, threads;
  const float *w_ih, *w_hh;  // (G·H, H)
  const float* bias;         // (G·H)
  const float* bias_hn;      // (H), where the cell has one
};

// Null, and the reason in words, where the library cannot do it.
PEER_EXPORT void* peer_new(const char* cell, const PeerLayer* layer, char* error,
                           std::int64_t error_bytes);

// x, dy, y and dx are (T, B, H); dy is read and dx written when training, and the gradients of the
// parameters stay in the adapter. Anything but 0 is a failure.
PEER_EXPORT int peer_run(void* peer, const float* x, const float* dy, float* y, float* dx);

PEER_EXPORT void peer_delete(void* peer);

// Of the library, as 2.6.3.
PEER_EXPORT const char* peer_version();

// For peer_new: what make() gives, or the words of what it throws.
template <class F>
void* make_peer(char* error, std::int64_t error_bytes, F make) {
  try {
    return make();
  } catch (const std::exception& e) {
    std::snprintf(error, static_cast<std::size_t>(error_bytes), "%s", e.what());
    return nullptr;
  }
}

// For peer_run.
template <class F>
int run_peer(F run) {
  try {
    run();
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}
