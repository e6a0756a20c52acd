# SPDX-License-Identifier: Apache-2.0
"""The copy-memory task: five symbols are seen, and said again T steps later.

Source: Hochreiter & Schmidhuber 1997, in the form of Arjovsky, Shah & Bengio 2016,
arXiv:1511.06464: eight symbols, a blank between, and a mark after which to answer. There it is ten
symbols that are kept, and the blanks count as answers too: that is as hard, and takes longer.
"""

from __future__ import annotations

import math

import numpy as np

from rnnkern.explore.lags import Task, figure, learn
from rnnkern.explore.model import Batch, Ints
from rnnkern.explore.result import Result
from rnnkern.explore.run import Experiment, Run

SYMBOLS, KEPT = 8, 5
BLANK, GO = SYMBOLS, SYMBOLS + 1
_HIDDEN = 48
_STEPS = {100: 4000, 200: 4000}
_QUICK = {30: 800, 50: 800}


def remembered(rng: np.random.Generator, batch: int, length: int) -> Batch:
    """Tokens (T + 10, B): five symbols, T blanks with a GO as the last, five blanks; and targets.

    Of the targets (T + 10, B) the five symbols at the end alone count.
    """
    symbols: Ints = rng.integers(0, SYMBOLS, (KEPT, batch))
    x = np.full((length + 2 * KEPT, batch), BLANK, np.int64)
    targets = np.zeros_like(x)
    x[:KEPT] = targets[-KEPT:] = symbols
    x[KEPT + length - 1] = GO
    counted = np.zeros(x.shape, bool)
    counted[-KEPT:] = True
    return Batch(x, targets, mask=counted)


BASELINE = math.log(SYMBOLS)  # the loss, in nats a symbol, of any symbol as likely as another


def measure(run: Run) -> Result:
    """Each cell's cross-entropy at several T, against answers at random."""
    task = Task(
        name="copy",
        title="The copy-memory task",
        error="cross-entropy (nats per symbol)",
        draw=remembered,
        model={"input_size": GO + 1, "hidden_size": _HIDDEN, "outputs": SYMBOLS},
        baseline=lambda length: BASELINE,
        remembers="any symbol",
        steps=run.pick(_STEPS, _QUICK),
        notes=(
            f"Any symbol remembers nothing and has an error of ln 8 = {BASELINE:.2f}.",
            "The answers alone count: that the rest is blank every cell soon learns.",
        ),
    )
    return learn(run, task)


copy = Experiment(
    "copy",
    "five symbols, said again much later",
    measure,
    figure,
    cells=("rnn", "gru", "lstm"),
)
