# SPDX-License-Identifier: Apache-2.0
"""Rows that begin anew with a state of their own: its gradient, and by every path the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.differences import check_slope, weighted
from support.layers import CELLS, as_layer_state, as_tuple, make, random_state

STEPS, BATCH, INPUTS, HIDDEN = 9, 4, 3, 5
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((STEPS, BATCH, INPUTS))
ROWS: dict[str, Any] = {
    "resets": RANDOM.random((STEPS, BATCH)) < 0.3,
    "mask": RANDOM.random((STEPS, BATCH)) < 0.7,
    "lengths": [STEPS, 0, 5, 8],
}
ROWS["resets"][-1] = ROWS["mask"][-1] = True, False, True, False  # after the last step of a row


def states(cell: str, count: int, rows: int = BATCH, seed: int = 0) -> Any:
    return as_layer_state(random_state(cell, (count, rows, HIDDEN), seed))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_by_finite_differences(cell: str, bidirectional: bool, shared: bool) -> None:
    count = 4 if bidirectional else 2
    layer = make(cell, INPUTS, HIDDEN, 2, bidirectional=bidirectional, dtype="float64")
    first, anew = states(cell, count), states(cell, count, 1 if shared else BATCH, 1)
    y, last, tape = layer.forward(X, first, **ROWS, reset_to=anew)
    weights = [RANDOM.standard_normal(a.shape) for a in (y, *as_tuple(last))]
    gradients = tape.backward(weights[0], as_layer_state(tuple(weights[1:])))
    dx, dfirst, grads, danew = gradients
    assert danew is gradients.reset_to

    def loss() -> float:
        again, after = layer(X, first, **ROWS, reset_to=anew)
        return weighted((again, *as_tuple(after)), weights)

    claimed: dict[str, Any] = {n: (p, grads[n]) for n, p in layer.params.items()}
    for name, given, found in (("first", first, dfirst), ("anew", anew, danew)):
        for k, pair in enumerate(zip(as_tuple(given), as_tuple(found), strict=True)):
            claimed[f"{name} {k}"] = pair
    check_slope(loss, claimed | {"x": (X, dx)})


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_the_same_by_every_path(cell: str) -> None:
    layer, anew = make(cell, INPUTS, HIDDEN, 2, dtype="float64"), states(cell, 2, seed=1)
    first = states(cell, 2)
    y, last = layer(X, first, **ROWS, reset_to=anew)
    for other in (layer.freeze(), layer.forward):
        got = other(X, first, **ROWS, reset_to=anew)
        assert_same_bits("y", got[0], y)
        for mine, theirs in zip(as_tuple(got[1]), as_tuple(last), strict=True):
            assert_same_bits("last", mine, theirs)
    one = rk.Stack([layer])
    got_y, _, tape = one.forward(X, [first], **ROWS, reset_to=[anew])
    assert_same_bits("stack", got_y, y)
    (danew,) = tape.backward(y).reset_to
    want = layer.forward(X, first, **ROWS, reset_to=anew)[2].backward(y).reset_to
    for mine, theirs in zip(as_tuple(danew), as_tuple(want), strict=True):
        assert_same_bits("gradient", mine, theirs)
    assert one.forward(X, **ROWS, reset_to=[None])[2].backward(y).reset_to is None
    rows = {n: a[:, 0] for n, a in ROWS.items() if n != "lengths"}
    of_row = [as_layer_state(tuple(s[:, 0] for s in as_tuple(own))) for own in (first, anew)]
    alone, _, tape_of_row = layer.forward(X[:, 0], of_row[0], **rows, reset_to=of_row[1])
    assert_close("alone", alone, y[:, 0], 1e-12)
    for mine, given in zip(
        as_tuple(tape_of_row.backward(alone).reset_to), as_tuple(of_row[1]), strict=True
    ):
        assert mine.shape == given.shape


@pytest.mark.parametrize("options", [{}, {"recurrent_dropout": 0.3}, {"zoneout": 0.2}], ids=str)
def test_zeros_are_what_zero_is(options: dict[str, Any]) -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, 2, bidirectional=True, dropout=0.2, seed=0, **options)
    x = X.astype(np.float32)
    zeros: Any = np.zeros((4, 1, HIDDEN), np.float32), None
    first = tuple(s.astype(np.float32) for s in states("lstm", 4))
    y, last, tape = layer.forward(x, first, **ROWS, dropout_key=1)
    got, own, other = layer.forward(x, first, **ROWS, dropout_key=1, reset_to=zeros)
    assert_same_bits("y", got, y)
    want: Any = tape.backward(y, last)
    found: Any = other.backward(y, own)
    assert_same_bits("dx", found.x, want.x)
    for name, array in want.params.items():
        assert_same_bits(name, found.params[name], array)


def test_without_a_reset_there_is_no_gradient() -> None:
    layer, anew = rk.GRU(INPUTS, HIDDEN, seed=0), np.ones((1, 1, HIDDEN), np.float32)
    x = X.astype(np.float32)
    for rows in ({}, {"resets": np.zeros((STEPS, BATCH), bool)}, {"mask": ROWS["mask"]}):
        y, _, tape = layer.forward(x, **rows, reset_to=anew)
        assert_same_bits("y", y, layer(x, **rows)[0])
        danew = tape.backward(y).reset_to
        assert danew.shape == anew.shape
        assert not danew.any()
    empty, _, tape = layer.forward(x[:0], reset_to=anew, resets=np.zeros((0, BATCH), bool))
    assert not tape.backward(empty).reset_to.any()


def test_a_model_learns_the_state_that_its_episodes_begin_with() -> None:
    model = rk.Model(
        rk.GRU(INPUTS, HIDDEN, dtype="float64", seed=0),
        rk.Linear(HIDDEN, 2, dtype="float64", seed=1),
        loss="mse",
    )
    begin, targets = states("gru_before", 1, 1), RANDOM.standard_normal((STEPS, BATCH, 2))
    rows = {"resets": ROWS["resets"], "reset_to": begin}
    _, grads = model.loss_and_grads(X, targets, **rows)
    check_slope(lambda: model.evaluate(X, targets, **rows), {"begin": (begin, grads.reset_to)})
    assert "reset_to=float64 (1, 1, 5)" in repr(grads)
