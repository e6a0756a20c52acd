// SPDX-License-Identifier: Apache-2.0
// Whether this processor, and what runs on it, have an instruction set. Apart from its kernels,
// whose file is compiled with flags that a processor without it must not meet.
#include "cpu/isa/detect.h"

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace rnnkern {

bool has_scalar() { return true; }
bool has_emulated_avx512bf16() { return true; }
bool has_emulated_amx() { return true; }

#if defined(__x86_64__)

namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  return __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) ? r : Registers{};
}

// Linux lends a process the tiles' registers when asked; the threads that it starts have them too.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, XCR0's bit
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}

bool has_avx512vnni() { return has_avx512() && cpuid(7, 0).ecx >> 11 & 1; }

bool has_avx512bf16() { return has_avx512() && cpuid(7, 1).eax >> 5 & 1; }

bool has_amx() {
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;
  const unsigned features = cpuid(7, 0).edx;
  return has_avx512bf16() && features & kTiles && features & kBfloat16 && may_use_tiles();
}

bool multiplies_pairs_slowly() { return __builtin_cpu_is("intel"); }

#else

bool multiplies_pairs_slowly() { return false; }

#endif

}  // namespace rnnkern
