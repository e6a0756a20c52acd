# SPDX-License-Identifier: Apache-2.0
"""The passes of a training step around the layers, as kernels: Adam, a norm, softmax and its loss.

At every length around the lanes' sizes, against plain float64 NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core

from support.layers import DTYPES
from support.reference import Array
from support.training_passes import check_training_passes


def test_agree_with_float64() -> None:
    check_training_passes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 8, 21])
@pytest.mark.parametrize("place", [0, -1])
def test_a_nan_in_any_place_is_not_hidden(classes: int, place: int, dtype: str) -> None:
    logits = np.zeros((2, classes), dtype)
    logits[0, place] = np.nan
    loss, gradient = rk.softmax_cross_entropy(logits, np.array([1, 1]))
    assert np.isnan(loss)
    assert np.all(np.isnan(gradient[0]))
    assert np.all(np.isfinite(gradient[1]))


@pytest.mark.parametrize("name", ["p", "g", "first", "second"])
def test_adam_refuses_what_does_not_fit(name: str) -> None:
    arrays: dict[str, Any] = {n: np.zeros(5, np.float32) for n in ("p", "g", "first", "second")}
    numbers: dict[str, Any] = {
        "decay": 1.0,
        "first_beta": 0.9,
        "second_beta": 0.9,
        "epsilon": 1.0,
        "rate": 1.0,
    }
    for wrong in (np.zeros(10, np.float32)[::2], np.zeros(5, np.int32)):
        with pytest.raises((ValueError, TypeError), match=f"^{name} must be"):
            _core.adam(**{**arrays, name: wrong}, **numbers)
    if name != "p":
        with pytest.raises(ValueError, match=f"^{name} must be 5 numbers"):
            _core.adam(**{**arrays, name: np.zeros(6, np.float32)}, **numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([0, 5])}, "targets must be in 0..4, got 5"),
        ({"targets": np.array([0, -1])}, "targets must be in 0..4, got -1"),
        ({"targets": np.array([0])}, "targets must be a"),
        ({"mask": np.array([True])}, "mask must be a"),
        ({"gradient": np.zeros((2, 4), np.float32)}, "gradient must be a"),
        ({"logits": np.zeros(5, np.float32)}, "logits must have 2 axes"),
    ],
)
def test_softmax_refuses_what_does_not_fit(change: dict[str, Array], message: str) -> None:
    fits: dict[str, Any] = {
        "logits": np.zeros((2, 5), np.float32),
        "targets": np.array([0, 4]),
        "gradient": np.zeros((2, 5), np.float32),
        "mask": None,
    }
    with pytest.raises(ValueError, match=message):
        _core.softmax_cross_entropy(**{**fits, **change}, weight=1.0)
