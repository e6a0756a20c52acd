# SPDX-License-Identifier: Apache-2.0
"""A frozen layer gives a layer's results, bit for bit, from the parameters of when it was made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_same_bits
from support.layers import CELLS, DTYPES, as_layer_state, as_tuple, cast, draw, make, random_state
from support.threads import using_threads

STEPS, BATCH, INPUTS, HIDDEN = 7, 3, 5, 17


def assert_same_results(layer: Any, frozen: rk.Frozen, *arguments: Any) -> None:
    y, state = layer(*arguments)
    frozen_y, frozen_state = frozen(*arguments)
    assert_same_bits("y", frozen_y, y)
    for got, want in zip(as_tuple(frozen_state), as_tuple(state), strict=True):
        assert_same_bits("state", got, want)


@pytest.mark.parametrize("lengths", [None, [2, 7, 0]], ids=["whole", "ragged"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_calls(cell: str, dtype: str, layers: int, directions: int, lengths: Any) -> None:
    layer = make(cell, INPUTS, HIDDEN, layers, dtype=dtype, bidirectional=directions == 2)
    state = cast(random_state(cell, (layers * directions, BATCH, HIDDEN)), dtype)
    x = draw(STEPS, BATCH, INPUTS, dtype=dtype)
    assert_same_results(layer, layer.freeze(), x, as_layer_state(state), lengths)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "steps"), [(1, 40), (40, 20)])
@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_that_a_call_would_pack_in_other_ways(
    cell: str, compute: str | None, batch: int, steps: int, threads: int
) -> None:
    """Few rows are packed as they are met, many before all steps, by all threads."""
    layer = make(cell, 70, 96, compute=compute)
    with using_threads(threads):
        assert_same_results(layer, layer.freeze(), draw(steps, batch, 70))


@pytest.mark.parametrize("cell", CELLS)
def test_tokens(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2)
    assert_same_results(layer, layer.freeze(), np.arange(STEPS * BATCH).reshape(STEPS, -1) % INPUTS)


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_a_snapshot(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, batch_first=True)
    # W_ih of tokens is read where it stands, not from what was packed.
    inputs = (
        draw(BATCH, STEPS, INPUTS),
        np.arange(BATCH * STEPS).reshape(BATCH, -1) % 5,
    )
    before = [layer(x)[0] for x in inputs]
    frozen = layer.freeze()
    for array in layer.params.values():
        array[...] = np.nan
    for x, y in zip(inputs, before, strict=True):
        assert_same_bits("y", frozen(x)[0], y)


def test_an_output_is_written_where_it_is_asked_for() -> None:
    layer = make("lstm", INPUTS, HIDDEN, batch_first=True)
    x, out = draw(BATCH, STEPS, INPUTS), np.empty((BATCH, STEPS, HIDDEN), np.float32)
    y, _ = layer.freeze()(x, out=out)
    assert y is out
    assert_same_bits("out", out, layer(x)[0])


def test_several_threads_may_call_one() -> None:
    frozen = make("gru_after", INPUTS, HIDDEN).freeze()
    inputs = np.random.default_rng(0).standard_normal((16, STEPS, BATCH, INPUTS), np.float32)
    with ThreadPoolExecutor(4) as pool:
        for got, x in zip(pool.map(frozen, inputs), inputs, strict=True):
            assert_same_bits("y", got[0], frozen(x)[0])


def test_errors_are_those_of_the_layer() -> None:
    layer = make("gru_after", INPUTS, HIDDEN)
    with pytest.raises(ValueError, match=r"x must have input_size = 5 features"):
        layer.freeze()(np.zeros((STEPS, BATCH, INPUTS + 1), np.float32))


def test_its_text_names_the_layer() -> None:
    layer = make("lstm", INPUTS, HIDDEN)
    assert repr(layer.freeze()) == f"Frozen({layer!r})"
