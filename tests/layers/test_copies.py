# SPDX-License-Identifier: Apache-2.0
"""Copies and pickles of what a layer gives."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.arguments import BATCH, FLOATS, HIDDEN, INPUTS, TOKENS, model
from support.compare import assert_same_bits
from support.layers import CELLS, make

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_frozen_layers(cell: str, how: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, batch_first=True)
    frozen = layer.freeze()
    x = FLOATS.swapaxes(0, 1)
    want = layer(x)[0]
    for array in layer.params.values():
        array[...] = np.nan
    assert_same_bits("y", COPIES[how](frozen)(x)[0], want)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_streams_share_nothing(cell: str, weights: str | None, how: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2)
    stream, again = layer.stream(BATCH, weights=weights), layer.stream(BATCH, weights=weights)
    for s in (stream, again):
        s.block(FLOATS[:2])
    twin = COPIES[how](stream)
    assert twin.batch == BATCH
    twin.reset()
    for x in FLOATS[2:4].copy():  # the twin moves nothing here
        assert_same_bits("y", stream.step(x), again.step(x))
    fresh = layer.stream(BATCH, weights=weights)
    assert_same_bits("y", twin.block(FLOATS), fresh.block(FLOATS))
    later = COPIES[how](stream)
    for x in FLOATS[4:].copy():
        y = stream.step(x)
        assert_same_bits("y", later.step(x), y)


@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_tapes(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, dropout=0.5)
    x = FLOATS.copy()
    y, _, tape = layer.forward(x, dropout_key=1)
    dy = np.ones_like(y)
    _, _, want = tape.backward(dy)
    shallow, deep = copy.copy(tape), copy.deepcopy(tape)
    for array in layer.params.values():
        array += 1.0
    for name, gradient in want.items():
        assert_same_bits(name, shallow.backward(dy)[2][name], gradient)
    x[...] = np.nan  # a deep copy has an x of its own
    for name, gradient in want.items():
        assert_same_bits(name, deep.backward(dy)[2][name], gradient)
    with pytest.raises(TypeError, match="Tape cannot be pickled, since its weights are packed"):
        pickle.dumps(tape)


def test_copies_of_other_tapes() -> None:
    linear, seq = rk.Linear(INPUTS, HIDDEN), model()
    y, tape = linear.forward(FLOATS)
    for how in COPIES.values():
        assert_same_bits(
            "weight", how(tape).backward(y)[1]["weight"], tape.backward(y)[1]["weight"]
        )
    logits, seq_tape = seq.forward(TOKENS, None, TOKENS)
    want = seq_tape.backward(logits).params
    for how in (copy.copy, copy.deepcopy):
        for name, gradient in how(seq_tape).backward(logits).params.items():
            assert_same_bits(name, gradient, want[name])
    with pytest.raises(TypeError, match="Tape cannot be pickled"):
        pickle.dumps(seq_tape)


def test_a_frozen_linear_can_be_copied() -> None:
    layer = rk.Linear(3, 2, seed=0)
    frozen = layer.freeze()
    x = np.ones((4, 3), np.float32)
    want = layer(x)
    layer.params["weight"][...] = 0.0
    for twin in (copy.copy(frozen), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        np.testing.assert_array_equal(twin(x), want)
