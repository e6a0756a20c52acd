# SPDX-License-Identifier: Apache-2.0
"""Adam, a norm, softmax and its loss as kernels, at every length around the lanes' sizes."""

from __future__ import annotations

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core

from support.compare import assert_close, assert_same_bits
from support.layers import DTYPES
from support.reference import Array

SIZES = [*range(1, 40), 127, 1000, 65_537]

TOLERANCE = {"float32": 1e-6, "float64": 1e-14}


def check_adam(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    p, g, first, second = (rng.standard_normal(size).astype(dtype) for _ in range(4))
    second = np.abs(second)
    wide_p, wide_g, wide_first, wide_second = (a.astype(np.float64) for a in (p, g, first, second))
    given = g.copy()
    _core.adam(
        p, g, first, second, decay=0.99, first_beta=0.9, second_beta=0.99, epsilon=1e-3, rate=0.1
    )
    wide_first = 0.9 * wide_first + wide_g
    wide_second = 0.99 * wide_second + wide_g**2
    wide_p = 0.99 * wide_p - 0.1 * wide_first / (np.sqrt(wide_second) + 1e-3)
    for what, got, want in (("p", p, wide_p), ("m", first, wide_first), ("v", second, wide_second)):
        assert_close(f"{what} of {size}", got, want, TOLERANCE[dtype])
    assert_same_bits("g", g, given)


def check_sum_of_squares(size: int, dtype: str) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    want = float(np.square(x.astype(np.longdouble)).sum())
    assert _core.sum_of_squares(x) == pytest.approx(want, rel=TOLERANCE[dtype])


def softmax(logits: Array, targets: Array) -> tuple[float, Array]:
    """The mean loss and its gradient, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    odds = np.exp(shifted)
    share = odds / odds.sum(axis=1, keepdims=True)
    picked = (np.arange(len(targets)), targets)
    loss = np.mean(np.log(odds.sum(axis=1)) - shifted[picked])
    share[picked] -= 1.0
    return float(loss), share / len(targets)


def check_softmax(classes: int, dtype: str) -> None:
    rng = np.random.default_rng(classes)
    # All far below zero, so that what fills a register's tail must not count.
    logits = (5.0 * rng.standard_normal((9, classes)) - 200.0).astype(dtype)
    targets = rng.integers(0, classes, 9)
    loss, gradient = rk.softmax_cross_entropy(logits, targets)
    want_loss, want = softmax(logits, targets)
    assert loss == pytest.approx(want_loss, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
    if classes > 1:
        assert_close(f"gradient of {classes}", gradient, want, 2 * TOLERANCE[dtype])


def check_training_passes() -> None:
    """All of it, under whatever instruction set is in force."""
    for dtype in DTYPES:
        for size in SIZES:
            check_adam(size, dtype)
            check_sum_of_squares(size, dtype)
        for classes in SIZES[:-1]:
            check_softmax(classes, dtype)
