# SPDX-License-Identifier: Apache-2.0
"""Softmax cross-entropy against PyTorch, finite differences, and at its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close
from support.differences import check_gradients, differences


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
    want = differences(lambda: rk.softmax_cross_entropy(logits, targets, mask)[0], logits)
    assert_close("dlogits", dlogits, want, 1e-6)


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


# -- weights and smoothed labels ------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
def test_weights_and_smoothing_agree_with_pytorch(
    dtype: str, tolerance: float, weighted: bool, smoothing: float, masked: bool
) -> None:
    torch = pytest.importorskip("torch")
    logits, targets, mask = problem(dtype)
    weights = np.random.default_rng(1).uniform(0.0, 2.0, 7).astype(dtype) if weighted else None
    loss, dlogits = rk.softmax_cross_entropy(
        logits,
        targets,
        mask if masked else None,
        class_weights=weights,
        label_smoothing=smoothing,
    )
    leaf = torch.tensor(logits, requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        leaf.reshape(-1, 7),
        torch.tensor(np.where(mask | (not masked), targets, -100)).reshape(-1),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    want.backward()
    assert dlogits.dtype == dtype
    assert isinstance(loss, float)
    assert loss == pytest.approx(want.item(), rel=tolerance)
    np.testing.assert_allclose(dlogits, leaf.grad.numpy(), rtol=1e3 * tolerance, atol=tolerance)


def test_weights_of_one_are_none() -> None:
    logits, targets, mask = problem("float32")
    loss, dlogits = rk.softmax_cross_entropy(logits, targets, mask)
    again, gradient = rk.softmax_cross_entropy(logits, targets, mask, class_weights=[1] * 7)
    assert again == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(gradient, dlogits, rtol=1e-5, atol=1e-8)


def test_masked_places_do_not_matter_to_the_weighted_loss() -> None:
    logits, targets, mask = problem("float32")
    options: dict[str, Any] = {"class_weights": np.arange(7.0), "label_smoothing": 0.2}
    loss, dlogits = rk.softmax_cross_entropy(logits, targets, mask, **options)
    logits[~mask] = np.nan
    targets[~mask] = 1000
    again, gradient = rk.softmax_cross_entropy(logits, targets, mask, **options)
    assert again == loss
    assert gradient.tobytes() == dlogits.tobytes()


def test_a_weight_of_zero_leaves_a_class_out() -> None:
    logits = np.array([[0.0, -np.inf], [0.0, 1.0]])
    loss, gradient = rk.softmax_cross_entropy(logits, [0, 1], class_weights=[1.0, 0.0])
    assert loss == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))
    loss, gradient = rk.softmax_cross_entropy(logits, [1, 1], class_weights=[1.0, 0.0])
    assert loss == 0.0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_weights": np.ones(2)}, ValueError, r"class_weights must have shape \(3,\)"),
        ({"class_weights": [1.0, -1.0, 1.0]}, ValueError, "class_weights must be finite numbers"),
        ({"class_weights": [1.0, np.nan, 1.0]}, ValueError, "class_weights must be finite"),
        ({"class_weights": [1j, 1, 1]}, TypeError, "class_weights must be numbers"),
        ({"label_smoothing": 1.1}, ValueError, "label_smoothing must be .* at most 1, got 1.1"),
        ({"label_smoothing": "a"}, TypeError, "label_smoothing must be a finite number"),
    ],
)
def test_refused_weights(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rk.softmax_cross_entropy(np.zeros((2, 3)), np.zeros(2, int), **options)
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.2, got 3"):
        rk.softmax_cross_entropy(np.zeros((2, 3)), [0, 3], label_smoothing=0.1)


# -- losses of numbers ----------------------------------------------------------------------------

NUMBERS: dict[str, Any] = {
    "mse": (rk.mse, {}, "mse_loss", {}),
    "huber": (rk.huber, {}, "huber_loss", {}),
    "narrow huber": (rk.huber, {"delta": 0.3}, "huber_loss", {"delta": 0.3}),
    "binary": (rk.binary_cross_entropy, {}, "binary_cross_entropy_with_logits", {}),
}


def numbers(name: str, dtype: str) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    outputs = (2.0 * rng.standard_normal((5, 4, 3))).astype(dtype)
    targets = rng.random((5, 4, 3)) if name == "binary" else rng.standard_normal((5, 4, 3))
    return outputs, targets.astype(dtype), rng.random((5, 4)) < 0.7


@pytest.mark.parametrize("mask_of", [None, "places", "numbers"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("name", NUMBERS)
def test_losses_of_numbers_agree_with_pytorch(
    name: str, dtype: str, tolerance: float, mask_of: str | None
) -> None:
    torch = pytest.importorskip("torch")
    ours, options, peer, peer_options = NUMBERS[name]
    outputs, targets, places = numbers(name, dtype)
    counts = np.broadcast_to(places[..., None], outputs.shape) | (mask_of is None)
    if mask_of == "numbers":
        counts = counts & (outputs > -0.5)
    mask = {None: None, "places": places, "numbers": counts}[mask_of]
    kept = outputs.copy(), targets.copy()
    loss, gradient = ours(outputs, targets, mask, **options)
    leaf = torch.tensor(outputs, requires_grad=True)
    want = getattr(torch.nn.functional, peer)(
        leaf[torch.tensor(counts)], torch.tensor(targets[counts]), **peer_options
    )
    want.backward()
    assert isinstance(loss, float)
    assert gradient.dtype == dtype
    assert loss == pytest.approx(want.item(), rel=tolerance)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=10 * tolerance, atol=tolerance)
    assert (outputs.tobytes(), targets.tobytes()) == (kept[0].tobytes(), kept[1].tobytes())
    if mask is not None:  # what does not count is not looked at
        outputs[~counts] = np.nan
        targets[~counts] = np.nan
        again, same = ours(outputs, targets, mask, **options)
        assert again == loss
        assert same.tobytes() == gradient.tobytes()


@pytest.mark.parametrize("name", NUMBERS)
def test_losses_of_numbers_agree_with_finite_differences(name: str) -> None:
    ours, options, *_ = NUMBERS[name]
    outputs, targets, mask = numbers(name, "float64")
    _, gradient = ours(outputs, targets, mask, **options)

    def loss() -> float:
        return float(ours(outputs, targets, mask, **options)[0])

    check_gradients(loss, {"outputs": (outputs, gradient)}, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", NUMBERS)
def test_losses_of_no_numbers(name: str) -> None:
    ours = NUMBERS[name][0]
    for shape in ((0, 3), (2, 3)):
        mask = np.zeros(shape, bool)
        loss, gradient = ours(np.ones(shape, np.float32), np.zeros(shape), mask)
        assert loss == 0.0
        assert gradient.shape == shape
        assert not gradient.any()


def test_logits_far_off_overflow_in_no_loss() -> None:
    loss, gradient = rk.binary_cross_entropy(np.array([1e30, -1e30, 1e30], np.float32), [1, 0, 0])
    assert loss == pytest.approx(1e30 / 3, rel=1e-6)
    np.testing.assert_allclose(gradient, [0, 0, 1 / 3], rtol=1e-6)
    loss, gradient = rk.mse(np.array([3e30], np.float32), [0])
    assert loss == pytest.approx(9e60, rel=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
def test_refusals_of_losses_of_numbers(name: str) -> None:
    ours = NUMBERS[name][0]
    y = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="must be float32 or float64, got int64"):
        ours(np.zeros(2, int), np.zeros(2))
    with pytest.raises(ValueError, match=r"targets must have shape \(2, 3\), got \(2,\)"):
        ours(y, np.zeros(2))
    with pytest.raises(TypeError, match="targets must be numbers, got complex128"):
        ours(y, np.zeros((2, 3), complex))
    with pytest.raises(TypeError, match="mask must be bool, got float64"):
        ours(y, y, np.ones(2))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 3\) or \(2,\), got \(3,\)"):
        ours(y, y, np.ones(3, bool))


def test_refused_deltas_and_probabilities() -> None:
    with pytest.raises(ValueError, match="delta must be a finite number above 0"):
        rk.huber(np.zeros(2), np.zeros(2), delta=0.0)
    for wrong in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"targets must be in 0\.\.1, got"):
            rk.binary_cross_entropy(np.zeros(2), [0.5, wrong])
        rk.binary_cross_entropy(np.zeros(2), [0.5, wrong], np.array([True, False]))
