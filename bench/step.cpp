// SPDX-License-Identifier: Apache-2.0
// One step of a stream, float32, B = 1, I = H, timed without Python: build with -DRNNKERN_BENCH=ON.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "cpu/engine.h"

namespace {

using rnnkern::Index;

// Median over turns of the mean time of a step, in microseconds.
double time_step(int cell, Index units, bool narrow) {
  const auto gates =
      static_cast<std::size_t>(rnnkern::all_cells()[static_cast<std::size_t>(cell)].gates);
  const auto size = static_cast<std::size_t>(units);
  const std::vector<float> weights(gates * size * size, 0.01f), bias(gates * size, 0.1f),
      x(size, 1);
  std::vector<float> h(size), c(size), y(size);
  const rnnkern::Parameters<float> parameters{.inputs = units,
                                              .units = units,
                                              .w_ih = weights.data(),
                                              .w_hh = weights.data(),
                                              .bias = bias.data(),
                                              .bias_hn = nullptr};
  rnnkern::Stepper<float> stepper(cell, {parameters}, 1, h.data(), c.data(), narrow,
                                  rnnkern::Compute::exact, false);
  const int steps = std::max(4, static_cast<int>(2e7 / stepper.flops()));
  std::vector<double> turns;
  for (int turn = 0; turn < 51; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) stepper.step(x.data(), nullptr, y.data());
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    turns.push_back(time.count() / steps);
  }
  std::nth_element(turns.begin(), turns.begin() + 25, turns.end());
  return turns[25];
}

}  // namespace

int main() {
  const auto& choice = rnnkern::chosen_backend();
  std::printf("%s (%s), microseconds a step\n%-16s", choice.backend->name, choice.reason.c_str(),
              "H");
  constexpr Index kUnits[] = {16, 32, 64, 128, 256};
  for (const Index units : kUnits) std::printf("%9td", units);
  for (const bool narrow : {false, true}) {
    for (std::size_t cell = 0; cell < rnnkern::all_cells().size(); ++cell) {
      std::printf("\n%-16s", rnnkern::all_cells()[cell].name.data());
      for (const Index units : kUnits)
        std::printf("%9.2f", time_step(static_cast<int>(cell), units, narrow));
      if (narrow) std::printf("  bfloat16 weights");
    }
  }
  std::printf("\n");
}
