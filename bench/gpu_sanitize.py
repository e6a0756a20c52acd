"""Every kernel once, on sizes that a sanitizer gets through: python bench/gpu_sanitize.py."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern.device import get_device

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 20, 100
LENGTHS = np.array([3, 5, 0])


def main() -> None:
    """Run them; what is wrong is for the sanitizer to say."""
    device = get_device("cuda")
    random = np.random.default_rng(0)
    dense = device.put(random.standard_normal((STEPS, BATCH, INPUTS), np.float32))
    tokens = device.put(random.integers(0, INPUTS, (STEPS, BATCH)))
    cells: list[tuple[Any, dict[str, str]]] = [
        (rk.RNN, {}),
        (rk.SimplifiedGRU, {}),
        (rk.GRU, {"reset": "before"}),
        (rk.GRU, {"reset": "after"}),
        (rk.LSTM, {}),
    ]
    computes = (None, "tfloat32", "bfloat16", "float16")
    for (cell, options), compute in product(cells, computes):
        layer = cell(
            INPUTS, HIDDEN, 2, bidirectional=True, compute=compute, device="cuda", **options
        )
        for x, lengths in ((dense, None), (dense, LENGTHS), (tokens, LENGTHS)):
            layer(x, None, lengths)
            y, _, tape = layer.forward(x, None, lengths)
            tape.backward(y)
        stacked = cell(INPUTS, HIDDEN, 3, dropout=0.3, compute=compute, device="cuda", **options)
        y, _, tape = stacked.forward(dense, None, LENGTHS, dropout_key=0)
        tape.backward(y)
    double = rk.GRU(INPUTS, 24, dtype="float64", device="cuda")
    y, _, tape = double.forward(dense.astype(np.float64))
    tape.backward(y)
    head = rk.Linear(INPUTS, 7, device="cuda")
    logits, head_tape = head.forward(dense)
    head_tape.backward(logits)
    device.get(logits)
    print("every kernel ran")


if __name__ == "__main__":
    main()
