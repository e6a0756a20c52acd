# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: the pieces around the layers give what they give on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices
from rnnkern.cells import CELLS

from support.compare import assert_same_bits
from support.devices import agree, agree_by_name, move, put
from support.layers import WITH_PRODUCT, as_layer_state, as_tuple


def pair(cuda: devices.Cuda, layer: Any) -> Any:
    """The same on the device."""
    twin = type(layer)(**{**layer.config(), "device": "cuda"})
    move(cuda, layer, twin)
    return twin


@pytest.mark.parametrize("count", [0, 1, 2, 37, 1000])
def test_embedding(cuda: devices.Cuda, no_looks: None, count: int) -> None:
    rng = np.random.default_rng(0)
    words = rk.Embedding(9, 5, seed=1)
    twin = pair(cuda, words)
    x = rng.integers(0, 9, count)
    y, tape = words.forward(x)
    got, got_tape = twin.forward(cuda.put(x))
    dy = rng.standard_normal(y.shape).astype(np.float32)
    assert_same_bits("y", cuda.get(got), y)
    agree_by_name(cuda, got_tape.backward(cuda.put(dy)).params, tape.backward(dy).params, 1e-6)


def test_embedding_of_tokens_out_of_range(cuda: devices.Cuda) -> None:
    words = rk.Embedding(9, 5, seed=1)
    got = pair(cuda, words)(cuda.put(np.array([-3, 9])))
    assert_same_bits("y", cuda.get(got), words(np.array([0, 8])))


def test_dropout_draws_the_same_masks(cuda: devices.Cuda, no_looks: None) -> None:
    x = np.random.default_rng(0).standard_normal((6, 5, 7)).astype(np.float32)
    y, tape = rk.Dropout(0.3).forward(x, dropout_key=2**63 + 1)
    got, got_tape = rk.Dropout(0.3, device="cuda").forward(cuda.put(x), dropout_key=2**63 + 1)
    assert_same_bits("y", cuda.get(got), y)
    assert_same_bits("dx", cuda.get(got_tape.backward(cuda.put(x))[0]), tape.backward(x)[0])


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_layer_norm(cuda: devices.Cuda, no_looks: None, rows: int) -> None:
    rng = np.random.default_rng(0)
    norm = rk.LayerNorm(6)
    norm.params.update({n: rng.standard_normal(6).astype(np.float32) for n in norm.params})
    twin = pair(cuda, norm)
    x, dy = (rng.standard_normal((rows, 6)).astype(np.float32) for _ in range(2))
    y, tape = norm.forward(x)
    got, got_tape = twin.forward(cuda.put(x))
    agree(cuda, "y", got, y, 1e-5)
    (dx, grads), (got_dx, got_grads) = tape.backward(dy), got_tape.backward(cuda.put(dy))
    agree(cuda, "dx", got_dx, dx, 1e-5)
    agree_by_name(cuda, got_grads, grads)


@pytest.mark.parametrize(
    "name", [n for n, c in CELLS.items() if c.build(1, 1)._cell in WITH_PRODUCT]
)
def test_cells_of_one_step(cuda: devices.Cuda, no_looks: None, name: str) -> None:
    rng = np.random.default_rng(0)
    cell = CELLS[name].step(4, 6, seed=1, **CELLS[name].options)
    twin = pair(cuda, cell)
    x, h, dh = (rng.standard_normal((3, n)).astype(np.float32) for n in (4, 6, 6))
    state, dstate = as_layer_state((h, h)), as_layer_state((dh, dh))
    if not isinstance(cell(x), tuple):
        state, dstate = h, dh
    last, tape = cell.forward(x, state)
    got_last, got_tape = twin.forward(cuda.put(x), put(cuda, state))
    for got, want in zip(as_tuple(got_last), as_tuple(last), strict=True):
        agree(cuda, "state", got, want, 1e-5)
    (dx, before, grads), got = tape.backward(dstate), got_tape.backward(put(cuda, dstate))
    agree(cuda, "dx", got.x, dx, 1e-5)
    for made, want in zip(as_tuple(got.state), as_tuple(before), strict=True):
        agree(cuda, "dstate", made, want, 1e-5)
    agree_by_name(cuda, got.params, grads)


