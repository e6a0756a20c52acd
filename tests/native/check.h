// SPDX-License-Identifier: Apache-2.0
// The little that a test in C++ needs: TEST(name) { ... } and CHECK(condition), from any thread. Of our
// own, so that the tests are built with the compiler alone.
#pragma once

#include <atomic>
#include <cstdio>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registered {
  Registered(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline std::atomic<int> failures{0};

inline void failed(const char* file, int line, const char* condition) {
  ++failures;
  std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
}

template <class Error, class F>
bool throws(F f) {
  try {
    f();
  } catch (const Error&) {
    return true;
  }
  return false;
}

}  // namespace check

#define TEST(name)                                               \
  static void name();                                            \
  static const check::Registered registered_##name(#name, name); \
  static void name()

#define CHECK(...) ((__VA_ARGS__) ? void() : check::failed(__FILE__, __LINE__, #__VA_ARGS__))
