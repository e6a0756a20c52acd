# SPDX-License-Identifier: Apache-2.0
"""``copy``: the sequences are right, and a gated cell gets below the baseline where T is short."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkern import softmax_cross_entropy
from rnnkern.explore import copy
from rnnkern.explore.copy import BLANK, GO, KEPT, SYMBOLS, baseline, remembered
from rnnkern.explore.lags import Task, figure, learn
from rnnkern.explore.run import Run


def test_the_symbols_come_again_after_the_mark() -> None:
    length = 17
    batch = remembered(np.random.default_rng(0), 50, length)
    x, targets = batch.x, batch.targets
    assert x.shape == targets.shape == (length + 20, 50)
    assert x[:KEPT].max() == SYMBOLS - 1
    assert x[:KEPT].min() == 0
    assert np.array_equal(x[:KEPT], targets[-KEPT:])
    assert np.all(targets[:-KEPT] == BLANK)
    # The answer begins right after the mark, the last of the T steps between.
    assert np.all(x[-KEPT - 1] == GO)
    assert np.all(x[KEPT : -KEPT - 1] == BLANK)
    assert np.all(x[-KEPT:] == BLANK)
    assert np.array_equal(x, remembered(np.random.default_rng(0), 50, length).x)


def test_the_baseline_is_the_loss_of_what_remembers_nothing() -> None:
    batch = remembered(np.random.default_rng(0), 8, 30)
    logits = np.full((*batch.x.shape, SYMBOLS + 1), -np.inf)
    logits[:-KEPT, :, BLANK] = 0.0
    logits[-KEPT:, :, :SYMBOLS] = 0.0
    with np.errstate(invalid="ignore"):
        loss, _ = softmax_cross_entropy(logits, batch.targets)
    assert baseline(30) == pytest.approx(loss)


def test_a_gated_cell_remembers_over_a_short_time() -> None:
    task = Task(
        name="copy",
        title="short",
        error="cross-entropy",
        draw=remembered,
        model={"input_size": GO + 1, "hidden_size": 48, "outputs": SYMBOLS + 1},
        baseline=baseline,
        steps={5: 500},
        notes=(),
    )
    result = learn(Run(cells=["gru"]), task)
    # Nothing that does not remember gets below 1.
    assert result.values("of baseline")[0] < 0.9


def test_the_result() -> None:
    result = copy(cells=("rnn", "gru"), seed=1, quick=True)
    assert len(result.rows) == len(result.curves) == 2 * 2
    for row in result.rows:
        assert row["of baseline"] == pytest.approx(row["error"] / baseline(row["T"]))
    again = copy(cells=("gru",), seed=1, quick=True)
    assert again.values("error") == result.values("error", cell="gru", seed=1)
    assert [axes.get_yscale() for axes in figure(result).axes] == ["log", "log"]
