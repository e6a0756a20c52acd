// SPDX-License-Identifier: Apache-2.0
// What only the emulation has.
#pragma once

#include <cstdint>

#include "cuda/plan.h"

namespace rnnkern::cuda {

// The device that the kernels take themselves to run on; descending: see launch.h; how often a flag
// is asked for: kMostPolls of block.h, or fewer.
void set_device(const DeviceFacts& facts, bool descending, std::uint32_t most_polls);

}  // namespace rnnkern::cuda
