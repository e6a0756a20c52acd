// SPDX-License-Identifier: Apache-2.0
// What is arithmetic: the plan of a call, the schedule of a batch, and memory in pieces.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "check.h"
#include "core/lane.h"
#include "core/memory.h"
#include "core/schedule.h"
#include "cpu/team/team.h"
#include "cuda/plan.h"

namespace rnnkern {
namespace {

constexpr Index kMost = std::numeric_limits<Index>::max();

Work work(Index steps, Index batch, Index units) {
  const auto h = static_cast<double>(units), b = static_cast<double>(batch);
  return {.steps = steps,
          .batch = batch,
          .units = units,
          .barriers = true,
          .step_flops = 8 * h * h * b,
          .total_flops = 16 * h * h * b * static_cast<double>(steps),
          .weight_bytes = 16 * units * units};
}

bool is(const Plan& plan, int row_groups, int unit_groups) {
  return plan.row_groups == row_groups && plan.unit_groups == unit_groups;
}

TEST(quotients_by_a_reciprocal_are_right_to_a_unit_in_the_last_place) {
  // As a GPU's reciprocal may be: the nearest float, or one beside it.
  for (int k = 0; k < 100'000; ++k) {
    const float b = std::exp2(126.0F * static_cast<float>(k) / 100'000.0F);
    const float nearest = 1 / b, infinity = std::numeric_limits<float>::infinity();
    for (const float r :
         {nearest, std::nextafter(nearest, 0.0F), std::nextafter(nearest, infinity)}) {
      for (const float a : {1.0F, 0.7F, b - 0.5F}) {
        const float q = quotient_by(a, b, r);
        const float unit = std::nextafter(q, infinity) - q;
        const double exact = static_cast<double>(a) / static_cast<double>(b);
        CHECK(std::abs(static_cast<double>(q) - exact) <= static_cast<double>(unit));
      }
    }
  }
  CHECK(std::isnan(quotient_by(1.0F, std::nanf(""), std::nanf(""))));
}

TEST(divisors_divide) {
  for (int d : {1, 2, 3, 5, 7, 8, 12, 33, 96, 511, 512}) {
    const auto by = cuda::Divisor::of(d);
    const int most = (1 << 30) / d;
    for (int n = 0; n < 3000; ++n) CHECK(n / by == n / d);
    for (int n = most - 3000; n <= most; ++n) CHECK(n / by == n / d);
  }
}

TEST(plans_share_rows_or_units_or_nothing) {
  CHECK(is(make_plan(work(50, 256, 256), 1), 1, 1));
  CHECK(is(make_plan(work(1, 1, 16), 8), 1, 1));      // too little to wake anyone
  CHECK(is(make_plan(work(50, 1024, 64), 4), 4, 1));  // rows enough for all
  Work apart = work(50, 1, 256);
  apart.barriers = false, apart.step_flops = 0, apart.weight_bytes = 0;
  CHECK(is(make_plan(apart, 4), 1, 4));                // units that wait for nobody
  CHECK(is(make_plan(work(50, 1, 1024), 4), 1, 4));    // one row: its units are shared
  CHECK(is(make_plan(work(100000, 1, 16), 4), 1, 1));  // a step too short for a barrier
}

TEST(plans_never_have_more_threads_than_there_are) {
  for (const Index steps : {Index{1}, Index{50}, Index{1} << 40}) {
    for (const Index batch : {Index{1}, Index{3}, Index{64}, Index{1} << 30}) {
      for (const Index units : {Index{1}, Index{33}, Index{1024}}) {
        for (const int threads : {1, 2, 3, 8, 64, 4096}) {
          const Plan plan = make_plan(work(steps, batch, units), threads);
          CHECK(plan.row_groups >= 1 && plan.unit_groups >= 1);
          CHECK(plan.threads() <= threads);
          CHECK(plan.reason[0] != '\0');
        }
      }
    }
  }
}

TEST(a_schedule_sorts_rows_by_falling_length) {
  const ScheduleStorage storage(4, 5, std::vector<Index>{2, 0, 4, 2, 1});
  const Schedule schedule = storage.schedule(false);
  const Index order[] = {2, 0, 3, 4, 1}, live[] = {4, 3, 1, 1};
  CHECK(std::memcmp(schedule.order, order, sizeof order) == 0);
  CHECK(storage.live_rows() == 9 && schedule.offset[0] == 0 && schedule.offset[4] == 9);
  for (Index t = 0; t < 4; ++t) CHECK(schedule.live(t) == live[t]);
  CHECK(schedule.live(-1) == 0 && schedule.live(4) == 0);
  CHECK(storage.ragged() && storage.length(3) == 2);
}

TEST(a_reversed_schedule_begins_with_the_last_step) {
  const ScheduleStorage storage(4, 3, std::vector<Index>{4, 1, 2});
  const Schedule schedule = storage.schedule(true);
  const Index live[] = {1, 1, 2, 3};
  for (Index s = 0; s < 4; ++s) {
    CHECK(schedule.time(s) == 3 - s);
    CHECK(schedule.live(s) == live[s]);
  }
}

TEST(without_lengths_every_row_has_all_steps) {
  const ScheduleStorage storage(3, 2, std::nullopt);
  const Schedule schedule = storage.schedule(false);
  CHECK(!storage.ragged() && storage.live_rows() == 6);
  for (Index b = 0; b < 2; ++b) CHECK(schedule.order[b] == b);
}

TEST(lengths_out_of_range_are_refused) {
  for (const Index wrong : {Index{-1}, Index{4}, kMost, -kMost}) {
    CHECK(check::throws<std::invalid_argument>(
        [&] { ScheduleStorage(3, 2, std::vector<Index>{1, wrong}); }));
  }
}

TEST(stretches_between_resets_are_rows_of_their_own) {
  // Row 0 begins anew before step 2; row 1 skips steps 0 and 3, and begins anew behind its last live one.
  const unsigned char resets[4][2] = {{0, 0}, {0, 0}, {1, 0}, {0, 1}};
  const unsigned char mask[4][2] = {{1, 0}, {1, 1}, {1, 1}, {1, 0}};
  const ScheduleStorage storage(4, 2, std::nullopt, {{&resets[0][0], 2, 1}, {&mask[0][0], 2, 1}});
  CHECK(storage.steps() == 4 && storage.batch() == 2 && storage.live_rows() == 6);
  const Schedule schedule = storage.schedule(false);
  CHECK(schedule.steps == 2 && schedule.batch == 3 && schedule.live(0) == 3);
  const Index places[6][2] = {{0, 0}, {2, 0}, {1, 1}, {1, 0}, {3, 0}, {2, 1}};
  for (Index p = 0; p < 6; ++p) {
    const Place place = schedule.at(p / 3, p % 3);
    CHECK(place.t == places[p][0] && place.b == places[p][1]);
  }
  const Stretches& stretches = *storage.stretches();
  const float given[2] = {1, 2}, reached[3] = {3, 4, 5};
  const float begin[2][3] = {{1, 0, 2}, {0, 1, 0}}, end[2][2] = {{4, 0}, {3, 5}};
  for (const bool reverse : {false, true}) {
    float states[3], state[2] = {1, 2};
    stretches.begin(reverse, given, 1, states);
    CHECK(std::memcmp(states, begin[reverse], sizeof states) == 0);
    stretches.end(reverse, reached, 1, state);
    CHECK(std::memcmp(state, end[reverse], sizeof state) == 0);
  }
}

TEST(marks_that_cut_nothing_are_lengths) {
  const unsigned char mask[3][2] = {{1, 1}, {1, 0}, {1, 0}};
  const ScheduleStorage storage(3, 2, std::nullopt, {{}, {&mask[0][0], 2, 1}});
  CHECK(!storage.stretches() && storage.ragged());
  CHECK(storage.length(0) == 3 && storage.length(1) == 1);
}

TEST(tokens_have_a_slot_for_each_that_is_live) {
  const ScheduleStorage storage(2, 3, std::vector<Index>{2, 1, 2});
  const std::int64_t x[2][3] = {{7, 5, 7}, {5, 99, 2}};  // 99 is past its row's end
  const TokenStorage tokens(storage, {&x[0][0], 3, 1}, 8);
  const Tokens view = tokens.tokens();
  const std::int32_t slots[] = {0, 0, 1, 1, 2};  // rows in the order 0, 2, 1
  CHECK(view.count == 3);
  CHECK(view.token[0] == 7 && view.token[1] == 5 && view.token[2] == 2);
  CHECK(std::memcmp(view.slot, slots, sizeof slots) == 0);
  CHECK(check::throws<std::invalid_argument>([&] { TokenStorage(storage, {&x[0][0], 3, 1}, 7); }));
}

// What a kernel does: the same takes, once to measure and once to carve.
struct Buffers {
  explicit Buffers(Arena arena)
      : a(arena.take<float>(3)),
        b(arena.take<double>(17)),
        c(arena.take<char>(0)),
        d(arena.take<char>(65)),
        used(arena.used()) {}
  float* a;
  double* b;
  char *c, *d;
  Index used;
};

TEST(an_arena_measures_what_it_carves) {
  const Buffers measured{Arena(nullptr)};
  CHECK(!measured.a && !measured.b && !measured.d);
  const AlignedBytes bytes(measured.used);
  const Buffers carved{Arena(bytes.get())};
  CHECK(carved.used == measured.used);
  const auto at = [&](const void* p) { return static_cast<const std::byte*>(p) - bytes.get(); };
  CHECK(at(carved.a) == 0 && at(carved.b) == 64 && at(carved.d) == 64 + 192);
  CHECK(at(carved.d) + 65 <= carved.used);
  std::memset(bytes.get(), 1, static_cast<std::size_t>(carved.used));  // a sanitizer would tell
}

TEST(memory_is_aligned_and_moves) {
  for (const Index size : {Index{1}, Index{63}, Index{1000}, Index{1} << 22}) {
    AlignedBytes bytes(size);
    CHECK(reinterpret_cast<std::uintptr_t>(bytes.get()) % 64 == 0);
    std::memset(bytes.get(), 1, static_cast<std::size_t>(size));
    std::byte* const where = bytes.get();
    AlignedBytes moved(std::move(bytes));
    CHECK(moved.get() == where);
    AlignedBytes other(64);
    other = std::move(moved);
    CHECK(other.get() == where);
  }
  CHECK(AlignedBytes().get() == nullptr);
}

TEST(blocks_that_live_at_once_are_apart) {
  std::vector<AlignedBytes> blocks;
  for (int turn = 0; turn < 3; ++turn) {  // the later ones are what the earlier gave back
    blocks.clear();
    for (int k = 0; k < 20; ++k) {
      blocks.emplace_back(Index{4096} * (k + 1));
      std::memset(blocks.back().get(), k, std::size_t{4096} * static_cast<std::size_t>(k + 1));
    }
    for (int k = 0; k < 20; ++k)
      CHECK(blocks[static_cast<std::size_t>(k)].get()[4095] == std::byte(k));
  }
}

}  // namespace
}  // namespace rnnkern
