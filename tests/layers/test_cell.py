# SPDX-License-Identifier: Apache-2.0
"""Cells of one step: a loop over time gives what the layer gives, values and gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import CELLS as REGISTRY
from rnnkern.cells import layer_classes, step_classes

from support.compare import assert_close, assert_same_bits
from support.differences import check_gradients, weighted
from support.layers import (
    CELLS,
    CLASSES,
    TOLERANCE,
    as_layer_state,
    as_tuple,
    cast,
    make,
    random_state,
)

T, B, F, H = 5, 3, 4, 6
STEPS = {kind.kind: kind for kind in step_classes().values()}


def step_of(layer: Any, k: int = 0, *, reverse: bool = False) -> Any:
    """The cell of a layer, by the registry."""
    return STEPS[type(layer)].of(layer, k, reverse=reverse)


def looped(cell: Any, x: Any, state: Any, dy: Any, dlast: Any) -> Any:
    """A loop over time and back: y, last state, dx, gradient of the first state, gradients."""
    tapes, ys = [], []
    for x_t in x:
        state, tape = cell.forward(x_t, state)
        tapes.append(tape)
        ys.append(as_tuple(state)[0])
    dstate, grads, dxs = dlast, None, []
    for tape, dy_t in zip(reversed(tapes), dy[::-1], strict=True):
        dh, *dc = as_tuple(dstate)
        dx, dstate, grads = tape.backward(as_layer_state((dh + dy_t, *dc)), into=grads)
        dxs.append(dx)
    return np.stack(ys), state, dxs[::-1], dstate, grads


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["features", "tokens", "unbatched"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_is_the_layer(cell: str, kind: str, dtype: str) -> None:
    layer = make(cell, F, H, dtype=dtype)
    rng, tolerance = np.random.default_rng(0), TOLERANCE[dtype]
    batch = () if kind == "unbatched" else (B,)
    x: Any = rng.standard_normal((T, *batch, F)).astype(dtype)
    if kind == "tokens":
        x = rng.integers(0, F, (T, B))
    dy = rng.standard_normal((T, *batch, H)).astype(dtype)
    states = [cast(random_state(cell, (1, B, H), seed), dtype) for seed in (0, 1)]
    if not batch:
        states = [tuple(s[:, 0] for s in state) for state in states]
    whole = [as_layer_state(state) for state in states]
    first, dlast = (as_layer_state(tuple(s[0] for s in state)) for state in states)

    want_y, want_last, layer_tape = layer.forward(x, whole[0])
    want_dx, want_dfirst, want_grads = layer_tape.backward(dy, whole[1])
    y, last, dx, dfirst, grads = looped(step_of(layer), x, first, dy, dlast)

    assert_close("y", y, want_y, tolerance)
    if kind == "tokens":
        assert dx == [None] * T
    else:
        assert_close("dx", np.stack(dx), want_dx, tolerance)
    for name, got, want in (
        *zip("hc", as_tuple(last), as_tuple(want_last), strict=False),
        *zip(("dh", "dc"), as_tuple(dfirst), as_tuple(want_dfirst), strict=False),
    ):
        assert got.shape == (*batch, H)
        assert_close(name, got, want[0], tolerance)
    assert [f"{name}_l0" for name in grads] == list(layer.params)
    for name, got in grads.items():
        assert_close(name, got, want_grads[f"{name}_l0"], tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_a_call_gives_the_same_bits_as_forward_and_as_the_layer(cell: str) -> None:
    layer = make(cell, F, H)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, F)).astype(np.float32)
    state = as_layer_state(cast(random_state(cell, (B, H)), "float32"))
    called, (trained, _) = step_of(layer)(x, state), step_of(layer).forward(x, state)
    of_layer = layer(x[None], as_layer_state(tuple(s[None] for s in as_tuple(state))))[1]
    for got, again, want in zip(*map(as_tuple, (called, trained, of_layer)), strict=True):
        assert_same_bits("training", again, got)
        assert_same_bits("layer", got, want[0])


@pytest.mark.parametrize("cell", CELLS)
def test_stacked_cells_in_both_directions_are_the_layer(cell: str) -> None:
    layer = make(cell, F, H, 2, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((T, B, F)).astype(np.float32)
    y: Any = x
    for k in range(2):
        halves = []
        for reverse in (False, True):
            one, state, outputs = step_of(layer, k, reverse=reverse), None, []
            for x_t in y[::-1] if reverse else y:
                state = one(x_t, state)
                outputs.append(as_tuple(state)[0])
            halves.append(np.stack(outputs[::-1] if reverse else outputs))
        y = np.concatenate(halves, axis=-1)
    assert_close("y", y, layer(x)[0], 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_one_step_agree_with_finite_differences(cell: str) -> None:
    rng = np.random.default_rng(0)
    one = step_of(make(cell, 3, 2, dtype="float64"))
    x, state = rng.standard_normal((2, 3)), random_state(cell, (2, 2))
    upstream = random_state(cell, (2, 2), 1)
    _, tape = one.forward(x, as_layer_state(state))
    dx, dstate, grads = tape.backward(as_layer_state(upstream))

    def loss() -> float:
        return weighted(as_tuple(one(x, as_layer_state(state))), upstream)

    claimed = {"x": (x, dx), **{name: (one.params[name], grads[name]) for name in grads}}
    claimed |= dict(zip("hc", zip(state, as_tuple(dstate), strict=True), strict=False))
    check_gradients(loss, claimed, rtol=1e-5, atol=1e-8)


def test_the_lstm_cell_agrees_with_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours, theirs = rk.LSTMCell(F, H, seed=1), torch.nn.LSTMCell(F, H)
    with torch.no_grad():
        for name, p in (
            ("weight_ih", "weight_ih"),
            ("weight_hh", "weight_hh"),
            ("bias_ih", "bias"),
        ):
            getattr(theirs, name).copy_(torch.tensor(ours.params[p]))
        theirs.bias_hh.zero_()
    x, h, c = (rng.standard_normal((B, n)).astype(np.float32) for n in (F, H, H))
    want = theirs(torch.tensor(x), (torch.tensor(h), torch.tensor(c)))
    for got, wanted in zip(ours(x, (h, c)), want, strict=True):
        assert_close("state", got, wanted.detach().numpy(), 1e-6)


def test_every_cell_of_the_registry_has_its_step() -> None:
    assert STEPS.keys() == set(layer_classes().values())
    for name, kind in step_classes().items():
        assert getattr(rk, name) is kind
        assert name == f"{kind.kind.__name__}Cell"
    for cell in REGISTRY.values():
        one = cell.step(F, H, seed=3, **cell.options)
        layer = cell.build(F, H, seed=3)
        for name, p in one.params.items():
            assert_same_bits(name, p, layer.params[f"{name}_l0"])


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_described_by_its_repr_and_copied(cell: str) -> None:
    kind, fixed = CLASSES[cell]
    one = STEPS[kind](F, H, seed=1, **fixed)
    assert eval(repr(one), {type(one).__name__: type(one)}).params == one.params
    x = np.ones((B, F), np.float32)
    want = as_tuple(one(x))
    copied: list[Callable[[Any], Any]] = [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
    for copies in copied:
        twin = copies(one)
        twin.params["weight_ih"] += 1.0
        assert_same_bits("h", as_tuple(one(x))[0], want[0])
        assert not np.array_equal(as_tuple(twin(x))[0], want[0])


def test_a_cell_of_a_layer_has_the_layers_arrays() -> None:
    layer = rk.GRU(F, H, 2, reset="after", bidirectional=True)
    one = rk.GRUCell.of(layer, 1, reverse=True)
    assert one.input_size == 2 * H
    assert one.reset == "after"
    for name, p in one.params.items():
        assert p is layer.params[f"{name}_l1_reverse"]
    optimizer = rk.SGD(one, 0.1)
    _, tape = one.forward(np.ones((B, 2 * H), np.float32))
    optimizer.step(tape.backward(np.ones((B, H), np.float32)))
    assert_same_bits("weight", one.params["weight_ih"], layer.params["weight_ih_l1_reverse"])


def test_a_state_of_none_is_zero() -> None:
    one = rk.LSTMCell(F, H, seed=1)
    x, zero = np.ones((B, F), np.float32), np.zeros((B, H), np.float32)
    want = one(x, (zero, zero))
    for state in (None, (None, None), (zero, None), [None, zero]):
        for got, wanted in zip(one(x, state), want, strict=True):  # type: ignore[arg-type]
            assert_same_bits("state", got, wanted)
    _, tape = one.forward(x)
    dx, _, _ = tape.backward((zero + 1, None))  # type: ignore[arg-type]
    assert_same_bits("dx", dx, tape.backward((zero + 1, zero))[0])
    assert not tape.backward()[0].any()


def test_the_callers_state_stays() -> None:
    one = rk.LSTMCell(F, H, seed=1)
    h, c = np.ones((2, B, H), np.float32)
    _, tape = one.forward(np.ones((B, F), np.float32), (h, c))
    dh, dc = np.ones((2, B, H), np.float32)
    tape.backward((dh, dc))
    for array in (h, c, dh, dc):
        assert (array == 1).all()


def test_an_empty_batch_is_one() -> None:
    one = rk.LSTMCell(F, H)
    (h, _), tape = one.forward(np.ones((0, F), np.float32))
    assert h.shape == (0, H)
    dx, _, grads = tape.backward()
    assert dx.shape == (0, F)
    assert not grads["weight_hh"].any()


def test_refusals() -> None:
    one, f = rk.LSTMCell(3, 4), np.float32
    x, h = np.zeros((2, 3), f), np.zeros((2, 4), f)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\) or \(3,\), got \(2, 4\)"):
        one(h)
    with pytest.raises(ValueError, match=r"x must have shape \(B,\) or \(\) for tokens, got"):
        one(np.zeros((2, 3), int))
    with pytest.raises(TypeError, match=r"x must be float32 .* got float64.*dtype='float64'"):
        one(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"tokens in 0\.\.2, got 3"):
        one(np.array([0, 3]))
    with pytest.raises(TypeError, match=r"state must be the pair \(h, c\) of this LSTMCell"):
        one(x, h)
    with pytest.raises(ValueError, match=r"state\['c'\] must have shape \(2, 4\), got \(3, 4\)"):
        one(x, (h, np.zeros((3, 4), f)))
    with pytest.raises(TypeError, match="state must be one array h of this RNNCell"):
        rk.RNNCell(3, 4)(x, (h, h))
    _, tape = one.forward(x)
    with pytest.raises(TypeError, match=r"dstate\['h'\] must be float32, got float64"):
        tape.backward((np.zeros((2, 4)), None))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="into must have the names weight_ih, weight_hh, bias"):
        tape.backward((h, None), into={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="into must be a dict of gradients by name, got <class 'l"):
        tape.backward((h, None), into=[])  # type: ignore[arg-type]
    grads = tape.backward((h, None))  # type: ignore[arg-type]
    grads.params["bias"].flags.writeable = False
    with pytest.raises(TypeError, match=r"into\['bias'\] must be a NumPy array that can be"):
        tape.backward((h, None), into=grads)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layer must be of the class LSTM, got GRU"):
        rk.LSTMCell.of(rk.GRU(3, 4))
    with pytest.raises(ValueError, match="k must be below num_layers = 1, got 1"):
        rk.LSTMCell.of(rk.LSTM(3, 4), 1)
    with pytest.raises(ValueError, match="reverse needs a layer with bidirectional=True"):
        rk.LSTMCell.of(rk.LSTM(3, 4), reverse=True)
    with pytest.raises(TypeError, match="has no argument 'num_layers'"):
        rk.GRUCell(3, 4, num_layers=2)  # type: ignore[call-arg]
