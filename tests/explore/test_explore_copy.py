# SPDX-License-Identifier: Apache-2.0
"""``copy``: the sequences are right, and a gated cell gets below the baseline where T is short."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkern import softmax_cross_entropy
from rnnkern.explore import copy
from rnnkern.explore.copy import BASELINE, BLANK, GO, KEPT, SYMBOLS, remembered
from rnnkern.explore.lags import Task, figure, learn
from rnnkern.explore.run import Run


def test_the_symbols_come_again_after_the_mark() -> None:
    length = 17
    batch = remembered(np.random.default_rng(0), 50, length)
    x, targets = batch.x, batch.targets
    assert x.shape == targets.shape == (length + 2 * KEPT, 50)
    assert x[:KEPT].max() == SYMBOLS - 1
    assert x[:KEPT].min() == 0
    assert np.array_equal(x[:KEPT], targets[-KEPT:])
    assert batch.mask is not None
    assert np.all(batch.mask[-KEPT:])
    assert not np.any(batch.mask[:-KEPT])
    # The answer begins right after the mark, the last of the T steps between.
    assert np.all(x[-KEPT - 1] == GO)
    assert np.all(x[KEPT : -KEPT - 1] == BLANK)
    assert np.all(x[-KEPT:] == BLANK)
    assert np.array_equal(x, remembered(np.random.default_rng(0), 50, length).x)


def test_the_baseline_is_the_loss_of_what_remembers_nothing() -> None:
    batch = remembered(np.random.default_rng(0), 8, 30)
    loss, _ = softmax_cross_entropy(np.zeros((*batch.x.shape, SYMBOLS)), batch.targets, batch.mask)
    assert loss == pytest.approx(BASELINE)


def test_a_gated_cell_remembers_over_a_short_time() -> None:
    task = Task(
        name="copy",
        title="short",
        error="cross-entropy",
        draw=remembered,
        model={"input_size": GO + 1, "hidden_size": 48, "outputs": SYMBOLS},
        baseline=lambda length: BASELINE,
        remembers="any symbol",
        steps={15: 300},
        notes=(),
    )
    result = learn(Run(cells=["gru"]), task)
    # Nothing that does not remember gets below 1.
    assert result.values("of baseline")[0] < 0.8


def test_the_result() -> None:
    result = copy(cells=("gru",), seed=1, quick=True)
    assert len(result.rows) == len(result.curves) == 2
    for row in result.rows:
        assert row["of baseline"] == pytest.approx(row["error"] / BASELINE)
        assert row["of baseline"] < 0.8
    assert [axes.get_yscale() for axes in figure(result).axes] == ["log", "log"]
