# SPDX-License-Identifier: Apache-2.0
"""``adding``: a gated cell learns what the simple RNN does not; the sums are right."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkern.explore import adding
from rnnkern.explore.adding import BASELINE, marked_numbers
from rnnkern.explore.lags import Task, figure, learn
from rnnkern.explore.run import Run


def test_two_numbers_are_marked_one_in_each_half_and_their_sum_is_the_target() -> None:
    batch = marked_numbers(np.random.default_rng(0), 300, 21)
    numbers, marks = batch.x[:, :, 0], batch.x[:, :, 1]
    assert batch.x.shape == (21, 300, 2)
    assert set(np.unique(marks)) == {0.0, 1.0}
    assert np.all(marks[:10].sum(axis=0) == 1)
    assert np.all(marks[10:].sum(axis=0) == 1)
    assert np.all(marks.any(axis=1)), "every place is marked sometimes"
    assert 0.0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1.0
    for row in range(300):
        first, second = np.flatnonzero(marks[:, row])
        assert batch.targets[row, 0] == pytest.approx(numbers[first, row] + numbers[second, row])
    assert np.array_equal(batch.x, marked_numbers(np.random.default_rng(0), 300, 21).x)


def test_the_baseline_is_the_error_of_a_guess_of_1() -> None:
    sums = marked_numbers(np.random.default_rng(0), 20_000, 10).targets
    assert np.square(sums - 1.0).mean() == pytest.approx(BASELINE, rel=0.05)


def test_gates_help() -> None:
    task = Task(
        name="adding",
        title="short",
        error="squared error",
        draw=marked_numbers,
        model={
            "input_size": 2,
            "hidden_size": 32,
            "outputs": 1,
            "readout": "last",
            "loss": "squared-error",
        },
        baseline=lambda length: BASELINE,
        steps={50: 300},
        notes=(),
    )
    result = learn(Run(seeds=1, cells=("rnn", "gru")), task)
    (of_rnn,), (of_gru,) = (result.values("of baseline", cell=cell) for cell in ("rnn", "gru"))
    assert of_gru < 0.1
    assert of_rnn > 0.5


def test_the_result() -> None:
    result = adding(cells=("rnn", "simplified-gru"), seeds=2, seed=3, quick=True)
    assert result.seeds == [3, 4]
    assert len(result.rows) == len(result.curves) == 2 * 2 * 2
    for row in result.rows:
        assert row["of baseline"] == pytest.approx(6.0 * row["error"])
    again = adding(cells=("rnn",), seed=4, quick=True)
    assert again.values("error") == result.values("error", cell="rnn", seed=4)
    left, right = figure(result).axes
    assert left.get_xlabel() == "T (steps)"
    assert right.get_xlabel() == "step of training"
