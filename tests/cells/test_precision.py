# SPDX-License-Identifier: Apache-2.0
"""Long sums keep their digits: gradients over many rows, and products over many inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core

from support.compare import relative_error
from support.layers import CELLS, make
from support.reference import Array

# A chain of so many float32 additions of random numbers loses about 5e-6; of a million, 1.5e-5.
STEPS, BATCH, INPUTS, HIDDEN = 130, 1000, 3, 6
BOUND = 1e-6


def gradients(layer: Any, x: Array, lengths: Array | None, dy: Array) -> dict[str, Array]:
    _, _, tape = layer.forward(x, None, lengths)
    _, _, grads = tape.backward(dy)
    result: dict[str, Array] = grads
    return result


def upstream(features: int) -> Array:
    """Of a mean that is not 0, so that some sums grow with the rows and others with their root."""
    rng = np.random.default_rng(1)
    return (rng.standard_normal((STEPS, BATCH, features)) + 0.1).astype(np.float32)


@pytest.mark.parametrize("kind", ["dense", "ragged", "tokens"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_over_many_rows(cell: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    single, double = (
        make(cell, INPUTS, HIDDEN, bidirectional=kind == "ragged", dtype=dtype)
        for dtype in ("float32", "float64")
    )
    for name, p in double.params.items():
        p[...] = single.params[name]
    x: Array = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    if kind == "tokens":
        x = rng.integers(0, INPUTS, (STEPS, BATCH))
    lengths = rng.integers(STEPS // 2, STEPS - 3, BATCH) if kind == "ragged" else None
    dy = upstream(HIDDEN * single.num_directions)
    wide_x = x if kind == "tokens" else x.astype(np.float64)
    want = gradients(double, wide_x, lengths, dy.astype(np.float64))
    for name, got in gradients(single, x, lengths, dy).items():
        assert relative_error(got, want[name]) < BOUND, name


@pytest.mark.parametrize("kind", ["dense", "tokens"])
def test_gradients_over_steps_of_many_rows(kind: str) -> None:
    steps, batch = 2, 150_000
    rng = np.random.default_rng(0)
    single, double = (
        make("gru_before", INPUTS, HIDDEN, bidirectional=True, dtype=dtype)
        for dtype in ("float32", "float64")
    )
    for name, p in double.params.items():
        p[...] = single.params[name]
    x: Array = rng.standard_normal((steps, batch, INPUTS)).astype(np.float32)
    if kind == "tokens":
        x = rng.integers(0, INPUTS, (steps, batch))
    dy = (rng.standard_normal((steps, batch, 2 * HIDDEN)) + 1).astype(np.float32)
    wide_x = x if kind == "tokens" else x.astype(np.float64)
    want = gradients(double, wide_x, None, dy.astype(np.float64))
    for name, got in gradients(single, x, None, dy).items():
        assert relative_error(got, want[name]) < BOUND, name


@pytest.mark.parametrize(("steps", "batch"), [(1000, 1000), (1, 1_000_000)])
@pytest.mark.parametrize("dy", [0.1, 0.7])
def test_bias_gradients_of_equal_addends(steps: int, batch: int, dy: float) -> None:
    """Which lose the same again and again: as many as stand in a row."""
    layer = make("rnn_relu", 1, HIDDEN)
    layer.params["weight_hh_l0"] = 0 * layer.params["weight_hh_l0"]
    layer.params["bias_l0"] = np.ones(HIDDEN, np.float32)  # above 0: a delta is dy
    upstream = np.full((steps, batch, HIDDEN), dy, np.float32)
    got = gradients(layer, np.zeros((steps, batch, 1), np.float32), None, upstream)["bias_l0"]
    assert relative_error(got, steps * batch * upstream[0, 0].astype(np.float64)) < BOUND


def test_weight_gradients_over_a_million_rows() -> None:
    """Of products that are all above 0: in one sum, those of chunks lose 1e-6."""
    steps, batch, inputs = 1954, 512, 2
    layer, rng = make("rnn_relu", inputs, HIDDEN), np.random.default_rng(0)
    layer.params["weight_hh_l0"] = 0 * layer.params["weight_hh_l0"]
    layer.params["bias_l0"] = np.full(HIDDEN, 5, np.float32)  # above 0: a delta is dy
    x, dy = (rng.random((steps, batch, n), np.float32) + 0.5 for n in (inputs, HIDDEN))
    y, _, tape = layer.forward(x)
    _, _, grads = tape.backward(dy)
    h = np.concatenate([np.zeros_like(y[:1]), y[:-1]])
    deltas = dy.reshape(-1, HIDDEN).astype(np.float64).T
    for name, operand in (("weight_ih_l0", x), ("weight_hh_l0", h)):
        want = deltas @ operand.reshape(steps * batch, -1)
        assert relative_error(grads[name], want) < BOUND / 3, name


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_over_many_rounded_rows(cell: str) -> None:
    """Those of parts of the batch, of which no row knows another, added in float64."""
    layer = make(cell, INPUTS, HIDDEN, compute="bfloat16")
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    dy = upstream(HIDDEN)
    want = {name: np.zeros(p.shape) for name, p in layer.params.items()}
    for part in np.array_split(np.arange(BATCH), 20):
        for name, grad in gradients(layer, x[:, part], None, dy[:, part]).items():
            want[name] += grad
    for name, got in gradients(layer, x, None, dy).items():
        assert relative_error(got, want[name]) < BOUND, name


@pytest.mark.parametrize("upstream_is", ["random", "constant"])
def test_linear_gradients_over_a_million_rows(upstream_is: str) -> None:
    rows, rng = 1_000_000, np.random.default_rng(0)
    linear = rk.Linear(3, 5, seed=0)
    x = rng.standard_normal((rows, 3)).astype(np.float32)
    dy = np.full((rows, 5), 0.9, np.float32)
    if upstream_is == "random":
        dy += rng.standard_normal(dy.shape).astype(np.float32)
    _, tape = linear.forward(x)
    _, grads = tape.backward(dy)
    assert relative_error(grads["weight"], dy.astype(np.float64).T @ x) < BOUND
    assert relative_error(grads["bias"], dy.astype(np.float64).sum(axis=0)) < BOUND


@pytest.mark.parametrize("transposed", [False, True])
def test_products_over_many_inputs(transposed: bool) -> None:
    """No less exact than over 256 of them, at which chains begin anew."""
    rng = np.random.default_rng(0)
    errors = []
    for depth in (256, 4096):
        a, b = (rng.standard_normal((n, depth)).astype(np.float32) for n in (48, 80))
        want = a.astype(np.float64) @ b.astype(np.float64).T
        got = _core.matmul(
            a.T.copy() if transposed else a, b, transpose_a=transposed, transpose_b=True
        )
        errors.append(relative_error(got, want))
    assert errors[1] < 1.5 * errors[0]


def test_pre_activations_of_many_inputs() -> None:
    size = 1024
    layer = make("rnn_relu", size, size)
    rng = np.random.default_rng(0)
    x, h = (rng.standard_normal((1, 8, size)).astype(np.float32) for _ in range(2))
    y, _ = layer(x, h)
    p = {name: array.astype(np.float64) for name, array in layer.params.items()}
    want = x[0] @ p["weight_ih_l0"].T + h[0] @ p["weight_hh_l0"].T + p["bias_l0"]
    assert relative_error(y[0], np.maximum(want, 0.0)) < 3.5e-7
