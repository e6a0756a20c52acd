// SPDX-License-Identifier: Apache-2.0
#include "cpu/plan.h"

#include <unistd.h>

namespace rnnkern {
namespace {

// The second-level cache of a core, which the recurrent weights of all steps had better not exceed.
const Index own_cache_bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return static_cast<Index>(found);
#endif
  return Index{1} << 20;
}();

}  // namespace

Plan make_plan(const Work& work, int threads) {
  constexpr double kBarrierFlops = 1e4;  // what one meeting at a barrier costs, likewise
  if (threads <= 1) return {1, 1, "one thread is all that the limit allows"};
  const int most = work.whole_rows && work.batch < threads ? static_cast<int>(work.batch) : threads;
  if (work.total_flops < kWakeFlops * most)
    return {1, 1, "too little work to wake a second thread"};
  if (work.whole_rows) {
    return {most, 1,
            "layer normalisation: each thread owns rows of the batch, with all their units"};
  }
  const bool fits = work.weight_bytes <= own_cache_bytes;
  if (work.batch >= 4 * threads && (fits || work.batch >= 64 * threads)) {
    return {threads, 1, "each thread owns rows of the batch: no barrier between steps"};
  }
  if (!work.barriers) {
    return {1, threads, "each thread owns units: no product, and so no barrier, between steps"};
  }
  if (work.step_flops >= kBarrierFlops * threads) {
    return {1, threads,
            "each thread owns units: its weights stay in its cache, one barrier a phase"};
  }
  if (work.batch >= threads && fits) {
    return {threads, 1, "each thread owns rows of the batch: a step is too short for barriers"};
  }
  return {1, 1, "a step is too short to be shared"};
}

}  // namespace rnnkern
