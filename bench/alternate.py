# SPDX-License-Identifier: Apache-2.0
"""Times two builds of rnnkern against each other: python bench/alternate.py OLD NEW.

OLD and NEW are Python interpreters, each of an environment with its own rnnkern. Each runs in a
process of its own; they take turns of some milliseconds, so that noise of the machine meets both
alike, and sleep while it is the other's. The table has the median of the ratios of neighbouring
turns, new time by old, the middle half of them, and the ratio of the best turns, which says most
on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_TURN = 0.01  # seconds of work
_FEWEST = 5  # turns of each
_PAUSE = 0.015  # seconds between turns, for the threads of a build with OpenMP go on spinning
Call = Callable[[], object]

# name: (cell, batch, steps, hidden = inputs, what is done, compute)
Case = tuple[str, int, int, int, str, str | None]
SIZES = (
    (1, 100, 64),
    (1, 100, 256),
    (1, 25, 1024),
    (16, 50, 128),
    (32, 50, 256),
    (64, 50, 512),
    (64, 12, 1024),
)


def cases() -> dict[str, Case]:
    """The grid: a size each for inference and training, streams, many rows, and the optimizer."""
    found: dict[str, Case] = {}
    for work in ("infer", "frozen", "train"):  # nearly all of it is what a call costs as such
        found[f"LSTM B=1 T=1 H=16 {work}"] = ("LSTM", 1, 1, 16, work, None)
    for cell in ("LSTM", "GRU"):
        for batch, steps, hidden in SIZES:
            if cell == "GRU" and hidden > 256:
                continue
            for work in ("infer", "train"):
                name = f"{cell} B={batch} T={steps} H={hidden} {work}"
                found[name] = (cell, batch, steps, hidden, work, None)
    found["RNN B=32 T=50 H=256 train"] = ("RNN", 32, 50, 256, "train", None)
    found["LSTM B=64 T=400 H=32 train"] = ("LSTM", 64, 400, 32, "train", None)
    found["LSTM B=64 T=400 H=32 tokens"] = ("LSTM", 64, 400, 32, "tokens", None)
    found["LSTM B=32 T=50 H=256 train bf16"] = ("LSTM", 32, 50, 256, "train", "bfloat16")
    for hidden in (64, 256, 1024):
        found[f"LSTM B=1 H={hidden} step"] = ("LSTM", 1, 1, hidden, "step", None)
    found["LSTM B=1 H=256 step bf16"] = ("LSTM", 1, 1, 256, "step", "bfloat16")
    for size in (1 << 12, 1 << 20):
        found[f"Adam {size}"] = ("", 1, 1, size, "adam", None)
    found["Linear 8192 rows 256 to 128 train"] = ("", 8192, 1, 256, "linear", None)
    return found


def prepare(case: Case) -> Call:
    """The call that is timed, for this process's rnnkern."""
    import rnnkern as rk

    cell, batch, steps, hidden, work, compute = case
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    if work == "adam":
        optimizer = rk.Adam({"p": draw(hidden)}, 1e-4)
        grads = {"p": draw(hidden)}
        return lambda: optimizer.step(grads)
    if work == "linear":
        linear = rk.Linear(hidden, 128, seed=0)
        rows, upstream = draw(batch, hidden), draw(batch, 128)
        return lambda: linear.forward(rows)[1].backward(upstream)
    layer = getattr(rk, cell)(hidden, hidden, compute=compute, seed=0)
    if work == "step":
        stream, row, out = layer.stream(batch), draw(batch, hidden), draw(batch, hidden)
        return lambda: stream.step(row, out)
    x = rng.integers(0, hidden, (steps, batch)) if work == "tokens" else draw(steps, batch, hidden)
    if work == "infer":
        return lambda: layer(x)
    if work == "frozen":
        frozen = layer.freeze()
        return lambda: frozen(x)
    dy = draw(steps, batch, hidden)
    return lambda: layer.forward(x)[2].backward(dy)


def serve() -> None:
    """The other end of ``Build``: requests by lines of JSON from standard input."""
    call: Call | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if "case" in request:
            call = prepare(request["case"])
            call()
        elif "threads" in request:
            import rnnkern as rk

            rk.set_num_threads(request["threads"])
            answer = rk.info()
        else:
            assert call is not None
            time.sleep(_PAUSE)
            call()  # brings the caches back
            began = time.perf_counter()
            for _ in range(request["repeat"]):
                call()
            answer = (time.perf_counter() - began) / request["repeat"]
        print(json.dumps(answer), flush=True)


class Build:
    """A process that imports one of the two."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._process = subprocess.Popen(
            [python, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._python} ended while asked for {request}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(old: Build, new: Build, case: Case, seconds: float) -> dict[str, float]:
    """Both builds alternately on a case: medians in milliseconds, and the ratios of pairs."""
    began = time.perf_counter()
    for build in (old, new):
        build.ask(case=case)
    repeat = max(1, round(_TURN / new.ask(repeat=1)))
    turns: list[tuple[float, float]] = []
    while len(turns) < _FEWEST or time.perf_counter() - began < seconds:
        if len(turns) % 2:
            after = new.ask(repeat=repeat)
            turns.append((old.ask(repeat=repeat), after))
        else:
            turns.append((old.ask(repeat=repeat), new.ask(repeat=repeat)))
    low, middle, high = statistics.quantiles([n / o for o, n in turns], n=4)
    return {
        "old_ms": statistics.median(o for o, _ in turns) * 1e3,
        "new_ms": statistics.median(n for _, n in turns) * 1e3,
        "ratio_low": low,
        "ratio": middle,
        "ratio_high": high,
        "best": min(n for _, n in turns) / min(o for o, _ in turns),
        "turns": len(turns),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", help="a Python interpreter that imports the old build")
    parser.add_argument("new", help="and one that imports the new")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of it all, about")
    parser.add_argument("--only", default="", help="cases whose name this expression finds")
    parser.add_argument("--record", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    chosen = {name: case for name, case in cases().items() if re.search(options.only, name)}
    builds = Build(options.old), Build(options.new)
    infos = [build.ask(threads=options.threads) for build in builds]
    figures = {}
    for name, case in chosen.items():
        figures[name] = f = compare(*builds, case, options.seconds / len(chosen))
        print(
            f"{name:36} {f['old_ms']:9.3f} ms {f['new_ms']:9.3f} ms  "
            f"{f['ratio']:.3f} ({f['ratio_low']:.3f} to {f['ratio_high']:.3f}), "
            f"best {f['best']:.3f}, {f['turns']} turns",
            flush=True,
        )
    for build in builds:
        build.close()
    if options.record:
        # Not above: an older build, in a process that this one starts, may not have it.
        from rnnkern import record

        header = ["case", "old", "new", "new over old", "quartiles"]
        rows = [
            [
                name,
                f"{f['old_ms']:.3f} ms",
                f"{f['new_ms']:.3f} ms",
                f"{f['ratio']:.3f}",
                f"{f['ratio_low']:.3f} to {f['ratio_high']:.3f}",
            ]
            for name, f in figures.items()
        ]
        parts = {
            "threads": options.threads,
            "old": infos[0],
            "new": infos[1],
            "cases": figures,
            "table": {"header": header, "rows": rows},
        }
        record.write(options.record, parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        main()
