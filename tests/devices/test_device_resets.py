# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: rows that begin anew or skip steps are copied to be rows with lengths."""

from __future__ import annotations

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
    "mask": {"mask": RANDOM.random((STEPS, BATCH)) < 0.6, "masked_output": "last"},
    "all": {
        "resets": RANDOM.random((STEPS, BATCH)) < 0.3,
        "mask": RANDOM.random((STEPS, BATCH)) < 0.6,
        "lengths": LENGTHS,
        "reset_to": "initial",
    },
    "nothing is live": {"mask": np.zeros((STEPS, BATCH), bool)},
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_layers_agree_with_the_cpu(cuda: devices.Cuda, cell: str, marks: dict[str, Any]) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, bidirectional=True, seed=1, dropout=0.3)
    random, tolerance = np.random.default_rng(0), TOLERANCE["float32"]
    x = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    first = tuple(s.astype(np.float32) for s in random_state(cell, (4, BATCH, HIDDEN)))
    dy = random.standard_normal((STEPS, BATCH, 2 * HIDDEN)).astype(np.float32)
    y, last, tape = layer.forward(x, as_layer_state(first), **marks, dropout_key=1)
    there = as_layer_state(tuple(put(cuda, s) for s in first))
    own_y, own_last, own_tape = twin.forward(put(cuda, x), there, **marks, dropout_key=1)
    agree(cuda, "y", own_y, y, tolerance)
    for mine, theirs in zip(as_tuple(own_last), as_tuple(last), strict=True):
        agree(cuda, "last", mine, theirs, tolerance)
    want = tape.backward(dy, as_layer_state(first))
    got = own_tape.backward(put(cuda, dy), there)
    agree(cuda, "dx", got.x, want.x, tolerance)
    for mine, theirs in zip(as_tuple(got.state), as_tuple(want.state), strict=True):
        agree(cuda, "first", mine, theirs, tolerance)
    for name, array in want.params.items():
        agree(cuda, name, got.params[name], array, tolerance)


def test_tokens_and_gates(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "lstm", INPUTS, HIDDEN, seed=1)
    x = RANDOM.integers(0, INPUTS, (STEPS, BATCH))
    for marks in MARKS.values():
        y, _, tape = layer.forward(x, **marks)
        own_y, _, own_tape = twin.forward(put(cuda, x), **marks)
        agree(cuda, "y", own_y, y, TOLERANCE["float32"])
        if marks is not MARKS["nothing is live"]:
            for name, gate in tape.gates()[0].items():
                agree(cuda, name, own_tape.gates()[0][name], gate, TOLERANCE["float32"])
