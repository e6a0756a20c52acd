// SPDX-License-Identifier: Apache-2.0
#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "cpu/isa/detect.h"

namespace rnnkern {

// sets.inc is CMake's: RNNKERN_SET(set, name) for every instruction set that was built, best first.
#define RNNKERN_SET(set, name) const Backend& set##_backend();
#include "sets.inc"
#undef RNNKERN_SET

namespace {

// The name is apart from the backend, whose file's code only a processor of that set may run.
struct Candidate {
  std::string_view name;
  bool (*runs_here)();
  const Backend& (*get)();
};

#define RNNKERN_SET(set, name) {name, has_##set, set##_backend},
constexpr Candidate kCandidates[] = {
#include "sets.inc"
};
#undef RNNKERN_SET

Choice choose() {
  const auto& supported = supported_backends();
  const char* forced = std::getenv("RNNKERN_ISA");
  if (!forced || !*forced) {
    return {supported.front(), "the best that this processor runs"};
  }
  std::string known, here;
  for (const auto& candidate : kCandidates)
    known += (known.empty() ? "" : ", ") + std::string(candidate.name);
  for (const auto* backend : supported) {
    if (std::string_view(backend->name) == forced) return {backend, "RNNKERN_ISA asks for it"};
    here += std::string(here.empty() ? "" : ", ") + backend->name;
  }
  throw std::runtime_error("RNNKERN_ISA must be one of those that this processor runs (" + here +
                           "), got '" + forced + "' (built: " + known + ")");
}

Choice& choice() {
  static Choice made = choose();
  return made;
}

}  // namespace

const std::vector<const Backend*>& supported_backends() {
  static const std::vector<const Backend*> supported = [] {
    std::vector<const Backend*> found;
    for (const auto& candidate : kCandidates) {
      if (candidate.runs_here()) found.push_back(&candidate.get());
    }
    if (multiplies_pairs_slowly() && std::string_view(found[0]->name) == "avx512bf16")
      std::swap(found[0], found[1]);  // the other products of AVX-512 go first
    return found;
  }();
  return supported;
}

const Choice& chosen_backend() { return choice(); }

const Backend& int8_backend() {
  const auto& supported = supported_backends();
  auto at = std::find(supported.begin(), supported.end(), chosen_backend().backend);
  while (!(*at)->for_int8) ++at;  // the scalar one has it, and those after it
  return **at;
}

void use_backend(std::string_view name) {
  if (name.empty()) {
    choice() = choose();
    return;
  }
  for (const auto* backend : supported_backends()) {
    if (backend->name != name) continue;
    choice() = {backend, "a test asks for it"};
    return;
  }
  throw std::invalid_argument("isa must be one of supported_isas(), got '" + std::string(name) +
                              "'");
}

void PackedBy::require_in_use() const {
  if (in_use()) return;
  throw std::invalid_argument(std::string("the weights were packed for ") + backend_->name +
                              ", and " + chosen_backend().backend->name + " is in use");
}

}  // namespace rnnkern
