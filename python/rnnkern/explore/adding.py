# SPDX-License-Identifier: Apache-2.0
"""The adding problem: two numbers, marked far apart among many, are to be added up.

Source: Hochreiter & Schmidhuber, "Long short-term memory" (1997), in the form of Le, Jaitly &
Hinton 2015, arXiv:1504.00941: both numbers in 0..1, one marked in each half of the sequence.
"""

from __future__ import annotations

import numpy as np

from rnnkern.explore.lags import Task, figure, learn
from rnnkern.explore.model import Batch
from rnnkern.explore.result import Result
from rnnkern.explore.run import Experiment, Run

BASELINE = 1.0 / 6.0  # the variance of the sum of two numbers uniform in 0..1
_HIDDEN = 32
_STEPS = {100: 1500, 200: 1500}
_QUICK = {50: 500, 100: 600}


def marked_numbers(rng: np.random.Generator, batch: int, length: int) -> Batch:
    """Sequences x (T, B, 2) of a number in 0..1 and a mark, and the marked ones' sums (B, 1).

    Just two numbers are marked by 1, the others by 0: one in the first half, one in the second.
    """
    numbers, marks = rng.random((length, batch)), np.zeros((length, batch))
    rows = np.arange(batch)
    marks[rng.integers(0, length // 2, batch), rows] = 1.0
    marks[rng.integers(length // 2, length, batch), rows] = 1.0
    sums = (numbers * marks).sum(axis=0)[:, None]
    return Batch(np.stack([numbers, marks], axis=-1).astype(np.float32), sums.astype(np.float32))


def measure(run: Run) -> Result:
    """Each cell's squared error at several T, against a guess of 1, the sums' mean."""
    task = Task(
        name="adding",
        title="The adding problem",
        error="mean squared error of the sum",
        draw=marked_numbers,
        model={
            "input_size": 2,
            "hidden_size": _HIDDEN,
            "outputs": 1,
            "readout": "last",
            "loss": "mse",
        },
        baseline=lambda length: BASELINE,
        remembers="always 1",
        steps=run.pick(_STEPS, _QUICK),
        notes=(f"A guess of 1 remembers nothing and has an error of 1/6 = {BASELINE:.3f}.",),
    )
    return learn(run, task)


adding = Experiment("adding", "the sum of two marked numbers among many", measure, figure)
