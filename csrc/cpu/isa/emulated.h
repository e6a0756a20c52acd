// SPDX-License-Identifier: Apache-2.0
// AVX-512 lanes, AVX512-VNNI, AVX512-BF16 and AMX in plain C++, to run their kernels where they are not:
// slow, and as Intel's manual (Software Developer's Manual, volume 2) says of VPDPBUSD, VDPBF16PS and
// TDPBF16PS.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/lane.h"
#include "cpu/gemm/pair_product.h"

namespace rnnkern {

// Sixteen scalar lanes.
struct EmulatedFloat {
  using value = float;
  using One = Scalar<float>;
  static constexpr int size = 16;
  static constexpr int registers = 32;

  std::array<One, size> v;

  EmulatedFloat() = default;
  explicit EmulatedFloat(float s) { v.fill(One(s)); }

  static EmulatedFloat load(const float* p) { return load(p, size); }
  static EmulatedFloat load(const float* p, Index n) {
    EmulatedFloat r(0);
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) r.v[i] = One(p[i]);
    return r;
  }
  static void load_pair(const Bfloat16* p, EmulatedFloat& a, EmulatedFloat& b) {
    for (std::size_t i = 0; i < size; ++i) One::load_pair(p + 2 * i, a.v[i], b.v[i]);
  }
  static void store_pair(Bfloat16* p, EmulatedFloat a, EmulatedFloat b) {
    for (std::size_t i = 0; i < size; ++i) One::store_pair(p + 2 * i, a.v[i], b.v[i]);
  }
  void store(float* p) const { store(p, size); }
  void store(float* p, Index n) const {
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) p[i] = v[i].v;
  }

  template <class F>
  static EmulatedFloat each(F f) {
    EmulatedFloat r;
    for (std::size_t i = 0; i < size; ++i) r.v[i] = f(i);
    return r;
  }
  using E = EmulatedFloat;
  friend E operator+(E a, E b) {
    return each([&](auto i) { return a.v[i] + b.v[i]; });
  }
  friend E operator-(E a, E b) {
    return each([&](auto i) { return a.v[i] - b.v[i]; });
  }
  friend E operator*(E a, E b) {
    return each([&](auto i) { return a.v[i] * b.v[i]; });
  }
  friend E operator/(E a, E b) {
    return each([&](auto i) { return a.v[i] / b.v[i]; });
  }
  friend E quotient(E a, E b) { return a / b; }
  friend E fma(E a, E b, E c) {
    return each([&](auto i) { return fma(a.v[i], b.v[i], c.v[i]); });
  }
  friend E min(E a, E b) {
    return each([&](auto i) { return min(a.v[i], b.v[i]); });
  }
  friend E max(E a, E b) {
    return each([&](auto i) { return max(a.v[i], b.v[i]); });
  }
  friend E abs(E a) {
    return each([&](auto i) { return abs(a.v[i]); });
  }
  friend E copy_sign(E a, E b) {
    return each([&](auto i) { return copy_sign(a.v[i], b.v[i]); });
  }
  friend E positive(E x, E a) {
    return each([&](auto i) { return positive(x.v[i], a.v[i]); });
  }
  friend E exp2_integer(E n) {
    return each([&](auto i) { return exp2_integer(n.v[i]); });
  }
  friend E round_to_bfloat16(E a) {
    return each([&](auto i) { return round_to_bfloat16(a.v[i]); });
  }
  friend void interleave(E& a, E& b) {
    const E first = a, second = b;
    for (std::size_t i = 0; i < size; ++i) {
      (i < size / 2 ? a.v[2 * i] : b.v[2 * i - size]) = first.v[i];
      (i < size / 2 ? a.v[2 * i + 1] : b.v[2 * i + 1 - size]) = second.v[i];
    }
  }
};

// Denormals count as 0 and become 0, whatever MXCSR says.
inline float flushed(float v) {
  return std::fabs(v) < std::numeric_limits<float>::min() ? std::copysign(0.0f, v) : v;
}

// Rounded once.
inline float multiply_add_flushed(float a, float b, float c) {
  return flushed(std::fma(flushed(a), flushed(b), flushed(c)));
}

inline float widened(Bfloat16 v) { return std::bit_cast<float>(std::uint32_t{v.bits} << 16); }

struct EmulatedDot {
  using Pairs = std::array<Bfloat16, 2 * EmulatedFloat::size>;

