// SPDX-License-Identifier: Apache-2.0
// What the predictions in docs/cuda.md rest on, each measured alone, and a sketch of the step that they
// lead to. bench/gpu_paper.py compiles this on the GPU's machine, with NVRTC: no headers, no C++ library.
// Times are clock64's, of one thread.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 kMostPolls = 1u << 22;

__device__ __forceinline__ u32 load_relaxed(const u32* p) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed(u32* p, u32 v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void store_release(u32* p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ void await_acquire(const u32* p, u32 v) {
  for (u32 polls = 0;; ++polls) {
    u32 seen;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(p) : "memory");
    if (seen >= v) return;
    if (polls == kMostPolls) __trap();
  }
}

// Cycles of a load from L2, for each of `lines` lines of 128 bytes, which lie in other parts of it.
// memory: zeros, and read behind the launch's first touch.
extern "C" __global__ void round_trip(u64* out, const u32* memory, int lines) {
  constexpr int kLoads = 32;
  for (int i = 0; i < lines; ++i) {
    const u32* p = memory + i * 32;
    u32 at = load_relaxed(p);
    const u64 begin = clock64();
    for (int k = 0; k < kLoads; ++k) at = load_relaxed(p + at);  // each waits for the one before
    out[i] = (clock64() - begin + at) / kLoads;
  }
}

// Cycles for a flag to go to block `other` and back, one after another.
extern "C" __global__ void ping_pong(u64* out, u32* flags, int other, int rounds) {
  if (threadIdx.x != 0) return;
  u32* const there = flags;
  u32* const back = flags + 32;
  if (blockIdx.x == 0) {
    const u64 begin = clock64();
    for (int i = 1; i <= rounds; ++i) {
      store_release(there, i);
      await_acquire(back, i);
    }
    out[0] = (clock64() - begin) / rounds;
  } else if (static_cast<int>(blockIdx.x) == other) {
    for (int i = 1; i <= rounds; ++i) {
      await_acquire(there, i);
      store_release(back, i);
    }
  }
}

// Cycles of a fence behind `stores` stores of each of the block's threads.
extern "C" __global__ void fence(u64* out, u32* memory, int stores, int rounds) {
  u64 total = 0;
  for (int i = 0; i < rounds; ++i) {
    __syncthreads();
    for (int k = 0; k < stores; ++k)
      store_relaxed(memory + ((i * stores + k) * blockDim.x + threadIdx.x) % (1 << 20), i);
    const u64 begin = clock64();
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    total += clock64() - begin;
  }
  if (threadIdx.x == 0) out[0] = total / rounds;
}

// Cycles a round in which each of the grid's blocks stores a word and waits for everybody's, with the
// round's number in the word: no flag, no fence. words: (2, blocks), zeros.
extern "C" __global__ void hand_over(u64* out, u32* words, int rounds) {
  const int blocks = gridDim.x, lane = threadIdx.x;
  const u64 begin = clock64();
  for (int i = 1; i <= rounds; ++i) {
    u32* const half = words + (i & 1) * blocks;
    if (lane == 0) store_relaxed(half + blockIdx.x, i);
    bool late;
    u32 polls = 0;
    do {
      late = false;
      for (int b = lane; b < blocks; b += 32) late |= load_relaxed(half + b) < static_cast<u32>(i);
      if (polls++ == kMostPolls) __trap();
    } while (__any_sync(~0u, late));
  }
  if (blockIdx.x == 0 && lane == 0) out[0] = (clock64() - begin) / rounds;
}

__device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Cycles of an mma by one warp: in one chain, and in four.
extern "C" __global__ void mma_chain(u64* out, float* sink, int rounds) {
  float d[4][4] = {};
  u64 begin = clock64();
  for (int i = 0; i < rounds; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) mma(d[0], 0, 0, 0, 0, 0, 0);
  }
  const float first = d[0][0];
  const u64 middle = clock64();
  for (int i = 0; i < rounds; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) mma(d[k], 0, 0, 0, 0, 0, 0);
  }
  const float last = d[0][0] + d[1][0] + d[2][0] + d[3][0];
  const u64 end = clock64();
  sink[threadIdx.x] = first + last;
  if (threadIdx.x == 0)
    out[0] = (middle - begin) / (4 * rounds), out[1] = (end - middle) / (4 * rounds);
}

// -- the step of an LSTM as it could be --------------------------------------------------------------
//
// H 768, 16 rows in two groups of 64 blocks, 12 units a block. The weights stay in registers, eight
// warps share the depth, and h travels in words of three halves and a tag, the number of the step, so
// that a word that has come says so itself: one barrier a step, no flag, no fence. A half of the
// exchange is written again two steps later: by then each block has seen words that every block wrote
// after it had last read that half.

