// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/gemm/tall_tiles.h"

#if !defined(__AMX_TILE__) || !defined(__AMX_BF16__)
#error "isa_amx.cpp needs AMX flags"
#endif

namespace rnnkern {

const Backend& avx512bf16_backend();  // isa_avx512bf16.cpp
namespace {

// Written as assembly: the compilers' intrinsics want a register's number as a literal, and GCC's
// do not say that the whole shape is read.
struct Amx {
  struct alignas(64) Shape {  // of the tile registers, as LDTILECFG reads it
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };

  static void configure(int rows) {
    if (rows == configured) return;
    Shape shape;
    for (int t = 0; t < 8; ++t) {
      shape.row_bytes[t] = 64;
      shape.rows[t] = static_cast<std::uint8_t>(t < 5 ? rows : 16);
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
    configured = rows;
  }
  static void release() {
    if (configured == 0) return;
    asm volatile("tilerelease" ::: "memory");
    configured = 0;
  }
  template <int T>
  static void load(const void* p, Index distance) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(distance), "i"(T) : "memory");
  }
  template <int T>
  static void store(void* p, Index distance) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(distance), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  static thread_local int configured;  // rows, or 0
};

thread_local int Amx::configured = 0;

}  // namespace

const Backend& amx_backend() {
  static const Backend backend = [] {
    Backend b = avx512bf16_backend();
    b.name = "amx";
    b.bfloat16_product = "AMX tiles (tdpbf16ps); AVX512-BF16 (vdpbf16ps) for fewer than 16 rows";
    b.tall_tiles = &tall_tiles_of<Amx>;
    return b;
  }();
  return backend;
}

}  // namespace rnnkern
