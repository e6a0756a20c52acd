// SPDX-License-Identifier: Apache-2.0
// The lane contract: what a cell's equations and the matrix product may ask of a vector type.
//
// A lane V holds V::size values of type V::value:
//   V(s)                        every element s
//   V::load(p), v.store(p)      size elements, no alignment asked
//   V::load_pair(p, a, b), V::store_pair(p, a, b)   of float lanes: 2·size Bfloat16, one for a, one
//   for b and so on, widened to floats; storing keeps a float's upper half
//   round_to_bfloat16(v)        of float lanes: the nearest values that a Bfloat16 holds, ties to even
//   V::load(p, n), v.store(p, n)  the first n < size elements; the others load as 0 and are not stored
//   + - * /, sqrt, fma(a, b, c) = a*b + c, min, max (the second operand where either is NaN), abs,
//   copy_sign(magnitude, sign), exp2_integer(n) = 2^n for integral n in [-126, 127],
//   positive(x, v) = x > 0 ? v : 0,
//   quotient(a, b) = a / b to within one unit in the last place, for b in [1, 2^126]: a division, or
//   what is faster,
//   interleave(a, b): a0 b0 a1 b1 ..., its first half put in a and its second in b
//   V::registers                how many of them the register file holds
// Every instruction set adds one float and one double lane; the one-lane struct below is the baseline
// on any processor, and a type of its own so that no overload for a bare double can be taken by mistake.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

// On functions that also run on a GPU; on a processor they are part of what calls them. Those that are
// called are calls of their own on both.
#ifdef __CUDACC__
#define RNNKERN_DEVICE __host__ __device__
#define RNNKERN_DEVICE_CALLED __host__ __device__ __noinline__
#else
#define RNNKERN_DEVICE __attribute__((always_inline))
#define RNNKERN_DEVICE_CALLED __attribute__((noinline))
#endif

namespace rnnkern {

// An argument of those, of some words: a copy on a GPU, which could not tell what memory it is in behind a
// pointer; on a processor that would have to be taken apart.
#ifdef __CUDACC__
template <class T>
using CalledWith = T;
#else
template <class T>
using CalledWith = const T&;
#endif

using Index = std::ptrdiff_t;

// The upper half of a float32.
struct Bfloat16 {
  std::uint16_t bits;
};

// Adding just below half of the last kept bit, or half where that bit is 1, carries as rounding to
// the nearest does, ties to even. A NaN is made quiet instead, so that it stays one.
[[gnu::always_inline]] inline float round_to_bfloat16(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  const std::uint32_t changed = v == v ? bits + 0x7FFFu + (bits >> 16 & 1u) : bits | 0x400000u;
  return std::bit_cast<float>(changed & 0xFFFF0000u);
}

// a / b by r, which is 1 / b to within one unit in the last place: a·r, and what a Newton step adds.
// To within one unit in the last place, where no product of these is too small for a normal number.
template <class T>
RNNKERN_DEVICE inline T quotient_by(T a, T b, T r) {
  const T q = a * r;
  return std::fma(std::fma(-q, b, a), r, q);
}

template <class T>
struct Scalar {
  using value = T;
  static constexpr int size = 1;
  static constexpr int registers = 16;

  T v;

  Scalar() = default;
  RNNKERN_DEVICE explicit Scalar(T s) : v(s) {}

  RNNKERN_DEVICE static Scalar load(const T* p) { return Scalar(*p); }
  static void load_pair(const Bfloat16* p, Scalar& a, Scalar& b)
    requires std::is_same_v<T, float>
  {
    a.v = std::bit_cast<float>(std::uint32_t{p[0].bits} << 16);
    b.v = std::bit_cast<float>(std::uint32_t{p[1].bits} << 16);
  }
  RNNKERN_DEVICE static void store_pair(Bfloat16* p, Scalar a, Scalar b)
    requires std::is_same_v<T, float>
  {
    p[0].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(a.v) >> 16);
    p[1].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(b.v) >> 16);
  }
  RNNKERN_DEVICE friend Scalar round_to_bfloat16(Scalar v)
    requires std::is_same_v<T, float>
  {
    return Scalar(round_to_bfloat16(v.v));
  }
  RNNKERN_DEVICE static Scalar load(const T* p, Index n) { return Scalar(n > 0 ? *p : T(0)); }
  RNNKERN_DEVICE void store(T* p) const { *p = v; }
  RNNKERN_DEVICE void store(T* p, Index n) const {
    if (n > 0) *p = v;
  }

  RNNKERN_DEVICE friend Scalar operator+(Scalar a, Scalar b) { return Scalar(a.v + b.v); }
  RNNKERN_DEVICE friend Scalar operator-(Scalar a, Scalar b) { return Scalar(a.v - b.v); }
  RNNKERN_DEVICE friend Scalar operator*(Scalar a, Scalar b) { return Scalar(a.v * b.v); }
  RNNKERN_DEVICE friend Scalar operator/(Scalar a, Scalar b) { return Scalar(a.v / b.v); }
  RNNKERN_DEVICE friend Scalar sqrt(Scalar a) { return Scalar(std::sqrt(a.v)); }
  RNNKERN_DEVICE friend Scalar quotient(Scalar a, Scalar b) {
#ifdef __CUDA_ARCH__
    // A division has branches, behind which a GPU computes one gate after the other.
    if constexpr (sizeof(T) == sizeof(float)) {
      float r;
      asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b.v));
      return Scalar(quotient_by(a.v, b.v, r));
    }
#endif
    return a / b;
  }
  RNNKERN_DEVICE friend Scalar fma(Scalar a, Scalar b, Scalar c) { return Scalar(a.v * b.v + c.v); }
  RNNKERN_DEVICE friend Scalar min(Scalar a, Scalar b) { return a.v < b.v ? a : b; }
  RNNKERN_DEVICE friend Scalar max(Scalar a, Scalar b) { return a.v > b.v ? a : b; }
  RNNKERN_DEVICE friend Scalar abs(Scalar a) { return Scalar(std::fabs(a.v)); }
  RNNKERN_DEVICE friend Scalar copy_sign(Scalar magnitude, Scalar sign) {
    return Scalar(std::copysign(magnitude.v, sign.v));
  }
  RNNKERN_DEVICE friend void interleave(Scalar&, Scalar&) {}
  RNNKERN_DEVICE friend Scalar positive(Scalar x, Scalar v) {
    return x.v > T(0) ? v : Scalar(T(0));
  }
  RNNKERN_DEVICE friend Scalar exp2_integer(Scalar n) {
    static_assert(sizeof(T) == sizeof(float) || sizeof(T) == sizeof(double));
    if constexpr (sizeof(T) == sizeof(float)) {
      // A NaN may not be cast to an integer; the caller keeps it without this result.
      const std::int32_t k = n.v == n.v ? static_cast<std::int32_t>(n.v) : 0;
      return Scalar(std::bit_cast<float>((k + 127) << 23));
    } else {
      return Scalar(std::exp2(n.v));
    }
  }
};

}  // namespace rnnkern
