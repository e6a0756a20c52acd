// SPDX-License-Identifier: Apache-2.0
#include "core/backend.h"

#include <cstdlib>
#include <stdexcept>
#include <utility>

#if defined(RNNKERN_AVX512BF16)
#include <cpuid.h>
#endif
#if defined(RNNKERN_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rnnkern {

namespace {

struct Candidate {
  const char* name;
  bool (*runs_here)();
  const Backend& (*get)();
};

#if defined(RNNKERN_AVX512)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
#endif

#if defined(RNNKERN_AVX512BF16)
bool has_avx512bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && eax >> 5 & 1;
}
#endif

#if defined(RNNKERN_AMX)
// Linux lends a process the tiles' registers when asked; the threads that it starts have them too.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, XCR0's bit
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;
  return has_avx512bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx & kTiles &&
         edx & kBfloat16 && may_use_tiles();
}
#endif

// Best first.
constexpr Candidate kCandidates[] = {
#if defined(RNNKERN_AMX)
    {"amx", has_amx, amx_backend},
#endif
#if defined(RNNKERN_AVX512BF16)
    {"avx512bf16", has_avx512bf16, avx512bf16_backend},
#endif
#if defined(RNNKERN_AVX512)
    {"avx512", has_avx512, avx512_backend},
#endif
#if defined(RNNKERN_AVX2)
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     avx2_backend},
#endif
    {"scalar", [] { return true; }, scalar_backend},
#if defined(RNNKERN_EMULATE)
    {"emulated-amx", [] { return true; }, emulated_amx_backend},
    {"emulated-avx512bf16", [] { return true; }, emulated_avx512bf16_backend},
#endif
};

Choice choose() {
  const auto& supported = supported_backends();
  const char* forced = std::getenv("RNNKERN_ISA");
  if (!forced || !*forced) {
    return {supported.front(), "the best that this processor runs"};
  }
  std::string known, here;
  for (const auto& candidate : kCandidates)
    known += std::string(known.empty() ? "" : ", ") + candidate.name;
  for (const auto* backend : supported) {
    if (std::string_view(backend->name) == forced) return {backend, "RNNKERN_ISA asks for it"};
    here += std::string(here.empty() ? "" : ", ") + backend->name;
  }
  throw std::runtime_error("RNNKERN_ISA must be one of those that this processor runs (" + here +
                           "), got '" + forced + "' (built: " + known + ")");
}

}  // namespace

const std::vector<const Backend*>& supported_backends() {
  static const std::vector<const Backend*> supported = [] {
    std::vector<const Backend*> found;
    for (const auto& candidate : kCandidates) {
      if (candidate.runs_here()) found.push_back(&candidate.get());
    }
#if defined(RNNKERN_AVX512BF16)
    // Intel's cores take two cycles for a vdpbf16ps, in which they do four FMAs on widened operands: twice
    // as many products (measured on Emerald Rapids).
    if (__builtin_cpu_is("intel") && found[0] == &avx512bf16_backend())
      std::swap(found[0], found[1]);
#endif
    return found;
  }();
  return supported;
}

const Choice& chosen_backend() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace rnnkern
