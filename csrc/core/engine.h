// Runs a problem on the chosen backend: plan, scratch memory, threads.
#pragma once

#include <vector>

#include "core/backend.h"

namespace rnnkern {

// Recurrent weights packed for a forward pass, kept from call to call by a stream.
template <class T>
class PackedWeights {
 public:
  PackedWeights(int cell, const Parameters<T>& parameters, bool with_input, Compute compute);
  std::byte* data() const { return bytes_.get(); }

 private:
  AlignedBytes bytes_;
};

// Layers upon each other that go one step at a time. Packs the parameters when built, so that a step
// neither packs nor allocates; it runs on the calling thread.
template <class T>
class Stepper {
 public:
  // h (L, B, H) and c (likewise, or null) are the state: the caller's memory, which step() advances.
  // Narrow rounds the weight matrices to bfloat16 (float32; the biases are kept whole), and so does
  // a compute of bfloat16, which rounds the other operands too.
  Stepper(int cell, const std::vector<Parameters<T>>& layers, Index batch, T* h, T* c, bool narrow,
          Compute compute);

  // x (B, I), or null and tokens (B); y (B, H) gets the last layer's h_t.
  void step(const T* x, const std::int64_t* tokens, T* y) const;

  double flops() const { return flops_; }  // of one step
  Index inputs() const { return problems_[0].inputs; }
  Index units() const { return problems_[0].units; }
  Index batch() const { return problems_[0].batch; }

 private:
  const StepKernels<T>& kernels_;
  std::vector<StepProblem<T>> problems_;
  std::vector<AlignedBytes> packed_;
  AlignedBytes scratch_;
  double flops_ = 0;
};

template <class T>
Plan plan_for(int cell, const Schedule& schedule, const Parameters<T>& parameters, Compute compute);

// `packed` null: the weights are packed within the call; else they were for the same compute.
// These throw std::invalid_argument where the dtype does not have that compute.
template <class T>
void forward(int cell, const ForwardProblem<T>& problem, Compute compute,
             const PackedWeights<T>* packed = nullptr);

template <class T>
void backward(int cell, const BackwardProblem<T>& problem, Compute compute);

template <class T>
void matmul(const MatmulProblem<T>& problem);

}  // namespace rnnkern
