// SPDX-License-Identifier: Apache-2.0
#include "cpu/team/cores.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#include "core/forks.h"

namespace rnnkern {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

// Guards what is read and written seldom.
constinit std::mutex cores_mutex;
[[maybe_unused]] const bool cores_forks = at_fork({.before = [] { cores_mutex.lock(); },
                                                   .in_parent = [] { cores_mutex.unlock(); },
                                                   .in_child = [] { cores_mutex.unlock(); }});

std::string& pretended_root() {
  static std::string& root = *new std::string;
  return root;
}
constinit std::atomic<int> pretended_cores{0};

// A quota is looked up again after a while: whoever runs a container may change it.
constexpr std::int64_t kQuotaMilliseconds = 2000;
constinit std::atomic<double> known_quota{kNoQuota};
constinit std::atomic<std::int64_t> quota_expires{0};

std::int64_t milliseconds() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double quota_now() {
  const std::int64_t now = milliseconds();
  std::int64_t expires = quota_expires.load(std::memory_order_acquire);
  // Whoever moves the date on looks it up; the first ever waits for none, as it runs at import.
  if (now >= expires && quota_expires.compare_exchange_strong(expires, now + kQuotaMilliseconds)) {
    const std::lock_guard lock(cores_mutex);
    known_quota.store(cpu_quota(pretended_root()), std::memory_order_release);
  }
  return known_quota.load(std::memory_order_acquire);
}

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

// "max 100000" or "150000 100000", in microseconds.
double quota_v2(const std::string& group) {
  const auto line = first_line(group + "/cpu.max");
  if (!line) return kNoQuota;
  std::istringstream text(*line);
  double quota = 0, period = 0;
  if (!(text >> quota >> period) || quota <= 0 || period <= 0) return kNoQuota;
  return quota / period;
}

double quota_v1(const std::string& group) {
  const auto quota = first_line(group + "/cpu.cfs_quota_us"),
             period = first_line(group + "/cpu.cfs_period_us");
  if (!quota || !period) return kNoQuota;
  const double q = std::strtod(quota->c_str(), nullptr), p = std::strtod(period->c_str(), nullptr);
  return q > 0 && p > 0 ? q / p : kNoQuota;
}

// Of the group and all above it. A container may see its own group as the root and still be told its
// name outside: then nothing is found below, and the root's is what counts.
template <class Quota>
double smallest_quota(const std::string& mount, std::string group, Quota quota_of) {
  double smallest = kNoQuota;
  for (;;) {
    while (!group.empty() && group.back() == '/') group.pop_back();
    smallest = std::min(smallest, quota_of(mount + group));
    if (group.empty()) return smallest;
    group.erase(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

// What the environment asks for; OpenMP's variable may be a list, whose first number counts.
struct Asked {
  int count;
  const char* by;
};

std::optional<int> threads_from(const char* variable) {
  const char* text = std::getenv(variable);
  if (!text) return std::nullopt;
  char* end = nullptr;
  errno = 0;
  const long count = std::strtol(text, &end, 10);
  while (*end == ' ') ++end;
  if (end == text || (*end != '\0' && *end != ',') || count < 1) return std::nullopt;
  return static_cast<int>(std::min<long>(count, std::numeric_limits<int>::max()));
}

Asked asked_by_environment() {
  for (const char* variable : {"RNNKERN_NUM_THREADS", "OMP_NUM_THREADS"}) {
    if (const auto count = threads_from(variable)) return {*count, variable};
  }
  return {0, nullptr};
}

const Asked from_environment = asked_by_environment();
std::atomic<int> asked_of_process{from_environment.count};
std::atomic<const char*> asked_by{from_environment.by};
thread_local int asked_of_thread = 0;

}  // namespace

double cpu_quota(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  double smallest = kNoQuota;
  for (std::string line; std::getline(groups, line);) {
    // number:controllers:path, of which version 2 has "0::path".
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = ",";
    controllers.append(line, first + 1, second - first - 1).append(",");
    const std::string group = line.substr(second + 1), mounts = root + "/sys/fs/cgroup";
    if (controllers == ",,") {
      for (const char* mount : {"", "/unified"})
        smallest = std::min(smallest, smallest_quota(mounts + mount, group, quota_v2));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      for (const char* mount : {"/cpu", "/cpu,cpuacct"})
        smallest = std::min(smallest, smallest_quota(mounts + mount, group, quota_v1));
    }
  }
  return smallest;
}

Cores cores_now() {
  Cores cores{};
#ifdef __linux__
  // Fails where the kernel knows of more processors than the mask has room for.
  if (sched_getaffinity(0, sizeof cores.mask.bits, &cores.mask.bits) == 0)
    cores.count = CPU_COUNT(&cores.mask.bits);
#endif
  // The library may read a file for this one: only where nothing else tells.
  if (cores.count < 1)
    cores.count = static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
  const int pretended = pretended_cores.load(std::memory_order_relaxed);
  if (pretended > 0) cores.count = pretended;
  const double quota = std::ceil(quota_now());
  if (quota < cores.count) {
    cores.count = std::max(static_cast<int>(quota), 1);
    cores.by_quota = true;
  }
  return cores;
}

int this_core() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

void leave_out([[maybe_unused]] CoreMask& mask, [[maybe_unused]] int core) {
#ifdef __linux__
  if (core >= 0) CPU_CLR(static_cast<std::size_t>(core), &mask.bits);
#endif
}

bool run_on([[maybe_unused]] const CoreMask& mask) {
#ifdef __linux__
  return CPU_COUNT(&mask.bits) > 0 && sched_setaffinity(0, sizeof mask.bits, &mask.bits) == 0;
#else
  return false;
#endif
}

int process_threads() { return asked_of_process.load(std::memory_order_relaxed); }

void set_process_threads(int count, const char* by) {
  asked_of_process.store(count, std::memory_order_relaxed);
  asked_by.store(by, std::memory_order_relaxed);
}

int own_threads() { return asked_of_thread; }

void set_own_threads(int count) { asked_of_thread = count; }

int thread_limit(const Cores& cores) {
  return own_threads() > 0 ? std::min(own_threads(), cores.count) : process_limit(cores);
}

int process_limit(const Cores& cores) {
  return process_threads() > 0 ? std::min(process_threads(), cores.count) : cores.count;
}

std::string thread_limit_reason() {
  const Cores cores = cores_now();
  const std::string there =
      std::to_string(cores.count) + (cores.by_quota ? " by the control group's quota of CPU time"
                                                    : " by the processors this thread may run on");
  const int asked = own_threads() > 0 ? own_threads() : process_threads();
  if (asked == 0) return there;
  const char* by = own_threads() > 0 ? "threads()" : asked_by.load(std::memory_order_relaxed);
  return std::to_string(asked) + " asked for by " + by + ", " + there;
}

void pretend_cores(int count, const std::string& root) {
  const std::lock_guard lock(cores_mutex);
  pretended_root() = root;
  pretended_cores.store(count, std::memory_order_relaxed);
  quota_expires.store(0);
}

bool pretends_cores() { return pretended_cores.load(std::memory_order_relaxed) > 0; }

}  // namespace rnnkern
