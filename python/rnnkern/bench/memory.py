# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of one call, above what the caller holds before it: Linux alone.

Each contender runs in a process of its own: ``python -m rnnkern.bench.memory NAME PROBLEM``.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rnnkern import get_num_threads, set_num_threads
from rnnkern.bench.case import Case, Contender, make_case
from rnnkern.bench.peers import rnnkern_contender
from rnnkern.bench.problems import Problem
from rnnkern.bench.report import Line, table
from rnnkern.bench.torch_peer import set_peer_threads, torch_contender

_PROCESS = Path("/proc/self")
CELLS = ("lstm", "gru-after")  # unless others are asked for
_SIZES = ((64, 50, 512), (32, 1000, 256))
_CONTENDERS: dict[str, Callable[[Case], Contender | str]] = {
    "rnnkern": rnnkern_contender,
    "torch": torch_contender,
}


def problems(cells: Sequence[str]) -> Iterator[Problem]:
    """Training at two sizes; inference at one, and with twice the steps."""
    for cell in cells:
        for size in _SIZES:
            yield Problem(cell, *size, training=True)
        for steps in (500, 1000):
            yield Problem(cell, 32, steps, 256, training=False)


def measure(problem: Problem) -> dict[str, Any]:
    """Megabytes that a call of each contender takes at its peak, y included.

    Raises:
        OSError: this system does not tell.
        RuntimeError: a contender's process failed.

    """
    if not (_PROCESS / "clear_refs").exists():
        raise OSError("peak memory is measured through /proc/self/clear_refs, which is not here")
    absent: dict[str, str] = {}
    peaks: dict[str, float] = {}
    for name in _CONTENDERS:
        arguments = [name, json.dumps(problem.describe()), str(get_num_threads())]
        done = subprocess.run(
            [sys.executable, "-m", "rnnkern.bench.memory", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the process of {name} failed: {done.stderr.strip()}")
        result = json.loads(done.stdout)
        if isinstance(result, str):
            absent[name] = result
        else:
            peaks[name] = result
    y = problem.steps * problem.batch * problem.hidden * 4 / 1e6
    return {**problem.describe(), "y_megabytes": y, "megabytes": peaks, "absent": absent}


def memory_table(lines: list[Line]) -> str:
    """Megabytes of each contender; y is part of them."""
    names = list(dict.fromkeys(name for line in lines for name in line["megabytes"]))
    return table(
        ["cell", "B, T, H", "work", "y, MB", *(f"{name}, MB" for name in names)],
        [
            [
                line["cell"],
                f"{line['batch']}, {line['steps']}, {line['hidden']}",
                "train" if line["training"] else "infer",
                f"{line['y_megabytes']:.1f}",
                *(
                    f"{line['megabytes'][name]:.1f}" if name in line["megabytes"] else "–"
                    for name in names
                ),
            ]
            for line in lines
        ],
    )


def _peak(name: str, problem: Problem) -> float | str:
    """Of one call in this process, or why there is none."""
    small = {**problem.describe(), "batch": 2, "steps": 2}
    prepare = _contender(name, make_case(Problem(**small)))
    if isinstance(prepare, str):
        return prepare
    prepare.run()  # what is loaded and set up once is not the call's
    contender = _contender(name, make_case(problem))
    assert not isinstance(contender, str)
    ctypes.CDLL(None).malloc_trim(0)  # free memory that is resident would hide what is taken anew
    (_PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    kept = contender.run()
    peak = _status("VmHWM")
    del kept
    return (peak - before) / 1e6


def _contender(name: str, case: Case) -> Contender | str:
    return _CONTENDERS[name](case)


def _status(field: str) -> int:
    """Bytes of a field of this process's status."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _main(name: str, problem: str, threads: str) -> None:
    if name == "torch":
        set_peer_threads(int(threads))
    else:  # PyTorch is not loaded where it is not measured
        set_num_threads(int(threads))
    print(json.dumps(_peak(name, Problem(**json.loads(problem)))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
