// What python/rnnkern/bench/native.py calls of a library: one layer, one direction, float32, I = H.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>

extern "C" {

// A layer with the parameters w_ih (G·H, H), w_hh (G·H, H) and bias (G·H), gates stacked as in rnnkern;
// null, and the reason in words, where the library cannot do it.
[[gnu::visibility("default")]] void* peer_new(const char* cell, std::int64_t steps,
                                              std::int64_t batch, std::int64_t units, int training,
                                              int threads, const float* w_ih, const float* w_hh,
                                              const float* bias, char* error,
                                              std::int64_t error_bytes);

// x, dy, y and dx are (T, B, H); dy is read and dx written when training, and the gradients of the
// parameters stay in the adapter. Anything but 0 is a failure.
[[gnu::visibility("default")]] int peer_run(void* peer, const float* x, const float* dy, float* y,
                                            float* dx);

[[gnu::visibility("default")]] void peer_delete(void* peer);
}
