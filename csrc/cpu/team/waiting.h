// SPDX-License-Identifier: Apache-2.0
// How a thread waits: it spins a moment, then sleeps until it is woken.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rnnkern {

using Nanoseconds = std::int64_t;
inline constexpr Nanoseconds kMicrosecond = 1000, kMillisecond = 1000 * kMicrosecond;

inline Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Spinning beats sleeping while every thread has a core; who has waited longer probably waits for one
// that has none. To be woken takes up to 150 us on a virtual machine: with less spinning than that, who is
// woken late would make the others sleep, step after step.
inline constexpr Nanoseconds kWake = 150 * kMicrosecond, kSpin = 200 * kMicrosecond;

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether it came to be within that time.
template <class Ready>
bool spin_until(Nanoseconds limit, Ready ready) {
  Nanoseconds end = 0;
  for (unsigned turn = 1;; ++turn) {
    if (ready()) return true;
    pause_briefly();
    if (turn % 32 != 0) continue;
    const Nanoseconds time = now();
    if (end == 0) end = time + limit;
    if (time >= end) return false;
  }
}

// May return early.
inline void sleep_while(std::atomic<int>& word, int value) {
#ifdef __linux__
  static_assert(sizeof word == sizeof(int));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  word.wait(value);
#endif
}

inline void wake_all(std::atomic<int>& word) {
#ifdef __linux__
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#else
  word.notify_all();
#endif
}

}  // namespace rnnkern
