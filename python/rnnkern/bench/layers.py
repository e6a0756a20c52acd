# SPDX-License-Identifier: Apache-2.0
"""Whole layers against the peers: for each problem answers are compared, then calls are timed."""

from __future__ import annotations

from typing import Any

from rnnkern import get_num_threads
from rnnkern.bench.case import Contender, compare, make_case, make_layer, tolerance
from rnnkern.bench.peers import contenders
from rnnkern.bench.problems import Problem
from rnnkern.bench.timing import Bandwidth, Calm, Spread, alternate, product_peak

_ATTEMPTS = 3
_FLOOR_FROM = 1 << 17  # bytes of weights; less is read in so short a time that calls would be timed


class Machine:
    """What this machine can do, measured when first asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._peaks: dict[str, float] = {}
        self.bandwidth = Bandwidth(seconds)
        self.calm = Calm()

    def peak(self, kind: str) -> float:
        """Flops a second of the product in a dtype; 0 where nobody can tell."""
        if kind not in self._peaks:
            self._peaks[kind] = product_peak(kind, self._seconds)
        return self._peaks[kind]

    def describe(self) -> dict[str, Any]:
        """For a report."""
        return {
            "peak_gflops": {kind: peak / 1e9 for kind, peak in self._peaks.items()},
            "read_gbytes_by_size": self.bandwidth.describe(),
        }


def measure(problem: Problem, machine: Machine, seconds: float) -> dict[str, Any]:
    """One line of the report.

    Args:
        problem: What is computed.
        machine: Its peak and bandwidth stand beside the times.
        seconds: To spend on each contender, about.

    Raises:
        DisagreementError: a peer gave another answer.
        ValueError: rnnkern cannot do it.

    """
    threads = get_num_threads()
    case = make_case(problem)
    able, absent = contenders(case, threads)
    compare(able, tolerance(problem))
    times, disturbed = _undisturbed(able, machine, seconds)
    peak = machine.peak(problem.compute or problem.dtype)
    ours = times["rnnkern"].median
    return {
        **problem.describe(),
        "work": problem.work,
        "flops": problem.flops,
        "intensity": _intensity(problem),
        "results": {
            name: {
                **spread.describe(),
                "gflops": problem.flops / spread.median / 1e9,
                "of_peak": problem.flops / spread.median / peak if peak else None,
            }
            for name, spread in times.items()
        },
        "ratios": {n: spread.median / ours for n, spread in times.items() if n != "rnnkern"},
        "over_floor": _over_floor(problem, ours, machine, threads),
        "absent": absent,
        "disturbed": disturbed,
    }


def _undisturbed(
    able: list[Contender], machine: Machine, seconds: float
) -> tuple[dict[str, Spread], bool]:
    """The times, measured anew while others use the machine; and whether they did to the last."""
    for _ in range(_ATTEMPTS):
        calm = machine.calm()
        times = alternate({contender.name: contender.run for contender in able}, seconds)
        if machine.calm() and calm:
            return times, False
    return times, True


def refusal(problem: Problem) -> str | None:
    """Why rnnkern cannot do a problem; None where it can."""
    try:
        make_layer(problem)
    except ValueError as error:
        return str(error)
    return None


def _intensity(problem: Problem) -> float | None:
    """Flops for each byte of recurrent weights; None where a cell has no such matrix."""
    size = problem.recurrent_bytes
    return problem.flops / (_weight_reads(problem) * size) if size else None


def _weight_reads(problem: Problem) -> int:
    """How often the recurrent weights of one layer and direction are read, all of these counted."""
    passes = 2 if problem.training else 1
    return problem.steps * problem.layers * problem.directions * passes


def _over_floor(problem: Problem, seconds: float, machine: Machine, threads: int) -> float | None:
    """Time over what reading the recurrent weights once a step takes, for one row of inference."""
    size = problem.recurrent_bytes
    if problem.batch > 1 or problem.training or problem.compute or size < _FLOOR_FROM:
        return None
    speed = threads * machine.bandwidth(size // threads)
    return seconds / (_weight_reads(problem) * size / speed)
