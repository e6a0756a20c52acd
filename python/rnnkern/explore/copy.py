# SPDX-License-Identifier: Apache-2.0
"""The copy-memory task: ten symbols are seen, and said again T steps later.

Source: Hochreiter & Schmidhuber 1997, in the form of Arjovsky, Shah & Bengio 2016,
arXiv:1511.06464: eight symbols, a blank between, and a mark after which to answer.
"""

from __future__ import annotations

import math

import numpy as np

from rnnkern.explore.lags import Task, figure, learn
from rnnkern.explore.model import Batch, Ints
from rnnkern.explore.result import Result
from rnnkern.explore.run import Experiment, Run

SYMBOLS, KEPT = 8, 10
BLANK, GO = SYMBOLS, SYMBOLS + 1
_HIDDEN = 48
_STEPS = {50: 1200, 100: 500, 200: 200, 500: 80}
_QUICK = {50: 60, 100: 30}


def remembered(rng: np.random.Generator, batch: int, length: int) -> Batch:
    """Tokens (T + 20, B) of ten symbols, T blanks with a GO as the last, ten blanks; and targets.

    The targets (T + 20, B) are blank, but the ten symbols at the end.
    """
    symbols: Ints = rng.integers(0, SYMBOLS, (KEPT, batch))
    x = np.full((length + 2 * KEPT, batch), BLANK, np.int64)
    targets = x.copy()
    x[:KEPT] = targets[-KEPT:] = symbols
    x[KEPT + length - 1] = GO
    return Batch(x, targets)


def baseline(length: int) -> float:
    """The loss, in nats a step, of blanks at first and of any symbol at the end."""
    return KEPT * math.log(SYMBOLS) / (length + 2 * KEPT)


def measure(run: Run) -> Result:
    """Each cell's cross-entropy at several T, against answers at random."""
    task = Task(
        name="copy",
        title="The copy-memory task",
        error="cross-entropy (nats per step)",
        draw=remembered,
        model={"input_size": GO + 1, "hidden_size": _HIDDEN, "outputs": SYMBOLS + 1},
        baseline=baseline,
        steps=run.pick(_STEPS, _QUICK),
        notes=(
            "Blanks, then any symbols, remember nothing: an error of 10 ln 8 / (T + 20).",
            "These are short runs: most cells learn when to answer, which is the baseline, before "
            "they learn what, and few steps are taken where a step takes long.",
        ),
    )
    return learn(run, task)


copy = Experiment("copy", "ten symbols, said again much later", measure, figure)
