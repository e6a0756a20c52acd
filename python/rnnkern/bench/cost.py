# SPDX-License-Identifier: Apache-2.0
"""Our own cost: of a call that does next to nothing, and as the work or the threads double."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from rnnkern import set_num_threads
from rnnkern.bench.case import make_case
from rnnkern.bench.peers import rnnkern_contender
from rnnkern.bench.problems import Problem
from rnnkern.bench.report import Line, duration, table
from rnnkern.bench.timing import Call, alternate
from rnnkern.cells import CELLS as CELLS_BY_NAME

CELLS = ("gru-after", "lstm")  # unless others are asked for
_BASE = (16, 25, 128)  # B, T, H
_DOUBLINGS = 3
_CALLED = 16  # I and H of a call that does next to nothing
_SCALED = ((32, 50, 256), (64, 25, 512))  # (B, T, H) that threads are compared on


def doubled(cell: str) -> Iterator[tuple[str, Problem]]:
    """What is doubled, and the problem: three times from one base, each size in turn."""
    base = Problem(cell, *_BASE, training=True)
    for what in ("batch", "steps", "hidden"):
        for power in range(_DOUBLINGS + 1):
            yield what, replace(base, **{what: getattr(base, what) << power})


def measure_cost(cell: str, seconds: float) -> list[dict[str, Any]]:
    """The time of a training step of every problem of ``doubled``, alternating."""
    problems = list(doubled(cell))
    calls = {
        f"{what} {problem}": rnnkern_contender(make_case(problem)).run for what, problem in problems
    }
    times = alternate(calls, seconds)
    return [
        {
            **problem.describe(),
            "doubled": what,
            "flops": problem.flops,
            "ms": times[f"{what} {problem}"].median * 1e3,
        }
        for what, problem in problems
    ]


def cost_table(lines: list[Line]) -> str:
    """How many times the time grows with each doubling, beside the flops."""
    rows = []
    for before, line in pairwise(lines):
        if (before["cell"], before["doubled"]) == (line["cell"], line["doubled"]):
            what = line["doubled"]
            rows.append(
                [
                    line["cell"],
                    f"{what} {before[what]} to {line[what]}",
                    f"{line['ms'] / before['ms']:.2f}",
                    f"{line['flops'] / before['flops']:.2f}",
                ]
            )
    return table(["cell", "doubled", "time grows", "flops grow"], rows)


def measure_calls(cell: str, seconds: float) -> dict[str, Any]:
    """The time of calls of T = B = 1, alternating: nearly all of it is what a call costs."""
    layer = CELLS_BY_NAME[cell].build(_CALLED, _CALLED, seed=0)
    frozen, stream = layer.freeze(), layer.stream()
    x = np.ones((1, 1, _CALLED), np.float32)

    def training() -> None:
        y, _, tape = layer.forward(x)
        tape.backward(y)

    calls: dict[str, Call] = {
        "plain": lambda: layer(x),
        "frozen": lambda: frozen(x),
        "training": training,
        "step": lambda: stream.step(x[0]),
    }
    times = alternate(calls, seconds)
    return {"cell": cell, **{f"{name}_us": t.median * 1e6 for name, t in times.items()}}


def calls_table(lines: list[Line]) -> str:
    """Microseconds."""
    names = ("plain", "frozen", "training", "step")
    return table(
        ["cell", "plain call, μs", "frozen, μs", "forward and backward, μs", "stream's step, μs"],
        [[line["cell"], *(f"{line[f'{name}_us']:.1f}" for name in names)] for line in lines],
    )


def measure_threads(cell: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """A training step with one thread and with ``threads``, alternating; leaves one thread set."""
    lines = []
    for size in _SCALED:
        run = rnnkern_contender(make_case(Problem(cell, *size, training=True))).run

        calls = {str(count): _with_threads(count, run) for count in (1, threads)}
        times = {name: spread.median for name, spread in alternate(calls, seconds).items()}
        set_num_threads(1)
        lines.append(
            {
                **dict(zip(("batch", "steps", "hidden"), size, strict=True)),
                "cell": cell,
                "threads": threads,
                "one_thread_ms": times["1"] * 1e3,
                "ms": times[str(threads)] * 1e3,
            }
        )
    return lines


def _with_threads(count: int, run: Call) -> Call:
    def call() -> None:
        set_num_threads(count)
        run()

    return call


def threads_table(lines: list[Line]) -> str:
    """Both times and their ratio."""
    return table(
        ["cell", "B, T, H", "one thread", "threads", "time", "times faster"],
        [
            [
                line["cell"],
                f"{line['batch']}, {line['steps']}, {line['hidden']}",
                duration(line["one_thread_ms"] / 1e3),
                str(line["threads"]),
                duration(line["ms"] / 1e3),
                f"{line['one_thread_ms'] / line['ms']:.2f}",
            ]
            for line in lines
        ],
    )
