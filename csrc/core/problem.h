// SPDX-License-Identifier: Apache-2.0
// The arguments of a kernel: sizes and pointers of one layer in one direction.
//
// Letters: T steps, B rows of the batch, I inputs, H units, G gates, P outputs: the width of h, which is
// H unless h is a projection W_hr h' of what the cell gives; N = Σ lengths, the live steps.
// Live (step, row) pairs are packed: rows sorted by falling length, so that the rows alive at any
// step are the first live(t) of the sorted order, and pair (t, i) is packed row offset[t] + i.
// All memory belongs to the caller and must stay for the call.
#pragma once

#include <cstdint>

#include "core/functions.h"
#include "core/lane.h"

namespace rnnkern {

// What a product's operands are rounded to; its sums, and all else, are of the dtype. int8 is for inference.
enum class Compute { exact, bfloat16, int8 };

// Of a live row in (T, B, ·) arrays.
struct Place {
  Index t, b;
};

// A (T, B, ·) array with any strides over T and B and its last axis contiguous; strides in
// elements.
template <class T>
struct Sequence {
  T* data = nullptr;
  Index step = 0, row = 0;

  [[gnu::always_inline]] RNNKERN_DEVICE T* at(Index t, Index b) const {
    return data + t * step + b * row;
  }
  [[gnu::always_inline]] T* at(Place place) const { return at(place.t, place.b); }
};

struct Schedule {
  Index steps, batch;
  bool reverse;         // time runs from the last step to the first
  const Index* order;   // (B) the row that stands i-th by falling length
  const Index* offset;  // (T+1) packed row of step t's first row; offset[T] = N
  // (N) where packed rows stand in the batch; or null, where rows are the batch's and begin at its first
  // step. Rows that are stretches of the batch's have their states alone by `order` (stretches.h).
  const Place* place = nullptr;

  // Of the i-th row of step t.
  [[gnu::always_inline]] Place at(Index t, Index i) const {
    return place ? place[offset[t] + i] : Place{t, order[i]};
  }

  // Processed step s is time(s); a step outside [0, T) has no live rows.
  [[gnu::always_inline]] Index time(Index s) const { return reverse ? steps - 1 - s : s; }
  [[gnu::always_inline]] Index live(Index s) const {
    if (s < 0 || s >= steps) return 0;
    const Index t = time(s);
    return offset[t + 1] - offset[t];
  }
};

// Zoneout of h or c: what is drawn says of each (T, B, ·) whether the unit keeps its value of the step before; a
// pass that draws nothing keeps that share of it in every unit.
template <class T>
struct Zoneout {
  T share = T(0);
  Sequence<const unsigned char> drawn{};

