# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"`` and what training drops beside dropout between layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import devices

from support.devices import (
    BATCH,
    HIDDEN,
    INPUTS,
    LENGTHS,
    STEPS,
    agree,
    agree_by_name,
    check_calls_agree,
    put,
    twins,
)
from support.draws import drops_of
from support.layers import WITH_PRODUCT, as_tuple


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_dropped_weights_are_those_of_the_cpu(cuda: devices.Cuda, cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, bidirectional=True, weight_drop=0.4)
    random = np.random.default_rng(0)
    x = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    dy = random.standard_normal((STEPS, BATCH, 2 * HIDDEN)).astype(np.float32)
    for options in ({}, {"recompute": 4}):
        y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=3, **options)
        own_y, _, own_tape = twin.forward(put(cuda, x), None, LENGTHS, dropout_key=3, **options)
        agree(cuda, "y", own_y, y, 1e-5)
        want, got = tape.backward(dy).params, own_tape.backward(put(cuda, dy)).params
        agree_by_name(cuda, got, want)
        for name, array in want.items():
            if name.startswith("weight_hh"):
                assert ((cuda.get(got[name]) == 0) == (array == 0)).all()


GIVEN: dict[str, dict[str, Any]] = {
    "whole": {},
    "lengths": {"lengths": LENGTHS},
    "recompute": {"lengths": LENGTHS, "recompute": 4},
    "resets": {
        "resets": np.random.default_rng(0).random((STEPS, BATCH)) < 0.3,
        "lengths": LENGTHS,
        "reset_to": "initial",
    },
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_draws_are_those_of_the_cpu(
    cuda: devices.Cuda, cell: str, given: dict[str, Any], dtype: str
) -> None:
    for bidirectional in (False, True):
        options = {**drops_of(cell)[-1], "dropout": 0.3, "bidirectional": bidirectional}
        layers = twins(cuda, cell, INPUTS, HIDDEN, 2, dtype=dtype, **options)
        check_calls_agree(cuda, *layers, dropout_key=3, **given)


@pytest.mark.parametrize("given", [{"tbptt": 2}, {"mask": GIVEN["resets"]["resets"]}], ids=str)
def test_draws_of_one_direction(cuda: devices.Cuda, given: dict[str, Any]) -> None:
    for cell in ("gru_before", "lstm"):
        layers = twins(cuda, cell, INPUTS, HIDDEN, 2, reverse=True, **drops_of(cell)[-1])
        check_calls_agree(cuda, *layers, dropout_key=3, **given)


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_inference_is_that_of_the_cpu(cuda: devices.Cuda, cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 3, **drops_of(cell)[-1])
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    y, last = layer(x, None, LENGTHS)
    for called in (twin, twin.freeze()):
        own_y, own_last = called(put(cuda, x), None, LENGTHS)
        agree(cuda, "y", own_y, y, 1e-5)
        for mine, theirs in zip(as_tuple(own_last), as_tuple(last), strict=True):
            agree(cuda, "last", mine, theirs, 1e-5)
    stream = twin.stream(BATCH)
    agree(cuda, "stream", stream.block(put(cuda, x)), layer(x)[0], 1e-5)


@pytest.mark.usefixtures("no_looks")
def test_drawing_waits_for_nothing(cuda: devices.Cuda) -> None:
    layer = twins(cuda, "lstm", INPUTS, HIDDEN, 2, **drops_of("lstm")[-1])[1]
    x = put(cuda, np.ones((STEPS, BATCH, INPUTS), np.float32))
    y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=1)
    tape.backward(y)


@pytest.mark.parametrize(
    "options",
    [
        {"peepholes": True},
        {"peepholes": True, "coupled": True, "reverse": True},
        {"activation": "softsign", "cell_clip": 0.5},
        {"bidirectional": True, "merge": "product"},
    ],
    ids=str,
)
def test_draws_beside_other_options(cuda: devices.Cuda, options: dict[str, Any]) -> None:
    layers = twins(cuda, "lstm", INPUTS, HIDDEN, 2, **options, **drops_of("lstm")[-1])
    check_calls_agree(cuda, *layers, lengths=LENGTHS, dropout_key=3)
