// SPDX-License-Identifier: Apache-2.0
// Runs a problem on the chosen backend: plan, scratch memory, threads.
#pragma once

#include <optional>
#include <vector>

#include "cpu/dispatch.h"

namespace rnnkern {

enum class Pass { forward, backward };

// A snapshot of a layer's weights, packed for one kind of pass: a stream's, from call to call, and
// a tape's, until the backward pass.
template <class T>
class PackedWeights {
 public:
  // With W_ih only if asked: a call on tokens does without.
  PackedWeights(int cell, const Parameters<T>& parameters, Pass pass, bool with_input,
                Compute compute);

  std::byte* data() const { return bytes_.get(); }

  // Whether it is what such a call reads; a call that reads W_ih needs one with_input.
  bool fits(int cell, Index inputs, Index units, Index outputs, Pass pass, bool with_input,
            Compute compute) const;

 private:
  int cell_;
  Index inputs_, units_, outputs_;
  Pass pass_;
  bool with_input_;
  Compute compute_;
  PackedBy by_;
  AlignedBytes bytes_;
};

// Stacked layers that go one step at a time. Packs the parameters when built, so that a
// step neither packs nor allocates; it runs on the calling thread.
template <class T>
class Stepper {
 public:
  // h (L, B, P) and c (L, B, H), or null, are the state: the caller's memory, which step()
  // advances. Narrow rounds the weight matrices to bfloat16 (float32; the biases are kept whole),
  // and a compute rounds the other operands too. With by_token there will be tokens alone, and of
  // the first layer's W_ih, which must stay as it is, a column is packed when its token comes first.
  Stepper(int cell, const std::vector<Parameters<T>>& layers, Index batch, T* h, T* c, bool narrow,
          Compute compute, bool by_token, const std::optional<CellOptions<T>>& options,
          T zoneout = T(0), T cell_zoneout = T(0));

  // x (B, I), or null and tokens (B); y (B, P) gets the last layer's h_t.
  void step(const T* x, const std::int64_t* tokens, T* y);

  double flops() const { return flops_; }  // of one step
  bool by_token() const { return !seen_.empty(); }
  Index inputs() const { return problems_[0].inputs; }
  Index outputs() const { return problems_[0].outputs; }
  Index batch() const { return problems_[0].batch; }

 private:
  PackedBy by_;
  const StepKernels<T>& kernels_;
  const LoopCell<T> cell_;
  const std::optional<CellOptions<T>> options_;
  const TallTiles* const tall_;
  std::vector<StepProblem<T>> problems_;
  std::vector<AlignedBytes> packed_;
  AlignedBytes scratch_;
  Parameters<T> first_{};   // of the first layer, by token
  std::vector<bool> seen_;  // tokens whose columns are packed; empty unless by token
  double flops_ = 0;
  bool back_ = false;
};

// A matrix (rows, columns) and a bias (rows) or null, packed for many products x·matrixᵀ + bias.
template <class T>
class PackedMatrix {
 public:
  PackedMatrix(const T* matrix, const T* bias, Index rows, Index columns);

  // x (count, columns) in, y (count, rows) out.
  void times(const T* x, Index count, T* y) const;

  Index rows() const { return problem_.columns; }
  Index columns() const { return problem_.depth; }

 private:
  PackedBy by_;
  MatmulProblem<T> problem_;
  AlignedBytes bytes_;
};

// The sizes that the plan of a pass depends on; `live` counts the steps of all rows.
template <class T>
Work work_of(int cell, Index steps, Index batch, double live, Index inputs, Index units,
             Index outputs, Compute compute);

// `packed` null: the weights are packed within the call. These throw std::invalid_argument where
// the dtype does not have that compute, or `packed` does not fit; and Interrupted, after which what
// they write holds nothing of use.
template <class T>
void forward(int cell, const ForwardProblem<T>& problem, Compute compute,
             const PackedWeights<T>* packed = nullptr);

template <class T>
void backward(int cell, const BackwardProblem<T>& problem, Compute compute,
              const PackedWeights<T>& packed);

template <class T>
void matmul(const MatmulProblem<T>& problem);

}  // namespace rnnkern
