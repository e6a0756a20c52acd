// SPDX-License-Identifier: Apache-2.0
// What the operands of a product are stored as while they are multiplied: one struct a compute mode.
//   Storage     an operand's type;  Sum  that of the sums, and of all state
//   round(v)    the nearest operand;  widen(s)  its value
//   tensor      whether the tensor cores multiply it
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/block.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace rnnkern::cuda {

template <class T>
struct Exact {
  using Storage = T;
  using Sum = T;
  static constexpr bool tensor = false;

  RNNKERN_DEVICE static T round(T v) { return v; }
  RNNKERN_DEVICE static T widen(T s) { return s; }
};

// The upper 19 bits of a float32, rounded as cvt.rna.tf32: half-way cases away from zero.
struct TensorFloat32 {
  using Storage = float;
  using Sum = float;
  static constexpr bool tensor = true;

  RNNKERN_DEVICE static float round(float v) {
    const auto bits = std::bit_cast<std::uint32_t>(v);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return std::bit_cast<float>((finite ? bits + 0x1000u : bits) & 0xffffe000u);
  }
  RNNKERN_DEVICE static float widen(float s) { return s; }
};

// The upper 16 bits, half-way cases to even.
struct BrainFloat16 {
  using Storage = std::uint16_t;
  using Sum = float;
  static constexpr bool tensor = true;

  RNNKERN_DEVICE static std::uint16_t round(float v) {
    const auto bits = std::bit_cast<std::uint32_t>(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  RNNKERN_DEVICE static float widen(std::uint16_t s) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(s) << 16);
  }
};

struct Float16 {
#ifdef __CUDACC__
  using Half = __half;
#else
  using Half = _Float16;
#endif
  using Storage = std::uint16_t;
  using Sum = float;
  static constexpr bool tensor = true;

  RNNKERN_DEVICE static std::uint16_t round(float v) {
    return std::bit_cast<std::uint16_t>(static_cast<Half>(v));
  }
  RNNKERN_DEVICE static float widen(std::uint16_t s) {
    return static_cast<float>(std::bit_cast<Half>(s));
  }
};

}  // namespace rnnkern::cuda
