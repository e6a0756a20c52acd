# SPDX-License-Identifier: Apache-2.0
"""What a row gives is its own affair: neither other rows, nor cuts, nor threads change a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import CELLS

from support.compare import assert_same_bits
from support.layers import as_tuple

SIZES = [(3, 5, 1, 2, 7), (16, 32, 2, 9, 20), (40, 130, 1, 33, 12)]  # I, H, layers, B, T
KINDS = [("float32", None), ("float64", None), ("float32", "bfloat16")]


def case(
    cell: str, kind: tuple[str, str | None], sizes: tuple[int, ...], **options: Any
) -> tuple[Any, Any, Any]:
    """A layer, its x and a gradient of its y."""
    inputs, hidden, layers, batch, steps = sizes
    dtype, compute = kind
    layer = CELLS[cell].build(inputs, hidden, layers, dtype=dtype, compute=compute, seed=0)
    if options:
        layer = type(layer)(**{**layer.config(), **options})
    rng = np.random.default_rng(1)
    width = layer.num_directions * hidden
    shapes = (steps, batch, inputs), (steps, batch, width)
    x, dy = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return layer, x, dy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_row_does_not_depend_on_the_others(
    cell: str, kind: tuple[str, str | None], sizes: tuple[int, ...]
) -> None:
    layer, x, dy = case(cell, kind, sizes, bidirectional=True)
    steps, batch = x.shape[:2]
    lengths = np.random.default_rng(2).integers(1, steps + 1, batch)
    y, state, tape = layer.forward(x, None, lengths)
    dx = tape.backward(dy).x
    for row in {0, batch // 2, batch - 1}:
        length = int(lengths[row])
        own_x, own_dy = x[:length, row : row + 1].copy(), dy[:length, row : row + 1].copy()
        own_y, own_state, own_tape = layer.forward(own_x)
        assert_same_bits("y", own_y, y[:length, row : row + 1])
        for own, all_rows in zip(as_tuple(own_state), as_tuple(state), strict=True):
            assert_same_bits("state", own, all_rows[:, row : row + 1])
        assert_same_bits("dx", own_tape.backward(own_dy).x, dx[:length, row : row + 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_sequence_may_be_cut_anywhere(
    cell: str, kind: tuple[str, str | None], sizes: tuple[int, ...]
) -> None:
    layer, x, _ = case(cell, kind, sizes)
    y, state = layer(x)
    cut = len(x) // 3
    first, between = layer(x[:cut])
    second, last = layer(x[cut:], between)
    assert_same_bits("pieces", np.concatenate([first, second]), y)
    stream = layer.stream(x.shape[1])
    assert_same_bits("steps", np.stack([stream.step(x_t) for x_t in x]), y)
    stream.reset()
    blocks = [stream.block(x[:cut]), stream.block(x[cut:])]
    assert_same_bits("blocks", np.concatenate(blocks), y)
    for found in (last, stream.state):
        for got, want in zip(as_tuple(found), as_tuple(state), strict=True):
            assert_same_bits("state", got, want)
    assert_same_bits("training", layer.forward(x)[0], y)
    assert_same_bits("frozen", layer.freeze()(x)[0], y)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_bit(cell: str) -> None:
    layer, x, dy = case(cell, KINDS[0], (40, 130, 1, 33, 12))
    results = []
    for count in (1, 2, 5):
        with rk.threads(count):
            y, _, tape = layer.forward(x)
            gradients = tape.backward(dy)
        results.append([y, gradients.x, *gradients.params.values()])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits("with other threads", got, want)
