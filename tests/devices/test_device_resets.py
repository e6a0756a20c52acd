# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: rows that begin anew or skip steps are copied to be rows with lengths."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from rnnkern import devices

from support.devices import BATCH, HIDDEN, INPUTS, LENGTHS, STEPS, TOLERANCE, agree, put, twins
from support.layers import WITH_PRODUCT, as_layer_state, as_tuple, random_state

RANDOM = np.random.default_rng(0)
MARKS: dict[str, dict[str, Any]] = {
    "resets": {"resets": RANDOM.random((STEPS, BATCH)) < 0.3},
    "to the initial state": {
        "resets": RANDOM.random((STEPS, BATCH)) < 0.3,
        "reset_to": "initial",
    },
    "to a state": {"resets": RANDOM.random((STEPS, BATCH)) < 0.3, "reset_to": "state"},
    "mask": {"mask": RANDOM.random((STEPS, BATCH)) < 0.6, "masked_output": "last"},
    "all": {
        "resets": RANDOM.random((STEPS, BATCH)) < 0.3,
        "mask": RANDOM.random((STEPS, BATCH)) < 0.6,
        "lengths": LENGTHS,
        "reset_to": "initial",
    },
    "nothing is live": {"mask": np.zeros((STEPS, BATCH), bool)},
}


def check(cuda: devices.Cuda, cell: str, ways: dict[str, Any], given: dict[str, Any]) -> None:
    """Both passes of a layer of two on the device give what they give on the CPU."""
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, **ways, seed=1, dropout=0.3)
    random, tolerance = np.random.default_rng(0), TOLERANCE["float32"]
    x = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    states = (2 * layer.num_directions, BATCH, HIDDEN)
    first = tuple(s.astype(np.float32) for s in random_state(cell, states))
    dy = random.standard_normal((STEPS, BATCH, layer.output_size)).astype(np.float32)
    there = as_layer_state(tuple(put(cuda, s) for s in first))
    own = given
    if given.get("reset_to") == "state":
        given = {**given, "reset_to": as_layer_state(tuple(-s for s in first))}
        own = {**given, "reset_to": as_layer_state(tuple(put(cuda, -s) for s in first))}
    y, last, tape = layer.forward(x, as_layer_state(first), **given, dropout_key=1)
    own_y, own_last, own_tape = twin.forward(put(cuda, x), there, **own, dropout_key=1)
    agree(cuda, "y", own_y, y, tolerance)
    for mine, theirs in zip(as_tuple(own_last), as_tuple(last), strict=True):
        agree(cuda, "last", mine, theirs, tolerance)
    want = tape.backward(dy, as_layer_state(first))
    got = own_tape.backward(put(cuda, dy), there)
    agree(cuda, "dx", got.x, want.x, tolerance)
    for mine, theirs in zip(as_tuple(got.state), as_tuple(want.state), strict=True):
        agree(cuda, "first", mine, theirs, tolerance)
    if want.reset_to is not None:
        for mine, theirs in zip(as_tuple(got.reset_to), as_tuple(want.reset_to), strict=True):
            agree(cuda, "reset_to", mine, theirs, tolerance)
    for name, array in want.params.items():
        agree(cuda, name, got.params[name], array, tolerance)


@pytest.mark.parametrize("way", ["bidirectional", "reverse"])
@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_layers_agree_with_the_cpu(
    cuda: devices.Cuda, cell: str, marks: dict[str, Any], way: str
) -> None:
    check(cuda, cell, {way: True}, marks)


@pytest.mark.parametrize("way", ["bidirectional", "reverse"])
def test_pieces_agree_with_the_cpu(cuda: devices.Cuda, way: str) -> None:
    for name in ("resets", "mask", "nothing is live"):
        check(cuda, "lstm", {way: True}, {**MARKS[name], "recompute": 2})
        if way == "reverse":
            check(cuda, "lstm", {way: True}, {**MARKS[name], "tbptt": 2})


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"bidirectional": True}], ids=str)
def test_tokens_and_gates(cuda: devices.Cuda, options: dict[str, Any], cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, **options, seed=1)
    x = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))
    for marks in (given for given in MARKS.values() if given.get("reset_to") != "state"):
        y, _, tape = layer.forward(x, **marks)
        own_y, _, own_tape = twin.forward(put(cuda, x), **marks)
        agree(cuda, "y", own_y, y, TOLERANCE["float32"])
        for mine, theirs in zip(own_tape.gates(), tape.gates(), strict=True):
            for name, gate in theirs.items():
                agree(cuda, name, mine[name], gate, TOLERANCE["float32"])


def test_gates_of_pieces_without_a_live_step(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "gru_after", INPUTS, HIDDEN, 2, seed=1)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    mask = np.repeat(np.arange(STEPS)[:, None] >= 3, BATCH, axis=1)
    want = layer.forward(x, mask=mask, tbptt=2)[2].gates()
    got = twin.forward(put(cuda, x), mask=mask, tbptt=2)[2].gates()
    for mine, theirs in zip(got, want, strict=True):
        for name, gate in theirs.items():
            agree(cuda, name, mine[name], gate, TOLERANCE["float32"])


def test_pieces_share_the_weights(cuda: devices.Cuda) -> None:
    _, twin = twins(cuda, "gru_after", INPUTS, 64)
    x = put(cuda, np.ones((24, 1, INPUTS), np.float32))

    def kept(steps: int) -> int:
        """Bytes, of the emulated device's memory too, that a tape of so many pieces holds."""
        tracemalloc.start()
        tape = twin.forward(x[:steps], tbptt=1)[2]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert tape is not None
        return size

    kept(1)
    assert kept(24) < kept(1) + 3 * sum(p.nbytes for p in twin.params.values())