  [[gnu::always_inline]] RNNKERN_DEVICE bool on() const { return drawn.data || share > T(0); }
};

// Of layer normalisation: the gains of the part from x and of the recurrent part (G·H), and gain and shift of c
// (H), null where the cell has no c and without a shift.
template <class T>
struct NormParameters {
  T *gain_ih = nullptr, *gain_hh = nullptr, *gain_c = nullptr, *shift_c = nullptr;
};

// What it keeps for the backward pass, or null: normalised parts from x (rows, G·H) and recurrent ones
// (N, G·H), and by row the scales of their blocks, kNormScales of them. Of x there are as many rows as
// distinct tokens, where there are tokens.
template <class T>
struct NormKept {
  T *ih = nullptr, *hh = nullptr, *scales_ih = nullptr, *scales_hh = nullptr;
};
// A scale a block, then of the recurrent ones c's mean and scale.
inline constexpr Index kMostNormBlocks = 2, kNormScaleOfC = kMostNormBlocks,
                       kNormScales = kNormScaleOfC + 2;

template <class T>
struct Parameters {
  Index inputs, units, outputs;  // outputs other than units are a projection's
  const T* w_ih;                 // (G·H, I)
  const T* w_hh;                 // (G·H, P); null where the cell has no recurrent product
  const T* bias;                 // (G·H), or null for none
  const T* bias_hn;  // (H), or null: joins the recurrent product of the gate that the cell names
  const T* unit_weights;    // (as many as the cell says, H); null where it has none
  const T* w_hr = nullptr;  // (P, H): the projection's, or null for none
  NormParameters<const T> norm{};
};

// Integer input: x_t is the one-hot row of a token. Only the distinct tokens of a call have a slot.
struct Tokens {
  const std::int32_t* slot = nullptr;  // (N) slot of each packed row; null when x is dense
  const Index* token = nullptr;        // (count) the column of W_ih that a slot stands for
  Index count = 0;
};

template <class T>
struct ForwardProblem {
  Schedule schedule;
  Parameters<T> parameters;
  Sequence<const T> x;  // (T, B, I), unless there are tokens
  Tokens tokens;
  bool input_packed =
      false;      // whether W_ih is among the packed panels; if not, x meets it as it is packed
  T* h;           // (B, P): in h_0, out h_n
  T* c;           // (B, H): in c_0, out c_n; null for a cell without c
  Sequence<T> y;  // (T, B, P): out; live steps only are written
  T* saved;       // (N, saved, H): out, null when no backward pass will follow
  T* cells;       // (N, H): every c_t, likewise; null without c
  const CellOptions<T>* options = nullptr;  // null for the cell's own functions
  T* inner = nullptr;  // (N, H): every h' that a projection took, likewise; null without one
  NormKept<T> norm{};
  const T* h_factors = nullptr;  // (B, P): of what recurrent products take of h; null for none
  Zoneout<T> zone_h{}, zone_c{};
  T* fresh_c = nullptr;  // (N, H): every c_t before its zoneout, out as saved; null without one
};

template <class T>
struct BackwardProblem {
  Schedule schedule;
  Index inputs, units, outputs;
  Sequence<const T> x;
  Tokens tokens;
  const T* h_0;
  const T* c_0;
  Sequence<const T> y;
  const T* saved;        // as the forward pass left it
  const T* cells;        // likewise
  Sequence<const T> dy;  // (T, B, P), data null for zero
  T* dh;                 // (B, P): in ∂L/∂h_n, out ∂L/∂h_0
  T* dc;                 // (B, H): likewise for c; null without c
  Sequence<T> dx;        // (T, B, I): live steps are added to; data null when not wanted
  T* dw_ih;              // (G·H, I): added to, as the four below
  T* dw_hh;              // (G·H, P); null without W_hh
  T* dbias;              // (G·H), or null
  T* dbias_hn;           // (H), or null
  T* dunit_weights;      // as the unit weights, or null
  // (N, 1 [+ 1 with c] + G, H): out, ∂L/∂h_t, ∂L/∂c_t and ∂L/∂(pre-activation of gate g); or null.
  // Where h is a projection the first is ∂L/∂h'_t, and a row ends with ∂L/∂h_t (P).
  T* state_gradients;
  const CellOptions<T>* options = nullptr;
  const T* inner = nullptr;  // as the forward pass left it
  T* dw_hr = nullptr;        // (P, H)
  NormKept<const T> norm{};  // as the forward pass left it
  NormParameters<T> dnorm{};
  const T* h_factors = nullptr;   // (B, P), as in the forward pass
  Zoneout<T> zone_h{}, zone_c{};  // what was drawn
  const T* fresh_c = nullptr;     // as the forward pass left it
};

// One step of B rows of one layer.
template <class T>
struct StepProblem {
  Index inputs, units, outputs, batch;
  const T* x;  // (B, I), rows x_row apart; null when there are tokens
  Index x_row;
  const std::int64_t* tokens;  // (B), each in [0, I)
  T* h;                        // (B, P): in h_{t-1}, out h_t
  T* c;                        // (B, H): likewise; null for a cell without c
  bool round_operands;         // x and what the recurrent product takes, as the weights
  bool back;                   // units from the last to the first: every other step's
  Zoneout<T> zone_h{}, zone_c{};
  const CellOptions<T>* options = nullptr;
};

// C (M, N) = A B + bias, or C += A B; any strides over A, rows of B and C contiguous unless
// transposed.
template <class T>
struct MatmulProblem {
  Index rows, columns, depth;
  const T* a;
  Index a_row, a_depth;  // strides of A in elements; one of them is 1
  const T* b;
  Index b_depth, b_column;
  const T* bias;  // (N) or null
  T* c;
  Index c_row;
  bool accumulate;
  std::byte* packed = nullptr;  // B and the bias, as matmul_pack left them; null to pack them now
};

// One step of Adam over `size` numbers, in place:
//   first ← first_beta·first + g,  second ← second_beta·second + g²,  neither of them denormal,
//   p ← decay·p - rate·first / (√second + epsilon)
// with g held within ±√(the largest number · (1 - second_beta))/2, and NaN where it is not finite.
template <class T>
struct AdamProblem {
  Index size;
  T* p;
  const T* g;
  T *first, *second;
  T decay, first_beta, second_beta, epsilon, rate;
};

// The loss -log softmax(logits)[target] of each row that counts, and weight · its gradient.
template <class T>
struct SoftmaxProblem {
  Index rows, classes;
  const T* logits;              // (rows, classes)
  const std::int64_t* targets;  // (rows), in [0, classes) where the row counts
  const bool* mask;             // (rows), or null where all rows count
  T weight;
  T* gradient;  // (rows, classes): out, 0 in rows that do not count
};

}  // namespace rnnkern
