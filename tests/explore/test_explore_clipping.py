# SPDX-License-Identifier: Apache-2.0
"""``clipping``: the unclipped loss blows up, either way of clipping keeps it and lets it fall."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkern.explore import Result, clipping
from rnnkern.explore.clipping import CLIPPERS, figure, scaled_means


@pytest.fixture(scope="module")
def result() -> Result:
    return clipping(quick=True)


def test_the_unclipped_loss_exceeds_ten_times_its_start(result: Result) -> None:
    first, worst = (result.values(f"{which} loss", clipping="none") for which in ("first", "worst"))
    assert all(w > 10.0 * f for w, f in zip(worst, first, strict=True))


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_the_clipped_loss_falls(result: Result, clip: str) -> None:
    first, worst, last = (
        result.values(f"{which} loss", clipping=clip) for which in ("first", "worst", "last")
    )
    assert all(w < 10.0 * f for w, f in zip(worst, first, strict=True))
    assert all(end < f for end, f in zip(last, first, strict=True))


def test_the_runs_differ_by_the_clipping_alone(result: Result) -> None:
    assert len({curve["loss"][0] for curve in result.curves}) == 1
    assert len({tuple(curve["loss"][:5]) for curve in result.curves}) == len(CLIPPERS)


def test_the_clippers_bound_what_they_say() -> None:
    def clipped(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        grads = {"w": np.array([3.0, -4.0, 0.01])}
        CLIPPERS[name](grads)
        return grads["w"]

    assert clipped("none").tolist() == [3.0, -4.0, 0.01]
    assert np.linalg.norm(clipped("norm")) == pytest.approx(1.0)
    assert clipped("value").tolist() == [0.05, -0.05, 0.01]


def test_the_targets_are_the_scaled_means() -> None:
    batch = scaled_means(np.random.default_rng(0), 500, 60)
    np.testing.assert_allclose(batch.targets, batch.x.mean(axis=0) * np.sqrt(60))
    assert batch.targets.shape == (500, 1)
    assert batch.targets.std() == pytest.approx(1.0, abs=0.1)
    again = scaled_means(np.random.default_rng(0), 500, 60)
    assert np.array_equal(batch.x, again.x)


def test_the_picture_has_a_curve_per_clipping(result: Result) -> None:
    above, below = figure(result).axes
    assert len(above.lines) == len(below.lines) == 3
    assert above.get_ylabel()
    assert below.get_ylabel()
    assert below.get_xlabel() == "step of training"
