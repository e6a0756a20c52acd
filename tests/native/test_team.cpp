// SPDX-License-Identifier: Apache-2.0
// Teams, their barriers, pieces of work, and what ends a call in the middle. Cores are pretended, so that
// there are as many threads on every machine.
#include <chrono>
#include <thread>

#include "check.h"
#include "cpu/team/team.h"

namespace rnnkern {
namespace {

constexpr double kMuch = 1e9;  // flops that are worth every thread

// Four of them, and whatever the environment asks for, as many threads.
class Cores4 {
 public:
  Cores4() {
    pretend_cores(4, "");
    set_process_threads(4, "a test");
  }
  ~Cores4() {
    pretend_cores(0, "");
    set_process_threads(before_, "a test");
  }
  Cores4(const Cores4&) = delete;
  Cores4& operator=(const Cores4&) = delete;

 private:
  const int before_ = process_threads();
};

std::function<Plan(int)> grid(int row_groups, int unit_groups) {
  return [=](int) { return Plan{row_groups, unit_groups, "a test's"}; };
}

std::function<Plan(int)> all_rows() {
  return [](int threads) { return Plan{threads, 1, "a test's"}; };
}

TEST(every_place_of_the_grid_is_taken_once) {
  const Cores4 cores;
  for (const auto& [rows, units] : {std::pair{1, 1}, {4, 1}, {1, 4}, {2, 2}, {3, 1}}) {
    std::atomic<int> taken[4] = {};
    Call(kMuch).run(grid(rows, units), [&](const Worker& worker) {
      CHECK(worker.count == rows * units);
      CHECK(worker.row_groups == rows && worker.unit_groups == units);
      CHECK(worker.id == worker.row_group * units + worker.unit_group);
      ++taken[worker.id];
    });
    for (int id = 0; id < 4; ++id) CHECK(taken[id] == (id < rows * units ? 1 : 0));
  }
}

TEST(shares_are_the_whole_without_gaps) {
  const Cores4 cores;
  for (const Index n : {0, 1, 3, 4, 5, 1000}) {
    std::atomic<Index> begin[4], end[4];
    Call(kMuch).run(grid(4, 1), [&](const Worker& worker) {
      const auto share = worker.share(n);
      begin[worker.id] = share.begin;
      end[worker.id] = share.end;
    });
    CHECK(begin[0] == 0 && end[3] == n);
    for (int id = 1; id < 4; ++id) CHECK(begin[id] == end[id - 1]);
  }
}

TEST(what_was_written_before_a_barrier_is_read_after_it) {
  const Cores4 cores;
  int written[4] = {};  // not atomic: the barrier alone orders it
  Call(kMuch).run(grid(4, 1), [&](const Worker& worker) {
    for (int turn = 1; turn <= 500; ++turn) {
      written[worker.id] = turn;
      worker.wait_team();
      for (const int value : written) CHECK(value == turn);
      worker.wait_team();
    }
  });
}

TEST(row_groups_wait_for_their_own_alone) {
  const Cores4 cores;
  int written[2][2] = {};
  Call(kMuch).run(grid(2, 2), [&](const Worker& worker) {
    // One group meets ten times as often: it would hang if the other had to be there.
    const int turns = worker.row_group == 0 ? 500 : 50;
    auto& own = written[worker.row_group];
    for (int turn = 1; turn <= turns; ++turn) {
      own[worker.unit_group] = turn;
      worker.wait_group();
      CHECK(own[0] == turn && own[1] == turn);
      worker.wait_group();
    }
  });
}

TEST(every_piece_is_visited_once) {
  const Cores4 cores;
  for (const Index n : {0, 1, 4, 7, 1000}) {
    for (const Index size : {1, 3, 5000}) {
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(n));
      Call(kMuch).run(grid(4, 1), [&](const Worker& worker) {
        for (int turn = 0; turn < 4; ++turn) {
          const int queue = turn % Worker::kQueues;
          worker.offer(queue, n, size);
          worker.wait_team();
          worker.for_pieces(queue, [&](Index begin, Index end) {
            CHECK(begin < end);
            for (Index i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
          });
          worker.wait_team();
        }
      });
      for (const auto& count : visits) CHECK(count == 4);
    }
  }
}

TEST(others_take_the_pieces_of_one_that_is_late) {
  const Cores4 cores;
  std::atomic<Index> done[4] = {}, by_others{0};
  constexpr Index kParts = 400;
  Call(kMuch).run(grid(4, 1), [&](const Worker& worker) {
    worker.offer(0, kParts, 1);
    worker.wait_team();
    worker.for_pieces(0, [&](Index begin, Index end) {
      done[worker.id] += end - begin;
      if (worker.id == 2) {
        while (by_others < kParts - 1) std::this_thread::yield();
      } else {
        by_others += end - begin;
      }
    });
  });
  CHECK(done[2] <= 1);  // the one it is busy with
  CHECK(done[0] + done[1] + done[2] + done[3] == kParts);
}

TEST(calls_at_once_do_not_disturb_each_other) {
  const Cores4 cores;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([caller] {
      for (int turn = 0; turn < 50; ++turn) {
        const Index n = 100 + caller;
        std::atomic<Index> sum{0};
        Call call(kMuch);
        call.run(all_rows(), [&](const Worker& worker) {
          CHECK(worker.count <= call.most_threads());
          worker.offer(0, n, 7);
          worker.wait_team();
          worker.for_pieces(0, [&](Index begin, Index end) {
            for (Index i = begin; i < end; ++i) sum += i;
          });
        });
        CHECK(sum == n * (n - 1) / 2);
      }
    });
  }
  for (auto& caller : callers) caller.join();
}

TEST(segments_go_on_with_teams_of_other_sizes) {
  const Cores4 cores;
  pretend_teams({1, 3, 2, 4});
  std::vector<int> counts;
  Call call(kMuch);
  for (int segment = 0; segment < 8; ++segment) {
    call.run(all_rows(), [&](const Worker& worker) {
      CHECK(worker.wait_team());  // pretended teams break up wherever they can
      if (worker.id == 0) counts.push_back(worker.count);
    });
  }
  pretend_teams({});
  CHECK(counts == std::vector<int>({1, 3, 2, 4, 1, 3, 2, 4}));
}

std::atomic<bool> interrupts{false};

// However a thread leaves its work, it has left.
struct Inside {
  explicit Inside(std::atomic<int>& count) : count_(count) { ++count_; }
  ~Inside() { --count_; }
  std::atomic<int>& count_;
};

TEST(an_interrupt_stops_every_thread_and_the_next_call_works) {
  const Cores4 cores;
  set_interrupt_check([] { return interrupts.load(); });
  for (const bool meets : {false, true}) {
    std::atomic<int> inside{0};
    interrupts = true;
    CHECK(check::throws<Interrupted>([&] {
      Call(kMuch).run(grid(4, 1), [&](const Worker& worker) {
        const Inside here(inside);
        for (;;) {
          worker.progress(1e6);
          if (meets) worker.wait_team();
        }
      });
    }));
    CHECK(inside == 0);
    interrupts = false;
    std::atomic<int> ran{0};
    Call(kMuch).run(grid(4, 1), [&](const Worker&) { ++ran; });
    CHECK(ran == 4);
  }
  set_interrupt_check(nullptr);
}

struct Trouble {};

TEST(what_the_callers_thread_throws_stops_the_others) {
  const Cores4 cores;
  std::atomic<int> inside{0};
  CHECK(check::throws<Trouble>([&] {
    Call(kMuch).run(grid(2, 2), [&](const Worker& worker) {
      const Inside here(inside);
      if (worker.id == 0) throw Trouble();
      for (;;) worker.row_group == 0 ? worker.wait_group() : worker.wait_team();
    });
  }));
  CHECK(inside == 0);
}

}  // namespace
}  // namespace rnnkern
