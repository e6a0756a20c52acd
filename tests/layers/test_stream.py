# SPDX-License-Identifier: Apache-2.0
"""A stream says step by step what a call says at once, and lives on a snapshot of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern.layers.base import stream_of_tokens

from support.compare import assert_close, assert_same_bits, rounded
from support.layers import CELLS, DTYPES, as_layer_state, as_tuple, cast, draw, make, random_state
from support.threads import using_threads

TOLERANCE = {"float32": 1e-6, "float64": 1e-14}
STEPS, BATCH, INPUTS, HIDDEN, LAYERS = 9, 3, 5, 17, 2


def assert_states_close(got: Any, want: Any, tolerance: float) -> None:
    for g, w in zip(as_tuple(got), as_tuple(want), strict=True):
        assert_close("state", g, w, tolerance)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("layers", [1, LAYERS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_whole_call(cell: str, dtype: str, layers: int, batch: int) -> None:
    layer = make(cell, INPUTS, HIDDEN, layers, dtype=dtype)
    x = draw(STEPS, batch, INPUTS, dtype=dtype)
    want, want_last = layer(x)
    stream = layer.stream(batch=batch)
    for state in as_tuple(stream.state):
        assert state.shape == (layers, batch, HIDDEN)
        assert state.dtype == dtype
        assert not np.any(state)
    for t in range(STEPS):
        y = stream.step(x[t])
        assert y.dtype == dtype
        assert_close(f"step {t}", y, want[t], TOLERANCE[dtype])
    assert_states_close(stream.state, want_last, TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
def test_blocks_and_steps_mix(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(STEPS, BATCH, INPUTS)
    want, want_last = layer(x)
    stream = layer.stream(batch=BATCH)
    parts = [stream.block(x[:4]), stream.step(x[4])[None], stream.block(x[5:])]
    assert_close("y", np.concatenate(parts), want, TOLERANCE["float32"])
    assert_states_close(stream.state, want_last, TOLERANCE["float32"])


def test_batch_first_is_for_layers_alone() -> None:
    """A stream's blocks are (T, B, I) whatever the layer's order."""
    layer = make("lstm", INPUTS, HIDDEN, batch_first=True)
    x = draw(STEPS, BATCH, INPUTS)
    want, _ = layer(x.swapaxes(0, 1))
    assert_close("y", layer.stream(batch=BATCH).block(x), want.swapaxes(0, 1), 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_tokens(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))
    want, _ = layer(x)
    stream = layer.stream(batch=BATCH)
    y = np.stack([stream.step(x_t) for x_t in x])
    assert_close("y", y, want, TOLERANCE["float32"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("hidden", [7, 17, 64])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_by_token_gives_the_same_bits(
    cell: str, hidden: int, compute: str | None, threads: int
) -> None:
    """What decodes packs a token's weights when it comes; nothing else of it is different."""
    layer = make(cell, 50, hidden, LAYERS, compute=compute)
    x = np.random.default_rng(0).integers(0, 50, (STEPS, 128))
    with using_threads(threads):
        want, got = layer.stream(batch=128), stream_of_tokens(layer, 128)
        for x_t in x:
            assert_same_bits("y", got.step(x_t), want.step(x_t))
        assert_same_bits("block", got.block(x), want.block(x))


def test_a_stream_by_token_takes_tokens_alone() -> None:
    layer = make("lstm", INPUTS, HIDDEN)
    stepper = stream_of_tokens(layer, BATCH)._stepper
    assert stepper is not None
    assert stepper.step(draw(BATCH, INPUTS), None) is None
    for token in (-1, INPUTS):
        assert stepper.step(np.full(BATCH, token), None) is None


