# SPDX-License-Identifier: Apache-2.0
"""No steps, no rows: nothing to compute, and results of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.arguments import BATCH, FLOATS, HIDDEN, INPUTS, STEPS, TOKENS, model
from support.compare import assert_same_bits
from support.layers import CELLS, as_layer_state, as_tuple, cast, make, random_state

EMPTY = [(0, BATCH), (STEPS, 0), (0, 0)]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", ["floats", "tokens"])
@pytest.mark.parametrize(("steps", "batch"), EMPTY)
@pytest.mark.parametrize("cell", CELLS)
def test_empty_layers(
    cell: str, steps: int, batch: int, kind: str, options: dict[str, Any]
) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, dropout=0.5, **options)
    features = HIDDEN * layer.num_directions
    sizes = (batch, steps) if layer.batch_first else (steps, batch)
    x = np.zeros(sizes, int) if kind == "tokens" else np.zeros((*sizes, INPUTS), np.float32)
    shape = (2 * layer.num_directions, batch, HIDDEN)
    state = as_layer_state(cast(random_state(cell, shape), "float32"))
    for lengths in (None, np.zeros(batch, int), [0] * batch):
        y, last = layer(x, state, lengths)
        frozen_y, _ = layer.freeze()(x, state, lengths)
        out = np.empty((*sizes, features), np.float32)
        assert layer(x, state, lengths, out=out)[0] is out
        trained_y, trained_last, tape = layer.forward(x, state, lengths, dropout_key=1)
        for got in (y, frozen_y, trained_y):
            assert (got.shape, got.dtype) == ((*sizes, features), np.float32)
        for got, again, want in zip(
            *(as_tuple(s) for s in (last, trained_last, state)), strict=True
        ):
            assert_same_bits("state", got, want)
            assert_same_bits("state", again, want)
            assert not np.shares_memory(got, want)
        dx, dstate, grads, traces = tape.backward(y, state, state_gradients=True)
        assert (dx is None) if kind == "tokens" else (dx.shape == x.shape)
        for got, want in zip(as_tuple(dstate), as_tuple(state), strict=True):
            assert_same_bits("dstate", got, want)
        assert {n: g.shape for n, g in grads.items()} == {
            n: p.shape for n, p in layer.params.items()
        }
        assert not any(g.any() for g in grads.values())
        assert all(g.shape == y.shape for of in tape.gates() for g in of.values())
        assert all(trace.h.shape == y.shape for trace in traces)


def test_an_empty_sequence_without_a_batch_axis() -> None:
    layer = make("gru_before", INPUTS, HIDDEN)
    h = np.ones((1, HIDDEN), np.float32)
    y, last, tape = layer.forward(np.zeros((0, INPUTS), np.float32), h)
    assert y.shape == (0, HIDDEN)
    assert_same_bits("state", last, h)
    assert tape.backward(y)[0].shape == (0, INPUTS)


@pytest.mark.parametrize("cell", CELLS)
def test_empty_streams(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2)
    stream = layer.stream(BATCH)
    stream.step(FLOATS[0].copy())
    before = as_tuple(stream.state)
    assert stream.block(FLOATS[:0]).shape == (0, BATCH, HIDDEN)
    assert stream.block(TOKENS[:0]).shape == (0, BATCH, HIDDEN)
    for got, want in zip(as_tuple(stream.state), before, strict=True):
        assert_same_bits("state", got, want)
    nobody = layer.stream(0)
    assert nobody.step(FLOATS[0, :0]).shape == (0, HIDDEN)
    assert nobody.step(TOKENS[0, :0]).shape == (0, HIDDEN)
    assert nobody.block(FLOATS[:, :0]).shape == (STEPS, 0, HIDDEN)
    nobody.reset()


@pytest.mark.parametrize(("steps", "batch"), EMPTY)
def test_empty_models(steps: int, batch: int) -> None:
    seq = model()
    tokens = np.zeros((steps, batch), int)
    for source, target in [(tokens, tokens), (np.zeros((2, batch), int), tokens)]:
        logits, tape = seq.forward(source, None, target)
        assert logits.shape == (steps, batch, 9)
        loss, dlogits = rk.softmax_cross_entropy(logits, target)
        assert loss == 0.0
        assert not any(g.any() for g in tape.backward(dlogits).params.values())


@pytest.mark.parametrize(("steps", "batch"), EMPTY)
def test_answers_to_no_source(steps: int, batch: int) -> None:
    seq, source = model(), np.zeros((steps, batch), int)
    tokens, lengths = seq.greedy(source, None, 4)
    assert tokens.shape[1:] == lengths.shape == (batch,)
    best, lengths, scores = seq.beam(source, None, 4, width=2)
    assert best.shape[1:] == lengths.shape == scores.shape == (batch,)
    for array in (tokens, best, lengths):
        assert array.dtype == np.int64
    assert scores.dtype == np.float64


@pytest.mark.parametrize("shape", [(0, INPUTS), (0, 3, INPUTS), (3, 0, INPUTS)])
def test_empty_maps_and_losses(shape: tuple[int, ...]) -> None:
    linear, x = rk.Linear(INPUTS, HIDDEN), np.zeros(shape, np.float32)
    y, tape = linear.forward(x)
    assert y.shape == (*shape[:-1], HIDDEN)
    dx, grads = tape.backward(y)
    assert dx.shape == shape
    assert {n: g.shape for n, g in grads.items()} == {n: p.shape for n, p in linear.params.items()}
    assert not any(g.any() for g in grads.values())
    loss, gradient = rk.softmax_cross_entropy(y, np.zeros(shape[:-1], int))
    assert loss == 0.0
    assert gradient.shape == y.shape
    assert gradient.dtype == np.float32
