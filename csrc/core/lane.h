// The lane contract: what a cell's equations and the matrix product may ask of a vector type.
//
// A lane V holds V::size values of type V::value:
//   V(s)                        every element s
//   V::load(p), v.store(p)      size elements, no alignment asked
//   V::load_pair(p, a, b)       of float lanes: 2·size Bfloat16, a's and b's in turns, widened
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

namespace rnnkern {

using Index = std::ptrdiff_t;

// The upper half of a float32: how narrow weights are stored. They are computed with as float32.
struct Bfloat16 {
  std::uint16_t bits;

  [[gnu::always_inline]] static Bfloat16 truncated(float v) {
    return {static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(v) >> 16)};
  }
};

template <class T>
struct Scalar {
  using value = T;
  static constexpr int size = 1;
  static constexpr int registers = 16;

  T v;

  Scalar() = default;
  explicit Scalar(T s) : v(s) {}

  static Scalar load(const T* p) { return Scalar(*p); }
  static void load_pair(const Bfloat16* p, Scalar& a, Scalar& b)
    requires std::is_same_v<T, float>
  {
    a.v = std::bit_cast<float>(std::uint32_t{p[0].bits} << 16);
    b.v = std::bit_cast<float>(std::uint32_t{p[1].bits} << 16);
  }
  static Scalar load(const T* p, Index n) { return Scalar(n > 0 ? *p : T(0)); }
  void store(T* p) const { *p = v; }
  void store(T* p, Index n) const {
    if (n > 0) *p = v;
  }

  friend Scalar operator+(Scalar a, Scalar b) { return Scalar(a.v + b.v); }
  friend Scalar operator-(Scalar a, Scalar b) { return Scalar(a.v - b.v); }
  friend Scalar operator*(Scalar a, Scalar b) { return Scalar(a.v * b.v); }
  friend Scalar operator/(Scalar a, Scalar b) { return Scalar(a.v / b.v); }
  friend Scalar sqrt(Scalar a) { return Scalar(std::sqrt(a.v)); }
  friend Scalar quotient(Scalar a, Scalar b) { return a / b; }
  friend Scalar fma(Scalar a, Scalar b, Scalar c) { return Scalar(a.v * b.v + c.v); }
  friend Scalar min(Scalar a, Scalar b) { return a.v < b.v ? a : b; }
  friend Scalar max(Scalar a, Scalar b) { return a.v > b.v ? a : b; }
  friend Scalar abs(Scalar a) { return Scalar(std::fabs(a.v)); }
  friend Scalar copy_sign(Scalar magnitude, Scalar sign) {
    return Scalar(std::copysign(magnitude.v, sign.v));
  }
  friend void interleave(Scalar&, Scalar&) {}
  friend Scalar positive(Scalar x, Scalar v) { return x.v > T(0) ? v : Scalar(T(0)); }
  friend Scalar exp2_integer(Scalar n) {
    static_assert(sizeof(T) == sizeof(float) || sizeof(T) == sizeof(double));
    if constexpr (sizeof(T) == sizeof(float)) {
      // A NaN may not be cast to an integer; the caller's arithmetic carries it on by another way.
      const std::int32_t k = n.v == n.v ? static_cast<std::int32_t>(n.v) : 0;
      return Scalar(std::bit_cast<float>((k + 127) << 23));
    } else {
      return Scalar(std::exp2(n.v));
    }
  }
};

}  // namespace rnnkern