@pytest.mark.parametrize("cell", CELLS)
def test_rows_are_taken(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(STEPS, BATCH, INPUTS)
    stream, want = layer.stream(BATCH), layer.stream(BATCH)
    stream.block(x)
    want.block(x[:, [2, 0, 2]])
    stream.take(np.array([2, 0, 2]))
    for got, of_its_own in zip(as_tuple(stream.state), as_tuple(want.state), strict=True):
        assert_close("state", got, of_its_own, 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_state_is_read_and_set(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(STEPS, BATCH, INPUTS)
    state = cast(random_state(cell, (LAYERS, BATCH, HIDDEN)), "float32")
    want, want_last = layer(x, as_layer_state(state))
    stream = layer.stream(batch=BATCH)
    stream.step(x[0])
    stream.state = as_layer_state(state)
    for got, given in zip(as_tuple(stream.state), state, strict=True):
        assert_same_bits("state", got, given)
    middle = None
    for t in range(STEPS):
        if t == 5:
            middle = tuple(s.copy() for s in as_tuple(stream.state))
        assert_close(f"step {t}", stream.step(x[t]), want[t], TOLERANCE["float32"])
    assert_states_close(stream.state, want_last, TOLERANCE["float32"])

    # What was read earlier resumes from there, in another stream of the same layer.
    other = layer.stream(batch=BATCH)
    other.state = as_layer_state(middle)
    for t in range(5, STEPS):
        assert_close(f"step {t}", other.step(x[t]), want[t], TOLERANCE["float32"])


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_set_is_copied(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN)
    stream = layer.stream()
    state = cast(random_state(cell, (1, 1, HIDDEN)), "float32")
    before = tuple(s.copy() for s in state)
    stream.state = as_layer_state(state)
    stream.step(draw(1, INPUTS))
    for got, want in zip(state, before, strict=True):
        assert_same_bits("the caller's array", got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_reset_touches_only_the_masked_rows(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(STEPS, BATCH, INPUTS)
    stream = layer.stream(batch=BATCH)
    stream.block(x)
    before = tuple(s.copy() for s in as_tuple(stream.state))
    stream.reset(np.array([False, True, False]))
    for got, old in zip(as_tuple(stream.state), before, strict=True):
        assert not np.any(got[:, 1])
        assert_same_bits("the others", got[:, [0, 2]], old[:, [0, 2]])
    # The row begins anew, as a call would.
    want, _ = layer(x[:1])
    assert_close("y", stream.step(x[0])[1], want[0, 1], TOLERANCE["float32"])

    stream.reset()
    assert not any(np.any(s) for s in as_tuple(stream.state))


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_a_snapshot(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(STEPS, BATCH, INPUTS)
    want, _ = layer(x)
    stream = layer.stream(batch=BATCH)
    for p in layer.params.values():
        p[...] = 0.0
    assert not np.allclose(layer(x)[0], want)
    assert_close("y", stream.block(x), want, TOLERANCE["float32"])
    stream.reset()
    assert_close("y", stream.step(x[0]), want[0], TOLERANCE["float32"])


@pytest.mark.parametrize("cell", CELLS)
def test_out_is_filled_and_returned(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(BATCH, INPUTS)
    want = layer.stream(batch=BATCH).step(x)
    out = np.full((BATCH, HIDDEN), np.nan, np.float32)
    assert layer.stream(batch=BATCH).step(x, out=out) is out
    assert_same_bits("out", out, want)


def test_results_are_not_overwritten_by_the_next_step() -> None:
    layer = make("gru_before", INPUTS, HIDDEN)
    stream = layer.stream()
    x = draw(STEPS, 1, INPUTS)
    first = stream.step(x[0])
    kept = first.copy()
    state = as_tuple(stream.state)[0]
    kept_state = state.copy()
    stream.step(x[1])
    assert_same_bits("y", first, kept)
    assert_same_bits("state", state, kept_state)


def test_streams_of_one_layer_are_apart() -> None:
    layer = make("lstm", INPUTS, HIDDEN)
    x, other_x = draw(STEPS, 1, INPUTS), draw(STEPS, 1, INPUTS, seed=1)
    want, _ = layer(x)
    stream, other = layer.stream(), layer.stream()
    for t in range(STEPS):
        other.step(other_x[t])
        assert_close(f"step {t}", stream.step(x[t]), want[t], TOLERANCE["float32"])


def test_a_stream_drops_nothing() -> None:
    layer = make("lstm", INPUTS, HIDDEN, LAYERS, dropout=0.5)
    x = draw(STEPS, BATCH, INPUTS)
    want, _ = layer(x)
    assert_close("y", layer.stream(batch=BATCH).block(x), want, TOLERANCE["float32"])


@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional_is_refused(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional"):
        layer.stream()


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("hidden", [1, 8, 16, 33, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_has_the_bits_of_the_whole_call(
    cell: str, dtype: str, hidden: int, batch: int
) -> None:
    layer = make(cell, INPUTS, hidden, LAYERS, dtype=dtype)
    x = draw(3, batch, INPUTS, dtype=dtype)
    want, want_last = layer(x)
    stream = layer.stream(batch)
    for x_t, want_t in zip(x, want, strict=True):
        assert_same_bits("y", stream.step(x_t), want_t)
    for got, last in zip(as_tuple(stream.state), as_tuple(want_last), strict=True):
        assert_same_bits("state", got, last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_has_the_bits_of_the_whole_call_over_many_inputs(dtype: str) -> None:
    """More than a product's chains are long, and more than it takes at once."""
    layer = make("gru_after", 1300, 300, 2, dtype=dtype)
    x = draw(3, 2, 1300, dtype=dtype)
    want, _ = layer(x)
    stream = layer.stream(2)
    for x_t, want_t in zip(x, want, strict=True):
        assert_same_bits("y", stream.step(x_t), want_t)


def test_threads_share_a_large_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make("lstm", 64, 512)
    x = draw(8, 64)
    alone = layer.stream(8).step(x)
    monkeypatch.setattr("rnnkern.layers.stream._SHARED_STEP_FLOPS", 0)
    monkeypatch.setattr("rnnkern.devices.Cpu.plan", lambda *_, **__: {"threads": 2})
    shared = layer.stream(8)
    assert shared._stepper is None
    assert_same_bits("y", shared.step(x), alone)


def test_any_array_can_be_a_step() -> None:
    """What the kernel cannot take as it stands is converted, to the same answer."""
    layer = make("gru_before", INPUTS, HIDDEN)
    x = draw(BATCH, INPUTS)
    want = layer.stream(BATCH).step(x)
    wide = np.zeros((BATCH, 2 * INPUTS), np.float32)
    wide[:, ::2] = x
    for given in (np.asfortranarray(x), wide[:, ::2], x[::-1].copy()[::-1]):
        assert not given.flags.c_contiguous
        assert_same_bits("y", layer.stream(BATCH).step(given), want)
    into = np.zeros((BATCH, 2 * HIDDEN), np.float32)
    got = layer.stream(BATCH).step(x, out=into[:, :HIDDEN])
    assert_same_bits("out", into[:, :HIDDEN], want)
    assert got.base is into
    tokens = np.array([0, 4, 2])
    assert_same_bits(
        "tokens",
        layer.stream(BATCH).step(tokens.astype(np.int32)),
        layer.stream(BATCH).step(tokens),
    )


def test_a_step_may_be_written_over_its_input() -> None:
    layer = make("lstm", HIDDEN, HIDDEN)
    x = draw(BATCH, HIDDEN)
    want = layer.stream(BATCH).step(x)
    assert_same_bits("y", layer.stream(BATCH).step(x, out=x), want)


@pytest.mark.parametrize("token", [-1, INPUTS])
def test_a_step_refuses_a_token_out_of_range(token: int) -> None:
    with pytest.raises(ValueError, match=f"lie in|must hold|0..{INPUTS - 1}"):
        make("rnn_tanh", INPUTS, HIDDEN).stream().step(np.array([token]))


def test_a_step_refuses_a_read_only_out() -> None:
    out = np.zeros((1, HIDDEN), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        make("rnn_tanh", INPUTS, HIDDEN).stream().step(draw(1, INPUTS), out=out)
    assert not np.any(out)


def test_bfloat16_weights_half_way_between_two_are_rounded_to_the_even_one() -> None:
    layer = make("rnn_relu", 16, 16)
    places = np.arange(16, dtype=np.float32)
    for name, array in layer.params.items():
        half_way = np.diag(1 + (places + np.float32(0.5)) * np.float32(2.0**-7))
        array[...] = half_way if name == "weight_ih_l0" else 0.0
    y = layer.stream(weights="bfloat16").step(np.ones((1, 16), np.float32))
    np.testing.assert_array_equal(y[0], 1 + (places + places % 2) * np.float32(2.0**-7))


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("hidden", [1, 16, 33])
@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_weights_are_rounded_weights(cell: str, hidden: int, batch: int) -> None:
    layer = make(cell, INPUTS, hidden, LAYERS)
    before = {name: array.copy() for name, array in layer.params.items()}
    stream, blocks = (layer.stream(batch, weights="bfloat16") for _ in range(2))
    for name, array in layer.params.items():
        assert_same_bits(name, array, before[name])
        if name.startswith(("weight_ih", "weight_hh")):
            array[...] = rounded(array)
            assert np.any(array != before[name])
    for x in (draw(4, batch, INPUTS), np.arange(4 * batch).reshape(4, batch) % INPUTS):
        want, want_last = layer(x)
        stream.reset()
        blocks.reset()
        assert_same_bits("y", np.stack([stream.step(x_t) for x_t in x]), want)
        assert_same_bits("block", blocks.block(x), want)
        for got, last in zip(as_tuple(stream.state), as_tuple(want_last), strict=True):
            assert_same_bits("state", got, last)


def test_bfloat16_weights_stay_near_the_exact_ones() -> None:
    layer = make("lstm", 64, 64)
    x = draw(200, 1, 64)
    stream = layer.stream(weights="bfloat16")
    y = np.stack([stream.step(x_t) for x_t in x])
    error = np.linalg.norm(y - layer(x)[0]) / np.linalg.norm(y)
    assert 0 < error < 2e-2


def test_bfloat16_weights_keep_what_is_not_finite() -> None:
    layer = make("rnn_relu", 1, 3)
    layer.params["weight_ih_l0"][:, 0] = [np.inf, np.nan, np.finfo(np.float32).max]
    y = layer.stream(weights="bfloat16").step(np.ones((1, 1), np.float32))
    assert np.isposinf(y[0, 0])
    assert np.isnan(y[0, 1])
    assert np.isposinf(y[0, 2])  # rounds beyond the largest number


def test_bfloat16_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a layer of dtype float32, got float64"):
        make("lstm", 2, 2, dtype="float64").stream(weights="bfloat16")
    with pytest.raises(ValueError, match="weights must be one of 'bfloat16', 'int8', got 'int4'"):
        make("lstm", 2, 2).stream(weights="int4")
