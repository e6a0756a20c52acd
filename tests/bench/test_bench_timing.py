# SPDX-License-Identifier: Apache-2.0
"""How the bench reads the clock, with a clock that the tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat
from typing import Any

import pytest

from rnnkern.bench import timing
from rnnkern.bench.timing import Bandwidth, Spread, alternate, product_peak


class Clock:
    """In the place of the module ``time``: only calls and sleep make time go by."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def call(self, durations: Iterator[float]) -> Callable[[], None]:
        """A contender whose calls take these seconds, one after the other."""

        def run() -> None:
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "get_num_threads", lambda: 1)
    return clock


def test_median_and_quartiles(clock: Clock) -> None:
    # Calls so long that each is a turn of its own.
    times = alternate({"a": clock.call(iter([0.1, 1.0, 0.2, 0.3]))}, 0.0)
    assert times["a"].low == pytest.approx(0.125)
    assert times["a"].median == pytest.approx(0.25)
    assert times["a"].high == pytest.approx(0.825)
    assert times["a"].describe()["ms"] == pytest.approx(250)


def test_the_first_call_of_a_turn_does_not_count(clock: Clock) -> None:
    # 30 ms, for caches are another contender's, then twice 10 ms.
    times = alternate({"a": clock.call(cycle([0.03, 0.01, 0.01]))}, 0.0)
    assert list(vars(times["a"]).values()) == pytest.approx([0.01] * 3)


def test_short_calls_are_read_together(clock: Clock) -> None:
    times = alternate({"a": clock.call(repeat(1e-4))}, 0.0)
    assert times["a"].median == pytest.approx(1e-4)
    readings = round(clock.now / 1e-3)
    assert readings < 120, "one reading of the clock spans about a millisecond"


def test_every_contender_is_read_some_times_however_little_time_there_is(clock: Clock) -> None:
    calls = chain([1.0, 2.0, 3.0, 4.0], repeat(100.0))
    assert alternate({"a": clock.call(calls)}, 0.0)["a"].high < 5.0


def test_turns_go_on_until_each_contender_had_its_seconds(clock: Clock) -> None:
    alternate({name: clock.call(repeat(0.1)) for name in "ab"}, 1.0)
    assert 2.0 < clock.now < 2.5


def test_a_turn_is_one_contenders_and_then_the_nexts(clock: Clock) -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            clock.now += 0.1

        return run

    alternate({name: contender(name) for name in "abc"}, 0.0)
    assert calls == [*"abc"] * 4


@pytest.mark.parametrize("threads", [1, 2])
def test_idle_threads_of_the_last_contender_are_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(timing, "get_num_threads", lambda: threads)
    alternate({name: clock.call(repeat(0.1)) for name in "ab"}, 0.0)
    assert clock.slept == ([0.1] * 8 if threads > 1 else [])


def spreads(**seconds: float) -> Callable[..., dict[str, Spread]]:
    """In the place of ``alternate``: the contenders take these seconds, one a half at best."""

    def alternated(contenders: dict[str, Any], _: float) -> dict[str, Spread]:
        return {name: Spread(seconds[name] / 2, seconds[name], 9.0) for name in contenders}

    return alternated


def test_the_products_peak_is_the_faster_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "alternate", spreads(rnnkern=2.0, torch=4.0))
    assert product_peak("float32", 0.1) == pytest.approx(2 * 1024**3 / 2.0)
    monkeypatch.setattr(timing, "alternate", spreads(rnnkern=2.0, torch=1.0))
    pytest.importorskip("torch")
    assert product_peak("float32", 0.1) == pytest.approx(2 * 1024**3 / 1.0)


def test_bandwidth_is_bytes_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bandwidth = Bandwidth(0.1)
    monkeypatch.setattr(timing, "alternate", spreads(read=1.0))
    assert bandwidth(4096) == pytest.approx(4096 / 0.5)
    monkeypatch.setattr(timing, "alternate", spreads(read=4.0))
    assert bandwidth(4096) == pytest.approx(4096 / 0.5), "measured once for each size"
    assert bandwidth(8192) == pytest.approx(8192 / 2.0)
    assert bandwidth.describe() == {"4096": pytest.approx(8192e-9), "8192": pytest.approx(4096e-9)}