  static Pairs load(const Bfloat16* p) {
    Pairs pairs;
    std::copy_n(p, pairs.size(), pairs.begin());
    return pairs;
  }
  static Pairs broadcast(const Bfloat16* p) {
    Pairs pairs;
    for (std::size_t i = 0; i < pairs.size(); ++i) pairs[i] = p[i % 2];
    return pairs;
  }
  // VDPBF16PS: the pair's second product first, each added with one rounding.
  static EmulatedFloat dot(EmulatedFloat sum, const Pairs& a, const Pairs& b) {
    for (std::size_t i = 0; i < EmulatedFloat::size; ++i) {
      float& s = sum.v[i].v;
      s = multiply_add_flushed(widened(a[2 * i + 1]), widened(b[2 * i + 1]), s);
      s = multiply_add_flushed(widened(a[2 * i]), widened(b[2 * i]), s);
    }
    return sum;
  }
  // VCVTNEPS2BF16.
  static void store(Bfloat16* p, EmulatedFloat v) {
    for (std::size_t i = 0; i < EmulatedFloat::size; ++i) {
      const float rounded = flushed(round_to_bfloat16(flushed(v.v[i].v)));
      p[i].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(rounded) >> 16);
    }
  }
};

struct EmulatedVnni {
  using Operand = std::uint8_t;
  using Sums = std::array<std::uint32_t, EmulatedFloat::size>;
  using Columns = std::array<std::uint8_t, 4 * EmulatedFloat::size>;
  static constexpr int kDeep = 4, kShift = 128;

  static Sums load(const std::int32_t* p) {
    Sums sums;
    std::memcpy(sums.data(), p, sizeof sums);
    return sums;
  }
  static Columns load(const std::int8_t* p) {
    Columns columns;
    std::memcpy(columns.data(), p, sizeof columns);
    return columns;
  }
  static Columns broadcast(const Operand* p) {
    Columns columns;
    for (std::size_t i = 0; i < columns.size(); ++i) columns[i] = p[i % kDeep];
    return columns;
  }
  // VPDPBUSD: a sum that no int32 holds wraps.
  static Sums add(Sums sum, const Columns& row, const Columns& column) {
    for (std::size_t i = 0; i < column.size(); ++i)
      sum[i / kDeep] += static_cast<std::uint32_t>(row[i] * static_cast<std::int8_t>(column[i]));
    return sum;
  }
  static EmulatedFloat values(const Sums& sum) {
    return EmulatedFloat::each([&](auto i) {
      return EmulatedFloat::One(static_cast<float>(static_cast<std::int32_t>(sum[i])));
    });
  }
  // VCVTPS2DQ and VPMOVDB; what is not finite stands in a row whose scale is NaN.
  static void store(Operand* p, EmulatedFloat v) {
    for (std::size_t i = 0; i < EmulatedFloat::size; ++i) {
      const float one = v.v[i].v;
      p[i] = static_cast<Operand>(std::isfinite(one) ? std::lrint(one) + kShift : kShift);
    }
  }
};

struct EmulatedAmx {
  static void configure(int rows) {
    for (std::size_t t = 0; t < registers.size(); ++t) registers[t] = {t < 5 ? rows : 16, {}};
  }
  static void release() {
    for (auto& r : registers) r.rows = 0;
  }
  template <std::size_t T>
  static void load(const void* p, Index distance) {
    auto& r = registers[T];
    for (int row = 0; row < r.rows; ++row)
      std::memcpy(r.bytes[row], static_cast<const std::byte*>(p) + row * distance, 64);
  }
  template <std::size_t T>
  static void store(void* p, Index distance) {
    const auto& r = registers[T];
    for (int row = 0; row < r.rows; ++row)
      std::memcpy(static_cast<std::byte*>(p) + row * distance, r.bytes[row], 64);
  }
  // TDPBF16PS: a row's even products and its odd ones are summed apart, then both are added to C.
  template <std::size_t C, std::size_t A, std::size_t B>
  static void dot() {
    auto& c = registers[C];
    const auto &a = registers[A], &b = registers[B];
    for (int m = 0; m < c.rows; ++m) {
      float temporary[32] = {}, sum[16];
      Bfloat16 row[32], columns[32];
      std::memcpy(row, a.bytes[m], 64);
      for (int k = 0; k < 16; ++k) {
        std::memcpy(columns, b.bytes[k], 64);
        for (int n = 0; n < 32; ++n) {
          temporary[n] =
              multiply_add_flushed(widened(row[2 * k + n % 2]), widened(columns[n]), temporary[n]);
        }
      }
      std::memcpy(sum, c.bytes[m], 64);
      for (int n = 0; n < 16; ++n)
        sum[n] = flushed(flushed(sum[n]) + flushed(temporary[2 * n] + temporary[2 * n + 1]));
      std::memcpy(c.bytes[m], sum, 64);
    }
  }

 private:
  struct Register {
    int rows;
    std::byte bytes[16][64];
  };
  static inline thread_local std::array<Register, 8> registers{};
};

}  // namespace rnnkern
