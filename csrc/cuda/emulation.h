// What only the emulation has.
#pragma once

#include "cuda/plan.h"

namespace rnnkern::cuda {

// The device that the kernels take themselves to run on; descending: see launch.h.
void set_device(const DeviceFacts& facts, bool descending);

}  // namespace rnnkern::cuda
