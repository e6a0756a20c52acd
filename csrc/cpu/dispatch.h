// SPDX-License-Identifier: Apache-2.0
// The kernel tables: one backend an instruction set, chosen once when the module is loaded.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/problem.h"
#include "cpu/recurrent/equations.h"
#include "cpu/team/team.h"

namespace rnnkern {

struct TallTiles;  // cpu/gemm/pair_product.h

// One step of a cell, over weights in panels of its own. Without W_ih's columns only tokens can be
// taken, each after its column was packed.
template <class T>
struct StepKernels {
  Index (*packed_bytes)(const CellFacts&, const Parameters<T>&);
  void (*pack)(const CellFacts&, const Parameters<T>&, bool with_input, std::byte* packed);
  void (*pack_token)(const CellFacts&, const Parameters<T>&, Index token, std::byte* packed);
  Index (*scratch)(const CellFacts&, const StepProblem<T>&);
  void (*run)(const LoopCell<T>&, const StepProblem<T>&, const TallTiles*, std::byte* packed,
              std::byte* scratch);
};

// A layer's weights as a pass over a sequence reads them.
template <class T>
struct PanelKernels {
  // With W_ih too, or W_hh alone.
  Index (*bytes)(const CellFacts&, const Parameters<T>&, bool with_input);
  void (*pack)(const CellFacts&, const Parameters<T>&, bool with_input, const Worker&,
               std::byte* packed);
};

// How far a pass has come, between the segments of it that one team each runs.
struct Progress {
  Index chunks = 0;     // steps of the chunks that are finished
  Index steps = 0;      // steps that are
  bool inside = false;  // whether a chunk has been begun
  bool done = false;
};

// Whole sequences, forward and backward. Scratch and packed memory come from the caller, as large
// as `bytes` and the functions of scratch say, aligned to 64 bytes. A pass goes on from where the
// segment before ended; the scratch memory keeps what it needs of that.
template <class T>
struct PassKernels {
  PanelKernels<T> forward_panels, backward_panels;
  Index (*forward_scratch)(const CellFacts&, const ForwardProblem<T>&, int threads);
  Progress (*forward)(const LoopCell<T>&, const ForwardProblem<T>&, const TallTiles*, const Worker&,
                      Progress, std::byte* packed, std::byte* scratch);
  Index (*backward_scratch)(const CellFacts&, const BackwardProblem<T>&, int threads);
  Progress (*backward)(const LoopCell<T>&, const BackwardProblem<T>&, const TallTiles*,
                       const Worker&, Progress, std::byte* packed, std::byte* scratch);
};

// The equations of every cell, on lanes of one width.
template <class T>
struct Equations {
  CellEquations<T> cells[AllCells::size];
  CellEquations<T> given[AllCells::size];  // with a layer's options

  LoopCell<T> of(int cell, bool options) const {
    const CellFacts& facts = cell_facts(cell);
    return {facts, options ? given[facts.equations] : cells[facts.equations]};
  }
};

// The loops over one product; they serve all cells, with equations on its lanes. One for inference alone
// has no backward pass, and packs no single token.
template <class T>
struct Loops {
  PassKernels<T> pass;
  StepKernels<T> step;
  const Equations<T>* equations;
};

// What every backend has for a dtype.
template <class T>
struct Kernels {
  Loops<T> exact;
  StepKernels<T> narrow_step;  // the weights alone are bfloat16; float32 alone has it
  Index (*matmul_packed_bytes)(const MatmulProblem<T>&);
  void (*matmul_pack)(const MatmulProblem<T>&, const Worker&, std::byte* packed);
  Index (*matmul_scratch)(const MatmulProblem<T>&, int threads);
  void (*matmul)(const MatmulProblem<T>&, const Worker&, std::byte* scratch);
  void (*tanh)(const T* in, T* out, Index n);
  void (*sigmoid)(const T* in, T* out, Index n);
  void (*exp_negative)(const T* in, T* out, Index n);
  void (*adam)(const AdamProblem<T>&);
  double (*sum_of_squares)(const T* x, Index n);
  double (*softmax_cross_entropy)(const SoftmaxProblem<T>&);
};

struct Backend {
  const char* name;
  const Kernels<float>* for_float;
  const Kernels<double>* for_double;
  // Passes and steps whose products take operands rounded to bfloat16, all else being float32; what
  // multiplies them, in words; and the kernels for many rows that they use, if any.
  const Loops<float>* for_bfloat16;
  const char* bfloat16_product;
  const TallTiles* tall_tiles;
  // Forward passes and steps of int8 operands, and what multiplies those; null where int8_backend() finds
  // another that does.
  const Loops<float>* for_int8;
  const char* int8_product;

  template <class T>
  const Kernels<T>& kernels() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return *for_float;
    } else {
      return *for_double;
    }
  }
};

// Those that were built and this processor can run, best first; emulated ones stand last.
const std::vector<const Backend*>& supported_backends();

// The best of them, or the one that the environment's RNNKERN_ISA names; throws std::runtime_error
// when that is unknown or cannot run here. Why it was chosen is put in words.
struct Choice {
  const Backend* backend;
  std::string reason;
};
const Choice& chosen_backend();

// The chosen one, or the next of the supported ones that has a product for int8.
const Backend& int8_backend();

// For tests: that one is in use from now on, and the chosen one again for an empty name. No call may
// be under way; what was packed before is refused. Throws std::invalid_argument for a name that is not
// supported.
void use_backend(std::string_view name);

// The backend that packed something: no other can read it.
class PackedBy {
 public:
  bool in_use() const { return backend_ == chosen_backend().backend; }
  void require_in_use() const;  // throws std::invalid_argument

 private:
  const Backend* backend_ = chosen_backend().backend;
};

}  // namespace rnnkern
