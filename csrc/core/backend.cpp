#include "core/backend.h"

#include <cstdlib>
#include <stdexcept>

namespace rnnkern {

namespace {

struct Candidate {
  const char* name;
  bool (*runs_here)();
  const Backend& (*get)();
};

// Best first.
constexpr Candidate kCandidates[] = {
#if defined(RNNKERN_AVX512)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma");
     },
     avx512_backend},
#endif
#if defined(RNNKERN_AVX2)
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     avx2_backend},
#endif
    {"scalar", [] { return true; }, scalar_backend},
};

Choice choose() {
  const auto& supported = supported_backends();
  const char* forced = std::getenv("RNNKERN_ISA");
  if (!forced || !*forced) {
    return {supported.front(), "the best that this processor runs"};
  }
  std::string known, here;
  for (const auto& candidate : kCandidates)
    known += std::string(known.empty() ? "" : ", ") + candidate.name;
  for (const auto* backend : supported) {
    if (std::string_view(backend->name) == forced) return {backend, "RNNKERN_ISA asks for it"};
    here += std::string(here.empty() ? "" : ", ") + backend->name;
  }
  throw std::runtime_error("RNNKERN_ISA must be one of those that this processor runs (" + here +
                           "), got '" + forced + "' (built: " + known + ")");
}

}  // namespace

const std::vector<const Backend*>& supported_backends() {
  static const std::vector<const Backend*> supported = [] {
    std::vector<const Backend*> found;
    for (const auto& candidate : kCandidates) {
      if (candidate.runs_here()) found.push_back(&candidate.get());
    }
    return found;
  }();
  return supported;
}

const Choice& chosen_backend() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace rnnkern
