// Runs a problem on the chosen backend: plan, scratch memory, threads.
#pragma once

#include "core/backend.h"

namespace rnnkern {

// Recurrent weights packed for a forward pass, kept from call to call by a stream.
template <class T>
class PackedWeights {
 public:
  PackedWeights(int cell, const Parameters<T>& parameters, bool dense);
  std::byte* data() const { return bytes_.get(); }

 private:
  AlignedBytes bytes_;
};

template <class T>
Plan plan_for(int cell, const Schedule& schedule, const Parameters<T>& parameters);

// `packed` null: the weights are packed within the call.
template <class T>
void forward(int cell, const ForwardProblem<T>& problem, const PackedWeights<T>* packed = nullptr);

template <class T>
void backward(int cell, const BackwardProblem<T>& problem);

template <class T>
void matmul(const MatmulProblem<T>& problem);

}  // namespace rnnkern
