# SPDX-License-Identifier: Apache-2.0
"""What is written to where the caller says, beside and over what is read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rnnkern.devices.memory import Region

from support.compare import assert_same_bits
from support.kernel_arguments import BATCH, STEPS, UNITS
from support.layers import CELLS, as_layer_state, as_tuple, draw, make
from support.reference import Array


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_out_over_what_is_read(cell: str, keep: bool) -> None:
    layer = make(cell, UNITS, UNITS)
    run = layer.forward if keep else layer
    x = draw(STEPS, BATCH, UNITS)
    h = draw(1, BATCH, UNITS)
    state = as_layer_state((h, h.copy())[: len(as_tuple(layer(x)[1]))])
    one = draw(1, BATCH, UNITS)
    with pytest.raises(ValueError, match="out must not share memory with state"):
        run(one, state, out=h)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        run(x, state, out=x)
    if isinstance(state, tuple):
        with pytest.raises(ValueError, match="out must not share memory with state"):
            run(one, state, out=state[1])
    for name, p in layer.params.items():
        if p.size >= UNITS:
            out = p.reshape(-1)[:UNITS].reshape(1, 1, UNITS)
            with pytest.raises(ValueError, match=rf"out must not share memory with .*{name}"):
                run(draw(1, 1, UNITS), out=out)
    tokens = np.zeros((2 * UNITS, 1), np.int64)
    out = tokens.reshape(-1).view(np.float32)[: 2 * UNITS * UNITS].reshape(-1, 1, UNITS)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        run(tokens[: len(out)], out=out)


def test_out_over_itself() -> None:
    layer = make("gru_after", 3, UNITS)
    x = draw(STEPS, BATCH, 3)
    room = np.zeros(1000, np.float32)
    for strides in ((0, 16, 4), (48, 0, 4), (16, 16, 4), (48, 12, 4), (40, 16, 4), (4, 48, 4)):
        out = np.lib.stride_tricks.as_strided(room, (STEPS, BATCH, UNITS), strides)
        with pytest.raises(ValueError, match="out must not have two elements in the same memory"):
            layer(x, out=out)
        with pytest.raises(ValueError, match="out must not have two elements in the same memory"):
            layer.stream(BATCH).block(x, out=out)
    with pytest.raises(ValueError, match="out must not have two elements in the same memory"):
        layer.stream(BATCH).step(x[0], out=np.lib.stride_tricks.as_strided(room, (3, 4), (0, 4)))


@pytest.mark.parametrize("keep", [False, True])
def test_views_side_by_side_are_taken(keep: bool) -> None:
    layer = make("lstm", UNITS, UNITS)
    run = layer.forward if keep else layer
    x = draw(STEPS, BATCH, UNITS)
    state = (draw(1, BATCH, UNITS), draw(1, BATCH, UNITS))
    want = layer(x, state)[0]
    whole = np.zeros((2 * STEPS, 2 * BATCH, 2 * UNITS), np.float32)
    for mine, other in (
        (np.s_[::2, :BATCH, :UNITS], np.s_[1::2, :BATCH, :UNITS]),
        (np.s_[:STEPS, ::2, :UNITS], np.s_[:STEPS, 1::2, :UNITS]),
        (np.s_[:STEPS, :BATCH, :UNITS], np.s_[:STEPS, :BATCH, UNITS:]),
        (np.s_[STEPS - 1 :: -1, :BATCH, :UNITS], np.s_[:STEPS, :BATCH, UNITS:]),
    ):
        whole[other] = x
        out = whole[mine]
        assert run(whole[other], state, out=out)[0] is out
        assert_same_bits("y", np.ascontiguousarray(out), want)
        assert_same_bits("x", np.ascontiguousarray(whole[other]), x)
        stream = layer.stream(BATCH)
        stream.state = state
        stream.block(whole[other], out=out)
        assert_same_bits("y of the stream", np.ascontiguousarray(out), want)


def test_whether_memory_overlaps_is_exact() -> None:
    """Against NumPy's own exact answer, on views of one small piece of memory."""
    random = np.random.default_rng(0)
    memory = np.zeros(60, np.int16)

    def region(a: Array) -> Region:
        return Region(a.ctypes.data, a.shape, a.strides, a.itemsize)

    def view() -> Array:
        shape = tuple(int(n) for n in random.integers(0, 4, random.integers(0, 4)))
        strides = [int(s) for s in random.integers(-5, 6, len(shape))]
        span = [(n - 1) * s if n else 0 for n, s in zip(shape, strides, strict=True)]
        low, high = -sum(s for s in span if s < 0), 59 - sum(s for s in span if s > 0)
        begin = int(random.integers(low, high + 1))
        return np.lib.stride_tricks.as_strided(memory[begin:], shape, [2 * s for s in strides])

    seen = set()
    for _ in range(5000):
        a, b = view(), view()
        want = np.shares_memory(a, b)
        assert region(a).overlaps(region(b)) == want, (a.shape, a.strides, b.shape, b.strides)
        places = {
            sum(i * s for i, s in zip(index, a.strides, strict=True))
            for index in itertools.product(*map(range, a.shape))
        }
        own = len(places) == a.size
        assert region(a).has_own_elements() == own, (a.shape, a.strides)
        seen.add((want, own))
    assert len(seen) == 4
