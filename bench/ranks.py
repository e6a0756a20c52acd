# SPDX-License-Identifier: Apache-2.0
"""What training by several ranks gains: ``mpiexec -n 2 python bench/ranks.py --json FILE``.

Every rank has one thread. A step of one rank on the whole batch is held against a step of all ranks
on their shares of it, one after the other in the same run; the share of a step that goes into the
sum of the gradients is told, and what a model says of machines that are joined by a network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import rnnkern as rk
from rnnkern import record

# (H, batch, steps): an LSTM with as many inputs, and the head of a model of 64 classes.
_SIZES = ((64, 64, 50), (128, 64, 50), (256, 64, 50), (512, 64, 25), (1024, 64, 12))
_CLASSES = 64
_ROUNDS = 15
_NETWORK = {"1 GB/s, 30 µs": (1e9, 30e-6), "10 GB/s, 5 µs": (1e10, 5e-6)}  # a link, a message


class Problem:
    """A model, and a training step over a share of the rows of its batch."""

    def __init__(self, hidden: int, batch: int, steps: int) -> None:
        rng = np.random.default_rng(0)
        self.lstm = rk.LSTM(hidden, hidden, seed=0)
        self.head = rk.Linear(hidden, _CLASSES, seed=1)
        self.params = {"lstm": self.lstm.params, "head": self.head.params}
        self.optimizer = rk.Adam(self.params)
        self.x = rng.standard_normal((steps, batch, hidden), np.float32)
        self.targets = rng.integers(0, _CLASSES, (steps, batch))
        self.summing = 0.0

    def step(self, ranks: rk.Ranks) -> None:
        part = ranks.share(self.x.shape[1])
        y, _, tape = self.lstm.forward(np.ascontiguousarray(self.x[:, part]))
        logits, head_tape = self.head.forward(y)
        loss, dlogits = rk.softmax_cross_entropy(logits, self.targets[:, part])
        dy, of_head = head_tape.backward(dlogits)
        of_lstm = tape.backward(dy)
        grads = {"lstm": of_lstm.params, "head": of_head}
        began = time.perf_counter()
        ranks.average(grads, part.stop - part.start, [loss])
        self.summing = time.perf_counter() - began
        rk.clip_grad_norm(grads, 1.0)
        self.optimizer.step(grads)


def timed(action: Callable[[], Any], comm: MPI.Comm) -> float:
    comm.Barrier()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(size: tuple[int, int, int], ranks: rk.Ranks, comm: MPI.Comm) -> dict[str, Any]:
    problem, alone = Problem(*size), rk.Ranks()
    ours: list[float] = []
    single: list[float] = []
    summing: list[float] = []
    for round_ in range(_ROUNDS + 2):
        together = comm.allreduce(timed(lambda: problem.step(ranks), comm), MPI.MAX)
        own_sum = problem.summing
        # The others wait at the next barrier.
        one = timed(lambda: problem.step(alone) if ranks.is_first else None, comm)
        ranks.broadcast(problem.params)
        if round_ >= 2:
            for samples, sample in ((ours, together), (single, one), (summing, own_sum)):
                samples.append(sample)
    numbers = sum(p.size for part in problem.params.values() for p in part.values())
    return {
        "hidden": size[0],
        "batch": size[1],
        "steps": size[2],
        "ranks": ranks.size,
        "gradient_bytes": 4 * numbers,
        "one_ms": 1e3 * statistics.median(single),
        "ranks_ms": 1e3 * statistics.median(ours),
        "sum_ms": 1e3 * statistics.median(summing),
        "samples": {"one": single, "ranks": ours, "sum": summing},
    }


def reach(line: dict[str, Any], bandwidth: float, latency: float) -> int:
    """By the model, the most ranks that keep 90% of their speed, each with this batch of its own.

    A ring sends every gradient byte twice, and 2·(n - 1) messages one after the other:
    step + 2·bytes·(n - 1)/n / bandwidth + 2·(n - 1)·latency, with nothing overlapped.
    """
    step = line["one_ms"] / 1e3
    n = 1
    while n < 1 << 16:
        more = n + 1
        told = 2 * line["gradient_bytes"] * (more - 1) / more / bandwidth
        if step / (step + told + 2 * (more - 1) * latency) < 0.9:
            break
        n = more
    return n


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    count = lines[0]["ranks"]
    header = ["H, B, T", "gradient", "one rank", f"{count} ranks", "speed", "of it the sum",
              *(f"90% up to, {name}" for name in _NETWORK)]  # fmt: skip
    rows = [
        [
            f"{line['hidden']}, {line['batch']}, {line['steps']}",
            f"{line['gradient_bytes'] / 1e6:.1f} MB",
            f"{line['one_ms']:.1f} ms",
            f"{line['ranks_ms']:.1f} ms",
            f"{line['one_ms'] / line['ranks_ms']:.2f}",
            f"{line['sum_ms'] / line['ranks_ms']:.0%}",
            *(f"{reach(line, *link)} ranks" for link in _NETWORK.values()),
        ]
        for line in lines
    ]
    return {"header": header, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rk.set_num_threads(1)
    comm = MPI.COMM_WORLD
    with rk.Ranks(comm) as ranks:
        lines = []
        for size in _SIZES:
            lines.append(measure(size, ranks, comm))
            if ranks.is_first:
                print(" | ".join(table(lines)["rows"][-1]), flush=True)
        if ranks.is_first and options.json is not None:
            record.write(options.json, {"ranks": lines, "table": table(lines)})


if __name__ == "__main__":
    main()