constexpr int kUnits = 12, kHidden = 768, kRows = 8, kMembers = 64, kWarps = 8;
constexpr int kSteps = 4;                             // of 64 bytes of the operand, a warp
constexpr int kTiles = 3;                             // of 16 weight rows: four gates of 12 units
constexpr int kRowBytes = kMembers * kUnits / 3 * 8;  // of the exchange
constexpr int kPartial = kTiles * 16 + 4;
static_assert(kRowBytes == kWarps * kSteps * 64, "");

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ __forceinline__ float tanh_of(float x) {
  const float e = __expf(-2.0f * fabsf(x));
  return copysignf(__fdividef(1.0f - e, 1.0f + e), x);
}

// w: (member, warp, step, tile, upper or lower 8 rows, lane, 8 halves), zero where a tag is.
// x: (T, 2, 8, 4, 768); y: (T, 2, 8, 768); exchange: (2, 2, 8, row bytes), zeros: h_0 with tag 0.
extern "C" __global__ void __launch_bounds__(256, 1)
    sketch(const uint4* w, const float* x, float* y, unsigned char* exchange, int steps) {
  __shared__ float partial[2][kWarps][kRows][kPartial];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, q = lane % 4;
  const int group = blockIdx.x / kMembers, member = blockIdx.x % kMembers;
  uint4 low[kSteps][kTiles], high[kSteps][kTiles];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint4* at = w + (((member * kWarps + warp) * kSteps + k) * kTiles + i) * 64 + lane;
      low[k][i] = at[0], high[k][i] = at[32];
    }
  }
  // Four lanes share a word: three units and the tag.
  const int n = tid / 16, word = tid % 16 / 4, j = tid % 4;
  const bool sends = tid < kRows * 16, works = sends && j < 3;
  const int own = word * 3 + j, unit = member * kUnits + own;
  const size_t row = group * kRows + n;
  x += row * 4 * kHidden + unit, y += row * kHidden + unit;
  exchange += group * kRows * kRowBytes;
  constexpr int half_bytes = 2 * kRows * kRowBytes;
  const unsigned char* const source = exchange + g * kRowBytes + warp * kSteps * 64 + q * 16;
  unsigned char* const target = exchange + n * kRowBytes + (member * 4 + word) * 8;
  float c = 0, next[4] = {};
  if (works) {
    for (int k = 0; k < 4; ++k) next[k] = x[k * kHidden];
  }
  for (int s = 0; s < steps; ++s) {
    const u32 tag = s & 0x3fff;  // no half that is infinite or not a number
    const unsigned char* const from = source + (s & 1) * half_bytes;
    u64 b[kSteps][2];
    bool late;
    u32 polls = 0;
    do {
      late = false;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1}, [%2];"
                     : "=l"(b[k][0]), "=l"(b[k][1])
                     : "l"(from + k * 64)
                     : "memory");
      }
#pragma unroll
      for (int k = 0; k < kSteps; ++k) late |= b[k][0] >> 48 != tag || b[k][1] >> 48 != tag;
      if (polls++ == kMostPolls) __trap();
    } while (__any_sync(~0u, late));
    float d[kTiles][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const u32 b0 = static_cast<u32>(b[k][0]), b1 = static_cast<u32>(b[k][0] >> 32);
      const u32 b2 = static_cast<u32>(b[k][1]), b3 = static_cast<u32>(b[k][1] >> 32);
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        mma(d[i], low[k][i].x, high[k][i].x, low[k][i].y, high[k][i].y, b0, b1);
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        mma(d[i], low[k][i].z, high[k][i].z, low[k][i].w, high[k][i].w, b2, b3);
    }
    float (*const sums)[kRows][kPartial] = partial[s & 1];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      sums[warp][2 * q][i * 16 + g] = d[i][0];
      sums[warp][2 * q + 1][i * 16 + g] = d[i][1];
      sums[warp][2 * q][i * 16 + 8 + g] = d[i][2];
      sums[warp][2 * q + 1][i * 16 + 8 + g] = d[i][3];
    }
    __syncthreads();
    if (!sends) continue;
    u64 bits = static_cast<u64>((s + 1) & 0x3fff) << 48;
    float h = 0;
    if (works) {
      float a[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        a[k] = next[k];
#pragma unroll
        for (int v = 0; v < kWarps; ++v) a[k] += sums[v][n][k * kUnits + own];
      }
      c = sigmoid(a[1]) * c + sigmoid(a[0]) * tanh_of(a[2]);
      h = sigmoid(a[3]) * tanh_of(c);
      unsigned short rounded;
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(h));
      bits = static_cast<u64>(rounded) << (16 * j);
    }
    bits |= __shfl_xor_sync(~0u, bits, 1);
    bits |= __shfl_xor_sync(~0u, bits, 2);
    if (j == 0) {
      asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(target + ((s + 1) & 1) * half_bytes),
                   "l"(bits)
                   : "memory");
    }
    if (works) {
      *y = h;
      x += 2 * kRows * 4 * kHidden, y += 2 * kRows * kHidden;
      if (s + 1 < steps) {
        for (int k = 0; k < 4; ++k) next[k] = x[k * kHidden];
      }
    }
  }
}
