// Tells ThreadSanitizer of OpenMP's fork and join, which it cannot see inside GCC's libgomp (a library
// built without it, waiting on futexes): without this every parallel region looks like a race.
// tools/sanitize preloads it. The two edges are those that OpenMP promises and no more; barriers and
// locks of our own are made of atomics, which the sanitizer sees for itself.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

namespace {

using Body = void (*)(void*);

struct Region {
  Body body;
  void* data;
  char fork = 0, join = 0;  // only their addresses matter
};

void run(void* argument) {
  auto* region = static_cast<Region*>(argument);
  __tsan_acquire(&region->fork);
  region->body(region->data);
  __tsan_release(&region->join);
}

}  // namespace

// What the compiler calls for `#pragma omp parallel`.
extern "C" void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  using Parallel = void (*)(Body, void*, unsigned, unsigned);
  static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(&region.fork);
  parallel(run, &region, threads, flags);
  __tsan_acquire(&region.join);
}
