# SPDX-License-Identifier: Apache-2.0
"""What backward gives: by name, in turn, and as optimizers and clipping take it."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import CELLS
from rnnkern.layers.base import stream_of_tokens

from support.compare import assert_same_bits

X = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)


def test_a_layer_has_all_four() -> None:
    y, _, tape = rk.LSTM(3, 5, seed=0).forward(X)
    grads = tape.backward(y, state_gradients=True)
    assert isinstance(grads, rk.Gradients)
    dx, dstate, params, steps = grads
    assert (dx, dstate, params, steps) == (grads.x, grads.state, grads.params, grads.steps)
    assert len(grads) == 4
    assert grads[2] is params
    assert len(tape.backward(y)) == 3
    assert tape.backward(y).steps is None
    with pytest.raises(AttributeError, match="x of Gradients is read-only"):
        grads.x = None


def test_tokens_have_no_gradient_but_keep_their_place() -> None:
    y, _, tape = rk.GRU(3, 5, seed=0).forward(np.zeros((4, 2), np.int64))
    dx, _dstate, params = tape.backward(y)
    assert dx is None
    assert params.keys() == rk.GRU(3, 5).params.keys()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"recompute": 2},
    "truncated": {"tbptt": 2},
    "reset": {"resets": np.array([[False, True], [True, False], [False, True], [False, False]])},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("cell", list(CELLS))
def test_without_that_of_x_all_else_is_the_same(cell: str, kind: str) -> None:
    layer = CELLS[cell].build(3, 4, num_layers=2, bidirectional=kind != "truncated", seed=0)
    y, _, tape = layer.forward(X, **KINDS[kind])
    for dy in (y, np.asfortranarray(y), None):  # what is taken at once, copied, and missing
        want, got = tape.backward(dy), tape.backward(dy, x_gradient=False)
        assert got.x is None
        assert want.x is not None
        assert_same_bits("the state's", np.stack(got.state), np.stack(want.state))
        for name, gradient in want.params.items():
            assert_same_bits(name, got.params[name], gradient)


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("residual", [False, [True, True]])
def test_stacks_and_models_leave_that_of_x_out(residual: Any, embedding: bool) -> None:
    words = rk.Embedding(9, 3, seed=2) if embedding else None
    layers = [rk.GRU(3, 3, seed=0), rk.LSTM(3, 3, seed=1)]
    model = rk.Model(rk.Stack(layers, residual=residual), rk.Linear(3, 2), embedding=words)
    x: Any = np.zeros((4, 2), np.int64) if embedding else X
    targets = np.zeros((4, 2), np.int64)
    _, want = model.loss_and_grads(x, targets)
    _, got = model.loss_and_grads(x, targets, x_gradient=False)
    outputs, _, tape = model.forward(x)
    y, _, own = model.recurrent.forward(X)
    of_stack = own.backward(y, dlast=y[-1]), own.backward(y, dlast=y[-1], x_gradient=False)
    pairs = [(want, got), (tape.backward(outputs), tape.backward(outputs, x_gradient=False))]
    for whole, part in (*pairs, of_stack):
        assert part.x is None
        for name, gradient in whole.params.items():
            assert_same_bits(name, part.params[name], gradient)
        for mine, theirs in zip(part.state, whole.state, strict=True):
            assert_same_bits("state", np.stack(mine), np.stack(theirs))
    assert of_stack[0].x is not None
    ways: list[Any] = [partial(own.backward, y), partial(tape.backward, outputs)]
    for refused in ways:
        with pytest.raises(TypeError, match="x_gradient must be True or False, got 0"):
            refused(x_gradient=0)


def test_a_linear_map_has_no_state() -> None:
    y, tape = rk.Linear(3, 5, seed=0).forward(X)
    grads = tape.backward(y)
    dx, params = grads
    assert isinstance(grads, rk.Gradients)
    assert (dx, params) == (grads.x, grads.params)
    assert grads.state is None


def test_optimizers_and_clipping_take_it() -> None:
    layer, twin, head = rk.GRU(3, 5, seed=0), rk.GRU(3, 5, seed=0), rk.Linear(5, 2, seed=0)
    y, _, tape = layer.forward(X)
    assert rk.clip_grad_norm(tape.backward(y), 1e9) == rk.clip_grad_norm(tape.backward(y)[2], 1e9)
    rk.clip_grad_value(tape.backward(y), 1.0)
    rk.SGD(layer, 0.1).step(tape.backward(y))
    rk.SGD(twin.params, 0.1).step(tape.backward(y).params)
    assert layer.params == twin.params
    logits, head_tape = head.forward(y)
    rk.Adam({"gru": layer, "head": head}).step(
        {"gru": tape.backward(y), "head": head_tape.backward(logits)}
    )
    assert layer.params != twin.params


COPIES: dict[str, Any] = {"deep": copy.deepcopy, "pickle": lambda s: pickle.loads(pickle.dumps(s))}


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_stream_of_tokens_takes_tokens_alone(how: str) -> None:
    twin = COPIES[how](stream_of_tokens(rk.GRU(3, 5, seed=0), 2))
    assert twin._stepper.step(X[0], None) is None
    assert twin._stepper.step(np.zeros(2, np.int64), None) is not None


def test_an_error_names_the_callers_own_class() -> None:
    class Mine(rk.LSTM):
        pass

    with pytest.raises(TypeError, match=r"state must be the pair \(h, c\) of this Mine, got"):
        Mine(3, 5)(X, np.zeros((1, 2, 5), np.float32))
