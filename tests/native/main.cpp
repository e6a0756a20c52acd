// SPDX-License-Identifier: Apache-2.0
// Runs the tests, or those whose names hold the first argument.
#include <string_view>

#include "check.h"

int main(int count, char** arguments) {
  const std::string_view wanted = count > 1 ? arguments[1] : "";
  int run = 0, bad = 0;
  for (const auto& [name, test] : check::tests()) {
    if (std::string_view(name).find(wanted) == std::string_view::npos) continue;
    const int before = check::failures;
    test();
    const bool good = check::failures == before;
    std::printf("%s %s\n", good ? "ok    " : "FAILED", name);
    std::fflush(stdout);
    ++run;
    bad += !good;
  }
  std::printf("%d of %d passed\n", run - bad, run);
  return bad || !run ? 1 : 0;
}
