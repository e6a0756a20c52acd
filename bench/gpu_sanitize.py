# SPDX-License-Identifier: Apache-2.0
"""Every kernel on sizes that a sanitizer gets through: python bench/gpu_sanitize.py.

bench/gpu runs it under compute-sanitizer. The most telling cases come first, and the script ends by
itself before its time is up, for a sanitizer that is killed sums nothing up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import gpu_work
import numpy as np

import rnnkern as rk
from rnnkern.cells import CELLS as REGISTRY
from rnnkern.devices import get_device

STEPS, INPUTS, HIDDEN = 5, 20, 100
# More rows than the vector path takes, a part of a tile of the tensor cores; and one.
LENGTHS = {6: np.array([3, 5, 0, 5, 1, 4]), 1: np.array([3])}
COMPUTES = ("float16", "tfloat32", None, "bfloat16")
_SHARE = 0.7  # of the seconds allowed: a case may be long under a sanitizer

Cell = tuple[Any, dict[str, Any]]
CELLS: list[Cell] = [
    (REGISTRY[name].layer, {**REGISTRY[name].options}) for name in reversed(gpu_work.gates())
]


def cases() -> Iterator[tuple[int, Cell, str | None]]:
    """Rows, cell and mode: first every cell and every mode once, then the others."""
    everything = [
        (batch, cell, compute) for batch, compute, cell in product(LENGTHS, COMPUTES, CELLS)
    ]
    first = [(6, cell, COMPUTES[k % len(COMPUTES)]) for k, cell in enumerate(CELLS)]
    yield from first
    yield from (case for case in everything if case not in first)


def numbers(batch: int) -> tuple[Any, Any]:
    """x as numbers and as tokens."""
    device, random = get_device("cuda"), np.random.default_rng(0)
    dense = random.standard_normal((STEPS, batch, INPUTS), np.float32)
    return device.put(dense), device.put(random.integers(0, INPUTS, (STEPS, batch)))


def run(batch: int, cell: Cell, compute: str | None) -> None:
    """Both directions, then layers as a wavefront; forward, and forward and backward."""
    (dense, tokens), given, (kind, options) = numbers(batch), LENGTHS[batch], cell
    fixed: dict[str, Any] = {"compute": compute, "device": "cuda", **options}
    layer = kind(INPUTS, HIDDEN, 2, bidirectional=True, **fixed)
    for x, lengths in ((dense, given), (tokens, given), (dense, None)):
        layer(x, None, lengths)
        y, _, tape = layer.forward(x, None, lengths)
        tape.backward(y)
    stacked = kind(INPUTS, HIDDEN, 3, dropout=0.3, **fixed)
    y, _, tape = stacked.forward(dense, None, given, dropout_key=0)
    tape.backward(y)


def run_others() -> None:
    """float64, and a product of the caller's own."""
    dense, _ = numbers(6)
    double = rk.GRU(INPUTS, 24, dtype="float64", device="cuda")
    y, _, tape = double.forward(dense.astype(np.float64))
    tape.backward(y)
    head = rk.Linear(INPUTS, 7, device="cuda")
    logits, head_tape = head.forward(dense)
    head_tape.backward(logits)


def main() -> None:
    """Run them; what is wrong is for the sanitizer to say."""
    device = get_device("cuda")
    end = time.monotonic() + _SHARE * gpu_work.seconds_allowed(3600.0)
    run_others()
    all_of_them, done = list(cases()), 0
    for case in all_of_them:
        if time.monotonic() > end:
            break
        run(*case)
        device.get(device.xp.zeros(1))  # waits
        done += 1
    print(f"{done} of {len(all_of_them)} cases ran", flush=True)


if __name__ == "__main__":
    main()
