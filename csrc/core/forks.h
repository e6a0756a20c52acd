// SPDX-License-Identifier: Apache-2.0
// What a fork must not catch half done.
#pragma once

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace rnnkern {

struct ForkHandlers {
  void (*before)() = nullptr;
  void (*in_parent)() = nullptr;
  void (*in_child)() = nullptr;
};

inline bool at_fork([[maybe_unused]] const ForkHandlers& handlers) {
#if defined(__unix__) || defined(__APPLE__)
  return pthread_atfork(handlers.before, handlers.in_parent, handlers.in_child) == 0;
#else
  return true;
#endif
}

}  // namespace rnnkern
