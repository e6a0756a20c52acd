# SPDX-License-Identifier: Apache-2.0
"""The CPU's kernels on 1 to 16 threads beside PyTorch's: python bench/cpu_scaling.py FILE.

bench/gpu runs it where a GPU is, for such a machine has more cores than most that build this.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_work

from rnnkern.bench.case import compare, make_case, tolerance
from rnnkern.bench.peers import rnnkern_contender
from rnnkern.bench.problems import Problem
from rnnkern.bench.timing import alternate
from rnnkern.bench.torch_peer import set_peer_threads, torch_contender

THREADS = (1, 2, 4, 8, 16)
_SECONDS = 0.3  # of measuring, a contender
_LONGEST = 30.0  # seconds for a work


def works() -> Iterator[tuple[Problem, int]]:
    """Problems and threads, so ordered that a part of it tells of all problems."""
    problems = [
        Problem("lstm", 64, 50, 512, training=True),
        Problem("lstm", 1, 100, 1024, training=False),
        Problem("gru-after", 32, 50, 256, training=True),
    ]
    problems += [replace(problems[0], compute="bfloat16"), replace(problems[0], training=False)]
    cores = len(os.sched_getaffinity(0))
    for problem in problems:
        for threads in (1, *reversed(THREADS[1:])):
            if threads <= cores:
                yield problem, threads


def measure(problem: Problem, threads: int) -> dict[str, Any]:
    """Milliseconds of both, or why there are none."""
    set_peer_threads(threads)
    case = make_case(problem)
    able = [rnnkern_contender(case)]
    peer = torch_contender(case)
    record: dict[str, Any] = {}
    if isinstance(peer, str):
        record["error"] = f"PyTorch {peer}"
    else:
        able.append(peer)
        compare(able, tolerance(problem))
    times = alternate({contender.name: contender.run for contender in able}, _SECONDS)
    return record | {f"{name}_ms": spread.median * 1e3 for name, spread in times.items()}


def main() -> None:
    """All works that are not on record, as far as there is time."""
    path = Path(sys.argv[1])
    end = time.monotonic() + gpu_work.seconds_allowed(3600.0)
    done = {record["key"] for record in gpu_work.read(path) if "scaling" in record}
    for problem, threads in works():
        way = "train" if problem.training else "infer"
        name = f"{problem.cell} H{problem.hidden} B{problem.batch} T{problem.steps} "
        name += f"{problem.compute or problem.dtype} {way}"
        about: dict[str, Any] = {
            "key": f"scaling {name} {threads}",
            "scaling": name,
            "threads": threads,
        }
        if about["key"] in done or time.monotonic() > end:
            continue
        with gpu_work.begun(path, about, _LONGEST):
            try:
                found = measure(problem, threads)
            except (ArithmeticError, RuntimeError, ValueError) as error:
                found = {"error": str(error)}
        gpu_work.append(path, about | found)
        print(about["key"], found, flush=True)


if __name__ == "__main__":
    main()
