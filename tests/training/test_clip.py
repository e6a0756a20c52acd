# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping against PyTorch and at its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk


def gradients(dtype: str, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(300, 301), (3,), (), (0, 2)]
    return {str(s): np.array(scale * rng.standard_normal(s), dtype) for s in shapes}


def joint_norm(grads: dict[str, Any]) -> float:
    flat = np.concatenate([g.reshape(-1).astype(np.float64) for g in grads.values()])
    largest = float(np.abs(flat).max())
    return largest * float(np.linalg.norm(flat / largest))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.5, 1e4])
def test_agrees_with_pytorch(dtype: str, max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    grads = gradients(dtype)
    leaves = [torch.zeros(g.shape, requires_grad=True) for g in grads.values()]
    for leaf, g in zip(leaves, grads.values(), strict=True):
        leaf.grad = torch.tensor(g, dtype=torch.float64).to(leaf.dtype)
    want = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
    assert rk.clip_grad_norm(grads, max_norm) == pytest.approx(want.item(), rel=1e-5)
    for leaf, g in zip(leaves, grads.values(), strict=True):
        # PyTorch divides by the norm + 1e-6.
        np.testing.assert_allclose(g, leaf.grad.numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "scale"),
    [
        *(("float32", 1e-6, scale) for scale in (1.0, 1e-22, 1e-30, 1e30)),
        *(("float64", 1e-14, scale) for scale in (1.0, 1e-22, 1e-30, 1e30, 1e-200, 1e200)),
    ],
)
@pytest.mark.parametrize("share", [0.25, 0.99])
def test_the_norm_is_bounded_at_any_size(
    dtype: str, tolerance: float, scale: float, share: float
) -> None:
    grads = gradients(dtype, scale)
    before = joint_norm(grads)
    given = rk.clip_grad_norm(grads, share * before)
    assert given == pytest.approx(before, rel=tolerance, abs=0.0)
    assert joint_norm(grads) == pytest.approx(share * before, rel=tolerance, abs=0.0)


def test_a_norm_beyond_the_largest_number_is_bounded_all_the_same() -> None:
    grads = {"p": np.full(100, 1e308), "q": np.array([-1e308, 0.0])}
    assert rk.clip_grad_norm(grads, 2.0) == np.inf
    assert joint_norm(grads) == pytest.approx(2.0)


def test_small_gradients_are_left_alone() -> None:
    grads = gradients("float32")
    norm = rk.clip_grad_norm(grads, 1e6)
    assert norm == pytest.approx(joint_norm(grads), rel=1e-6)
    for name, g in gradients("float32").items():
        assert g.tobytes() == grads[name].tobytes()
    assert rk.clip_grad_norm({"p": np.zeros(3)}, 1.0) == 0.0
    assert rk.clip_grad_norm({}, 1.0) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_norm_that_is_not_finite_is_told_and_changes_nothing(dtype: str, bad: float) -> None:
    grads = {"a": np.ones(3, dtype), "b": np.array([1.0, bad], dtype)}
    assert not np.isfinite(rk.clip_grad_norm(grads, 0.1))
    np.testing.assert_array_equal(grads["a"], 1.0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_strided_gradients_are_clipped_in_place(order: Any) -> None:
    grads = {"p": np.asarray(np.full((2, 8), 3.0), order=order)[:, ::4]}
    assert rk.clip_grad_norm(grads, 3.0) == pytest.approx(6.0)
    np.testing.assert_allclose(grads["p"], 1.5)


def test_values_are_clipped_in_place() -> None:
    g = np.array([-3.0, -0.5, 0.0, 0.5, 3.0, -np.inf, np.nan], np.float32)
    rk.clip_grad_value({"p": g}, 1.0)
    np.testing.assert_array_equal(g, np.array([-1, -0.5, 0, 0.5, 1, -1, np.nan], np.float32))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_refused_bounds(bad: float) -> None:
    with pytest.raises(ValueError, match="max_norm"):
        rk.clip_grad_norm({"p": np.ones(3)}, bad)
    with pytest.raises(ValueError, match="max_value"):
        rk.clip_grad_value({"p": np.ones(3)}, bad)
    with pytest.raises(TypeError, match="max_norm"):
        rk.clip_grad_norm({"p": np.ones(3)}, "1")  # type: ignore[arg-type]
