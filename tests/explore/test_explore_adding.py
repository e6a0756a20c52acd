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
            "loss": "mse",
        },
        baseline=lambda length: BASELINE,
        remembers="always 1",
        steps={30: 500},
        notes=(),
    )
    result = learn(Run(seeds=1, cells=("rnn", "gru", "lstm")), task)
    shares = {cell: result.values("of baseline", cell=cell)[0] for cell in result.cells()}
    assert shares["gru"] < 0.1
    assert shares["lstm"] < 0.1
    assert shares["rnn"] > 0.5
    # Who has learned stops, and its curve stays where it was.
    (steps,) = result.values("steps", cell="gru")
    (curve,) = result.pick(cell="gru")
    assert steps < 500
    assert len(curve["loss"]) == 20
    assert curve["loss"][-1] == curve["loss"][-(-int(steps) // 25) - 1] < 0.1


def test_the_result() -> None:
    result = adding(cells=("rnn", "simplified-gru"), seed=3, quick=True)
    assert result.seeds == [3]
    assert len(result.rows) == len(result.curves) == 2 * 2
    for row in result.rows:
        assert row["of baseline"] == pytest.approx(6.0 * row["error"])
    again = adding(cells=("rnn",), seed=3, quick=True)
    assert again.values("error") == result.values("error", cell="rnn")
    drawn = figure(result)
    assert [axes.get_title() for axes in drawn.axes] == ["T = 50", "T = 100"]
    assert all(axes.get_xlabel() == "step of training" for axes in drawn.axes)
    assert [text.get_text() for text in drawn.axes[0].texts] == ["always 1"]
