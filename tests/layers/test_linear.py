# SPDX-License-Identifier: Apache-2.0
"""Linear against NumPy's product, finite differences, and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.differences import check_gradients, weighted
from support.threads import using_threads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(), (4,), (3, 5), (2, 3, 4), (0,), (3, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_is_the_affine_map(dtype: str, lead: tuple[int, ...], bias: bool) -> None:
    lin = rk.Linear(7, 3, bias=bias, dtype=dtype, seed=1)
    assert set(lin.params) == ({"weight", "bias"} if bias else {"weight"})
    x = np.random.default_rng(0).standard_normal((*lead, 7)).astype(dtype)
    y = lin(x)
    want = x.astype(np.float64) @ lin.params["weight"].T.astype(np.float64)
    want += lin.params["bias"] if bias else 0.0
    assert y.dtype == dtype
    assert y.shape == (*lead, 3)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    assert lin.forward(x)[0].tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (3, 5), (0,), (200,)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_frozen_one_gives_the_same_bits(
    dtype: str, bias: bool, lead: tuple[int, ...], threads: int
) -> None:
    """From the parameters of when it was made; of the largest size threads share the product."""
    lin = rk.Linear(67, 129, bias=bias, dtype=dtype, seed=1)
    x = np.random.default_rng(0).standard_normal((*lead, 67)).astype(dtype)
    with using_threads(threads):
        want = lin(x)
        frozen = lin.freeze()
        for array in lin.params.values():
            array[...] = np.nan
        got = frozen(x)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes()


def test_a_frozen_one_refuses_what_a_call_refuses() -> None:
    frozen = rk.Linear(4, 3).freeze()
    with pytest.raises(TypeError, match="x must be float32, got float64"):
        frozen(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"x must have shape \(..., 4\), got \(2, 3\)"):
        frozen(np.zeros((2, 3), np.float32))
    assert repr(frozen).startswith("FrozenLinear(")


@pytest.mark.parametrize("lead", [(), (4,), (3, 5), (0,)])
@pytest.mark.parametrize("frozen", [False, True])
def test_out(frozen: bool, lead: tuple[int, ...]) -> None:
    lin = rk.Linear(7, 3, seed=1)
    call = lin.freeze() if frozen else lin
    x = np.random.default_rng(0).standard_normal((*lead, 7)).astype(np.float32)
    want, room = lin(x), np.full((*lead, 4), np.nan, np.float32)
    for out in (np.empty_like(want), room[..., 1:]):
        assert call(x, out=out) is out
        assert out.tobytes() == want.tobytes()
    assert np.isnan(room[..., 0]).all()


def test_an_out_that_does_not_fit_is_named() -> None:
    lin = rk.Linear(3, 3)
    x = np.zeros((3, 3), np.float32)
    for call in (lin, lin.freeze()):
        with pytest.raises(ValueError, match="out must not share memory with x"):
            call(x, out=x)
        with pytest.raises(ValueError, match=r"out must have shape \(3, 3\), got \(3,\)"):
            call(x, out=x[0])
        with pytest.raises(TypeError, match="out must be float32, got float64"):
            call(x, out=np.zeros((3, 3)))
        with pytest.raises(TypeError, match="out must be a NumPy array, got"):
            call(x, out=[0.0])  # type: ignore[arg-type]
    for name in lin.params:
        with pytest.raises(ValueError, match=rf"out must not share memory with params\['{name}'\]"):
            lin(x[0], out=lin.params[name].reshape(-1)[:3])


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_agree_with_finite_differences(bias: bool) -> None:
    lin = rk.Linear(4, 3, bias=bias, dtype="float64", seed=1)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 5, 3))
    _, tape = lin.forward(x)
    dx, grads = tape.backward(dy)
    assert grads.keys() == lin.params.keys()
    claimed = {"x": (x, dx), **{name: (lin.params[name], grads[name]) for name in grads}}
    # The map is linear in each: only rounding is left.
    check_gradients(lambda: weighted([lin(x)], [dy]), claimed, rtol=1e-6)


def test_strided_input_is_taken() -> None:
    lin = rk.Linear(4, 3, seed=1)
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)[::2, ::2]
    dy = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32).T
    for given in (x, np.ascontiguousarray(x)):
        y, tape = lin.forward(given)
        dx, grads = tape.backward(dy)
        for got, want in [
            (y, lin(x.copy())),
            (dx, dy @ lin.params["weight"]),
            (grads["weight"], dy.T @ x),
            (grads["bias"], dy.sum(axis=0)),
        ]:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_tape_keeps_its_own_weights() -> None:
    lin = rk.Linear(4, 3, seed=1)
    _, tape = lin.forward(np.ones((2, 4), np.float32))
    before, _ = tape.backward(np.ones((2, 3), np.float32))
    lin.params["weight"] += 1.0
    after, _ = tape.backward(np.ones((2, 3), np.float32))
    assert before.tobytes() == after.tobytes()


def test_lists_are_taken() -> None:
    lin = rk.Linear(2, 1, dtype="float64", seed=1)
    np.testing.assert_array_equal(lin([[1.0, 2.0]]), lin(np.array([[1.0, 2.0]])))


def test_seed_and_bounds() -> None:
    first, second, other = (rk.Linear(16, 50, seed=s) for s in (3, 3, 4))
    for name, p in first.params.items():
        assert p.tobytes() == second.params[name].tobytes()
        assert p.tobytes() != other.params[name].tobytes()
        assert 0.2 < np.abs(p).max() <= 0.25  # 1/√16


def test_config_builds_the_same() -> None:
    lin = rk.Linear(5, 2, bias=False, dtype="float64", seed=3)
    assert rk.Linear(**lin.config()).config() == lin.config()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0, "out_features": 1}, ValueError, "in_features"),
        ({"in_features": 1, "out_features": -1}, ValueError, "out_features"),
        ({"in_features": 1.5, "out_features": 1}, TypeError, "in_features"),
        ({"in_features": 1, "out_features": 1, "dtype": "int8"}, ValueError, "dtype"),
    ],
)
def test_refused_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rk.Linear(**arguments)


def test_refused_arrays() -> None:
    lin = rk.Linear(4, 3)
    with pytest.raises(TypeError, match="x must be float32, got float64"):
        lin(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"x must have shape \(..., 4\), got \(2, 3\)"):
        lin(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="x must have shape"):
        lin(np.zeros((), np.float32))
    _, tape = lin.forward(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 3\), got \(3, 3\)"):
        tape.backward(np.zeros((3, 3), np.float32))
    with pytest.raises(TypeError, match="dy must be float32, got float64"):
        tape.backward(np.zeros((2, 3)))