@pytest.mark.parametrize("lengths", [None, np.array([3, 0, 6, 1])])
def test_stack(cuda: devices.Cuda, no_looks: None, lengths: Any) -> None:
    layers = [rk.GRU(8, 4, bidirectional=True, seed=1), rk.LSTM(8, 8, seed=2)]
    stack = rk.Stack(layers, residual=[True, True], dropout=0.3)
    twins = [type(own)(**{**own.config(), "device": "cuda"}) for own in layers]
    twin = rk.Stack(twins, residual=[True, True], dropout=0.3)
    move(cuda, stack, twin)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((6, 4, 8)).astype(np.float32) for _ in range(2))
    y, state, tape = stack.forward(x, None, lengths, dropout_key=1)
    got, got_state, got_tape = twin.forward(cuda.put(x), None, lengths, dropout_key=1)
    agree(cuda, "y", got, y, 1e-5)
    last = stack.last_output(y, state, lengths)
    agree(cuda, "last", twin.last_output(got, got_state, lengths), last, 1e-5)
    dx, _, grads = tape.backward(dy, dlast=last)
    got_dx, _, got_grads = got_tape.backward(cuda.put(dy), dlast=cuda.put(last))
    agree(cuda, "dx", got_dx, dx, 1e-5)
    agree_by_name(cuda, got_grads, grads)


def test_stream_of_a_stack(cuda: devices.Cuda, no_looks: None) -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((2, 3, 4)).astype(np.float32), np.array([True, False, True])
    got = []
    for device in ("cpu", "cuda"):
        layers = [rk.GRU(4, 4, seed=1, device=device), rk.LSTM(4, 4, seed=2, device=device)]
        stream = rk.Stack(layers, residual=[True, True]).stream(3)
        own = cuda.put(x) if device == "cuda" else x
        steps = stream.step(own[0]), stream.step(own[1], mask=mask)
        marks = {"mask": np.stack([mask, ~mask]), "resets": np.stack([~mask, mask])}
        got.append((*steps, stream.block(own, **marks)))
    for on_device, on_host in zip(got[1], got[0], strict=True):
        agree(cuda, "y", on_device, on_host, 1e-5)


@pytest.mark.parametrize("embedding", [False, True])
def test_stream_of_a_model(cuda: devices.Cuda, no_looks: None, embedding: bool) -> None:
    rng = np.random.default_rng(0)
    x: Any = rng.standard_normal((2, 3, 4)).astype(np.float32)
    if embedding:
        x = rng.integers(0, 9, (2, 3))
    mask = np.array([[True, False, True], [False, True, True]])
    got = []
    for device in ("cpu", "cuda"):
        words = rk.Embedding(9, 4, seed=1, device=device) if embedding else None
        gru = rk.GRU(4, 5, seed=2, device=device)
        head = rk.Linear(5, 2, seed=3, device=device)
        stream = rk.Model(gru, head, embedding=words).stream(3)
        own = cuda.put(x) if device == "cuda" else x
        step = stream.step(own[0], mask=mask[0])
        got.append((step, stream.block(own, mask=mask, resets=~mask), stream.block(own)))
    for on_device, on_host in zip(got[1], got[0], strict=True):
        agree(cuda, "outputs", on_device, on_host, 1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", [rk.mse, rk.huber, rk.binary_cross_entropy])
def test_losses_of_numbers(cuda: devices.Cuda, no_looks: None, loss: Any, masked: bool) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = (rng.random((5, 4, 3)).astype(np.float32) for _ in range(2))
    mask = rng.random((5, 4)) < 0.5 if masked else None
    want, gradient = loss(outputs, targets, mask)
    got, got_gradient = loss(cuda.put(outputs), cuda.put(targets), put(cuda, mask))
    agree(cuda, "loss", got, np.array(want), 1e-6)
    agree(cuda, "gradient", got_gradient, gradient, 1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_weighted_softmax(cuda: devices.Cuda, no_looks: None, masked: bool) -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.random((5, 4, 3)).astype(np.float32), rng.integers(0, 3, (5, 4))
    mask = rng.random((5, 4)) < 0.5 if masked else None
    weights = np.array([0.5, 1.0, 2.0], np.float32)
    want, gradient = rk.softmax_cross_entropy(
        logits, targets, mask, class_weights=weights, label_smoothing=0.1
    )
    got, got_gradient = rk.softmax_cross_entropy(
        cuda.put(logits),
        cuda.put(targets),
        put(cuda, mask),
        class_weights=cuda.put(weights),
        label_smoothing=0.1,
    )
    agree(cuda, "loss", got, np.array(want), 1e-6)
    agree(cuda, "gradient", got_gradient, gradient, 1e-6)
