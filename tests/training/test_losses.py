# SPDX-License-Identifier: Apache-2.0
"""Softmax cross-entropy against PyTorch, finite differences, and at its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk


def problem(dtype: str = "float64") -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    logits = (3.0 * rng.standard_normal((5, 4, 7))).astype(dtype)
    return logits, rng.integers(0, 7, (5, 4)), rng.random((5, 4)) < 0.7


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
def test_agrees_with_pytorch(masked: bool, dtype: str, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    logits, targets, mask = problem(dtype)
    loss, dlogits = rk.softmax_cross_entropy(logits, targets, mask if masked else None)
    leaf = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        leaf.reshape(-1, 7),
        torch.tensor(np.where(mask | (not masked), targets, -100)).reshape(-1),
    )
    want.backward()
    assert dlogits.dtype == dtype
    assert loss == pytest.approx(want.item(), rel=tolerance)
    np.testing.assert_allclose(dlogits, leaf.grad.numpy(), rtol=1e3 * tolerance, atol=tolerance)


def test_gradient_agrees_with_finite_differences() -> None:
    logits, targets, mask = problem()
    _, dlogits = rk.softmax_cross_entropy(logits, targets, mask)
    differences = np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[place] = 1e-5
        above, below = (
            rk.softmax_cross_entropy(logits + s, targets, mask)[0] for s in (shift, -shift)
        )
        differences[place] = (above - below) / 2e-5
    assert np.linalg.norm(dlogits - differences) <= 1e-6 * np.linalg.norm(differences)


def test_masked_places_do_not_matter() -> None:
    logits, targets, mask = problem("float32")
    loss, dlogits = rk.softmax_cross_entropy(logits, targets, mask)
    assert np.all(dlogits[~mask] == 0.0)
    logits[~mask] = np.nan
    targets[~mask] = 1000
    again, again_dlogits = rk.softmax_cross_entropy(logits, targets, mask)
    assert again == loss
    assert again_dlogits.tobytes() == dlogits.tobytes()
    # The mean is that of the places that count, as if there were no others.
    alone, alone_dlogits = rk.softmax_cross_entropy(logits[mask], targets[mask])
    assert loss == pytest.approx(alone, rel=1e-6)
    np.testing.assert_allclose(dlogits[mask], alone_dlogits, rtol=1e-6)


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    logits = np.array([[1e30, 0.0, -1e30], [90.0, 89.0, -2e4]], np.float32)
    loss, dlogits = rk.softmax_cross_entropy(logits, np.array([0, 1]))
    assert loss == pytest.approx((0.0 + np.log1p(np.e)) / 2, rel=1e-6)
    np.testing.assert_allclose(dlogits[0], 0.0)
    p = 1.0 / (1.0 + np.e)
    np.testing.assert_allclose(dlogits[1], [(1 - p) / 2, (p - 1) / 2, 0.0], rtol=1e-6)


def test_logits_further_apart_than_float32_reaches() -> None:
    logits = np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    loss, gradient = rk.softmax_cross_entropy(logits, [1, 1])
    assert loss == pytest.approx(3e38, rel=1e-6)
    np.testing.assert_array_equal(gradient, [[0.5, -0.5], [0.0, 0.0]])


def test_a_class_ruled_out() -> None:
    logits = np.array([[0.0, -np.inf, 0.0]])
    loss, dlogits = rk.softmax_cross_entropy(logits, np.array([0]))
    assert loss == pytest.approx(np.log(2.0))
    np.testing.assert_allclose(dlogits, [[-0.5, 0.0, 0.5]])
    assert rk.softmax_cross_entropy(logits, np.array([1]))[0] == np.inf


def test_nan_is_not_hidden() -> None:
    loss, dlogits = rk.softmax_cross_entropy(
        np.array([[np.nan, 0.0], [0.0, 0.0]]), np.array([0, 1])
    )
    assert np.isnan(loss)
    assert np.isnan(dlogits[0]).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_nothing_counts(shape: tuple[int, int]) -> None:
    loss, dlogits = rk.softmax_cross_entropy(
        np.ones(shape, np.float32), np.zeros(shape[0], np.int64), np.zeros(shape[0], bool)
    )
    assert loss == 0.0
    assert dlogits.shape == shape
    assert not dlogits.any()


def test_arguments_are_left_alone() -> None:
    logits, targets, mask = problem()
    kept = logits.copy(), targets.copy(), mask.copy()
    rk.softmax_cross_entropy(logits, targets, mask)
    for array, before in zip((logits, targets, mask), kept, strict=True):
        assert array.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("logits", "targets", "mask", "error", "message"),
    [
        (np.zeros((2, 3), int), np.zeros(2, int), None, TypeError, "logits must be float32 or"),
        (np.zeros((2, 3)), np.zeros(2), None, TypeError, "targets must be integers, got float64"),
        (np.zeros((2, 3)), np.zeros(3, int), None, ValueError, r"targets must have shape \(2,\)"),
        (np.zeros((2, 0)), np.zeros(2, int), None, ValueError, "logits must have shape"),
        (np.zeros((2, 3)), np.array([0, 3]), None, ValueError, r"targets must be in 0..2, got 3"),
        (np.zeros((2, 3)), np.array([-1, 0]), None, ValueError, r"targets must be in 0..2, got -1"),
        (np.zeros((2, 3)), np.zeros(2, int), np.ones(2), TypeError, "mask must be bool"),
        (np.zeros((2, 3)), np.zeros(2, int), np.ones(3, bool), ValueError, "mask must have shape"),
    ],
)
def test_refusals(
    logits: Any, targets: Any, mask: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rk.softmax_cross_entropy(logits, targets, mask)
