# SPDX-License-Identifier: Apache-2.0
"""The forms in which models are asked: lists, rows first, one sequence; and what they write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.layers import as_tuple, make

VOCABULARY, FEATURES, HIDDEN, OUTPUTS = 6, 4, 5, 3
READOUTS = ["all", "last", "mean", "max"]


def build(readout: str, *, tokens: bool = True, both: bool = True, **options: Any) -> rk.Model:
    dtype = options.get("dtype", "float32")
    bottom = make("gru_before", FEATURES, HIDDEN, bidirectional=both, **options)
    top = make("lstm", (1 + both) * HIDDEN, HIDDEN, **options)
    return rk.Model(
        rk.Stack([bottom, top], residual=[False, False]),
        rk.Linear(HIDDEN, OUTPUTS, dtype=dtype, seed=1),
        embedding=rk.Embedding(VOCABULARY, FEATURES, dtype=dtype, seed=2) if tokens else None,
        readout=readout,
    )


def sequences(count: int, *, tokens: bool, least: int = 0) -> list[Any]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(least, 9, count)
    if tokens:
        return [rng.integers(0, VOCABULARY, n) for n in lengths]
    return [rng.standard_normal((n, FEATURES)).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_a_list_is_answered_row_by_row_in_its_order(
    readout: str, tokens: bool, batch_first: bool
) -> None:
    """Of more rows than one batch has; each row's answer is the one that it has alone."""
    model = build(readout, tokens=tokens, batch_first=batch_first)
    rows = sequences(600, tokens=tokens)
    found = model.predict(rows)
    assert len(found) == len(rows)
    assert isinstance(found, list if readout == "all" else np.ndarray)
    for row, answer in list(zip(rows, found, strict=True))[::37]:
        alone = model.predict(row[None] if batch_first else row[:, None])
        want = alone.reshape(-1, OUTPUTS) if readout == "all" else alone[0]
        assert_same_bits("a row", answer, want)


def test_batches_are_answered_in_the_order_of_their_sequences() -> None:
    rows = sequences(50, tokens=True)
    for readout in ("all", "last"):
        model = build(readout)
        data = rk.batches(rows, batch_size=8, shuffle=True, seed=0, bucket=2)
        for got, want in zip(model.predict(data), model.predict(rows), strict=True):
            assert_same_bits("a row", got, want)
        x, lengths = rk.pad(rows, batch_first=True)
        data = rk.batches(x, lengths=lengths, shuffle=True)
        for got, want in zip(model.predict(data), model.predict(rows), strict=True):
            assert_same_bits("a row of an array", got, want)


def test_lists_of_lists_are_sequences_and_floats_become_the_models() -> None:
    model = build("last", tokens=False)
    rows = sequences(5, tokens=False, least=1)
    want = model.predict(rows)
    assert_same_bits("wide", model.predict([row.astype(np.float64) for row in rows]), want)
    assert_same_bits("lists", model.predict([row.tolist() for row in rows]), want)
    assert_same_bits("one", model.predict(rows[:1]), want[:1])


@pytest.mark.parametrize("readout", READOUTS)
def test_rows_may_come_first(readout: str) -> None:
    lengths = np.array([3, 0, 5])
    x = np.random.default_rng(0).integers(0, VOCABULARY, (5, 3))
    for model in (build(readout), build(readout, batch_first=True)):
        first = model.predict(x.T, lengths, batch_first=True)
        want = model.predict(x, lengths, batch_first=False)
        assert_same_bits(
            "rows first", first, want.swapaxes(0, 1).copy() if readout == "all" else want
        )
        own = first if model.batch_first else want
        given = x.T if model.batch_first else x
        assert_same_bits("as the layers", model.predict(given, lengths), own)
        alone = model.predict(x[:, 0], batch_first=not model.batch_first)
        assert_same_bits("one sequence", alone, model.predict(x[:, 0]))
    with pytest.raises(TypeError, match="batch_first must be True or False, got 1"):
        model.predict(x, batch_first=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [None, 3, 0])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_one_sequence_is_a_batch_of_one_without_its_axis(
    readout: str, tokens: bool, length: int | None, batch_first: bool
) -> None:
    model = build(readout, tokens=tokens, dtype="float64", batch_first=batch_first)
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, VOCABULARY, 6) if tokens else rng.standard_normal((6, FEATURES))
    targets = np.asarray(rng.integers(0, OUTPUTS, 6 if readout == "all" else ()))
    lengths = None if length is None else [length]
    axis = 0 if batch_first else 1
    row = np.expand_dims(x, axis)
    of_row = targets[None] if readout != "all" else np.expand_dims(targets, axis)

    outputs, state, tape = model.forward(x, None, lengths)
    want, of_batch, other = model.forward(row, None, lengths)
    assert_same_bits("outputs", outputs[None], want.reshape(1, *outputs.shape))
    for own, theirs in zip(state, of_batch, strict=True):
        for a, b in zip(as_tuple(own), as_tuple(theirs), strict=True):
            assert_same_bits("state", a, b[:, 0].copy())
    got, wanted = tape.backward(np.ones_like(outputs)), other.backward(np.ones_like(want))
    for name, gradient in got.params.items():
        assert_close(name, gradient, wanted.params[name], 1e-13)
    if not tokens:
        assert got.x is not None
        assert wanted.x is not None
        assert_close("x", got.x, wanted.x.reshape(x.shape), 1e-13)

    assert model.places(x, targets, lengths) == model.places(row, of_row, lengths)
    loss, grads = model.loss_and_grads(x, targets, lengths)
    value, others = model.loss_and_grads(row, of_row, lengths)
    assert loss == pytest.approx(value, abs=1e-12)
    assert_close("head", grads.params["head.weight"], others.params["head.weight"], 1e-12)
    mask = np.random.default_rng(1).random(targets.shape) < 0.6
    assert model.evaluate(x, targets, lengths, mask=mask) == pytest.approx(
        model.evaluate(row, of_row, lengths, mask=mask.reshape(of_row.shape)), abs=1e-12
    )
    assert model.places(x, targets, mask=mask) == mask.sum()
    assert model.places(x, targets, mask=mask.tolist()) == mask.sum()
    with pytest.raises(ValueError, match="x must have an axis of rows to be shared out"):
        model.part(x, targets, lengths, None, lambda count: slice(count))


def test_places_of_one_sequence_of_numbers() -> None:
    model = rk.Model(rk.GRU(2, 3), rk.Linear(3, 4), readout="last", loss="mse")
    assert model.places(np.zeros((5, 2), np.float32), np.zeros(4, np.float32)) == 1
    assert model.places(np.zeros((5, 3, 2), np.float32), np.zeros((3, 4), np.float32)) == 3


def test_what_cannot_be_asked_is_named() -> None:
    model = build("last")
    calls: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: model.predict([]), "x must hold at least one sequence, got none"),
        (
            lambda: model.predict([[1, 2], [3]], [2, 1]),
            "lengths needs x as one array, got a list of",
        ),
        (
            lambda: model.predict(np.zeros((2, 2, 2, 2), np.float32)),
            r"x must have shape \(T, B\) of",
        ),
        (lambda: model.predict([[1], [9]]), r"tokens in 0\.\.5, got 9"),
        (
            lambda: model.predict([[0.5, 1.0], [2.0]]),
            r"x must hold sequences .*x\[..., None\] makes",
        ),
    )
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    for text in ("abc", ["abc", "de"], np.array("abc"), b"abc"):
        with pytest.raises(TypeError, match=r"must be an array of numbers, got the text .*abc"):
            model.predict(text)


def test_outputs_go_where_a_stream_is_told() -> None:
    model = build("all", both=False)
    x = np.random.default_rng(0).integers(0, VOCABULARY, (4, 3))
    stream, other = model.stream(3), model.stream(3)
    room = np.full((2, 3, OUTPUTS + 1), np.nan, np.float32)
    for out, x_t in ((room[0, :, 1:], x[0]), (np.empty((3, OUTPUTS), np.float32), x[1])):
        assert stream.step(x_t, out) is out
        assert_same_bits("step", out.copy(), other.step(x_t))
    mask = np.array([True, False, True])
    assert stream.step(x[2], out, mask=mask) is out
    assert_same_bits("masked", out, other.step(x[2], mask=mask))
    block = np.empty((1, 3, OUTPUTS), np.float32)
    assert stream.block(x[3:], out=block) is block
    assert_same_bits("block", block, other.block(x[3:]))
    before = stream.state
    cases: tuple[tuple[Any, type[Exception], str], ...] = (
        (np.empty((2, OUTPUTS), np.float32), ValueError, "out must have shape"),
        (np.empty((3, OUTPUTS)), TypeError, "out must be float32, got float64"),
        ([[0.0] * OUTPUTS] * 3, TypeError, "out must be a NumPy array, got"),
    )
    for bad, error, message in cases:
        for held in (None, mask):
            with pytest.raises(error, match=message):
                stream.step(x[0], bad, mask=held)
        with pytest.raises(error, match=message):
            stream.block(x[:1], bad)
    for own, kept in zip(stream.state, before, strict=True):
        for a, b in zip(as_tuple(own), as_tuple(kept), strict=True):
            assert_same_bits("a refused step leaves the state", a, b)


# -- what a language model writes --------------------------------------------------------------


def writer(readout: str = "all", *, embedding: bool = False, **options: Any) -> rk.Model:
    layer = make("lstm", FEATURES if embedding else VOCABULARY, HIDDEN, 2, **options)
    for p in layer.params.values():
        p *= 3.0  # so that what is likely hangs on what was read
    head = rk.Linear(HIDDEN, VOCABULARY, seed=4)
    head.params["weight"] *= 5.0
    words = rk.Embedding(VOCABULARY, FEATURES, seed=2) if embedding else None
    return rk.Model(layer, head, embedding=words, readout=readout)


def by_hand(model: rk.Model, prompt: Any, length: int, draw: Any) -> list[int]:
    """All that was read is read anew for every token."""
    read = [int(token) for token in prompt]
    for _ in range(length):
        outputs = model.predict(np.array(read))
        read.append(int(draw(outputs[-1] if model.readout == "all" else outputs)))
    return read[len(prompt) :]


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("readout", ["all", "last"])
def test_what_is_written_is_read_in_turn(readout: str, embedding: bool) -> None:
    model, prompt = writer(readout, embedding=embedding), np.array([1, 4, 2])
    likeliest = by_hand(model, prompt, 12, np.argmax)
    got = model.generate(prompt, 12, top_k=1)
    assert (got.dtype, got.tolist()) == (np.int64, likeliest)
    assert model.generate(prompt.tolist(), 12, temperature=1e-6).tolist() == likeliest
    random = np.random.default_rng(3)
    drawn = by_hand(
        model, prompt, 12, lambda y: rk.sample(y[None], random, temperature=2.0, top_k=4)[0]
    )
    assert model.generate(prompt, 12, temperature=2.0, top_k=4, seed=3).tolist() == drawn
    assert model.generate(prompt, 12, temperature=2.0, top_k=4, seed=4).tolist() != drawn


@pytest.mark.parametrize("batch_first", [False, True])
def test_several_prompts_are_written_as_each_alone(batch_first: bool) -> None:
    model = writer(batch_first=batch_first)
    prompts = [[1, 4, 2], [5], [3, 3, 0, 1, 2], [0, 2]]
    alone = [model.generate(prompt, 9, top_k=1).tolist() for prompt in prompts]
    assert len({*map(tuple, alone)}) > 1
    assert [row.tolist() for row in model.generate(prompts, 9, top_k=1)] == alone
    x = np.array([[1, 4], [5, 2], [3, 3]])
    several = model.generate(x if batch_first else x.T, 9, top_k=1)
    assert [r.tolist() for r in several] == [model.generate(row, 9, top_k=1).tolist() for row in x]
    assert model.generate(np.zeros((0, 2) if batch_first else (2, 0), np.int64), 3) == []


def test_writing_stops() -> None:
    model, prompts = writer(), [[1, 4, 2], [5], [0, 2]]
    whole = [row.tolist() for row in model.generate(prompts, 30, temperature=3.0, seed=0)]
    assert [len(row) for row in whole] == [30] * 3
    for stop in range(VOCABULARY):
        rows = model.generate(prompts, 30, temperature=3.0, seed=0, stop=stop)
        for row, without in zip(rows, whole, strict=True):
            end = without.index(stop) if stop in without else 30
            assert row.tolist() == without[:end]
    first = whole[0][0]
    assert model.generate(prompts, 10**9, temperature=3.0, seed=0, stop=first)[0].shape == (0,)


def test_what_cannot_write_is_named() -> None:
    model = writer()
    calls: tuple[tuple[Callable[[], Any], type[Exception], str], ...] = (
        (
            lambda: writer("mean").generate([1], 3),
            ValueError,
            "generate needs readout='all' or 'la",
        ),
        (
            lambda: rk.Model(rk.GRU(4, 3), rk.Linear(3, 5)).generate([1], 3),
            ValueError,
            "generate needs a head with at most out_features=4, as many as there are tokens to",
        ),
        (
            lambda: rk.Model(rk.GRU(4, 3, bidirectional=True), rk.Linear(6, 4)).generate([1], 3),
            ValueError,
            "bidirectional=False",
        ),
        (lambda: model.generate([], 3), ValueError, "prompt must hold at least one sequence"),
        (lambda: model.generate([[1], []], 3), ValueError, "prompt must have at least one token"),
        (lambda: model.generate(np.zeros(0, int), 3), ValueError, "prompt must have at least one"),
        (lambda: model.generate([1], 0), ValueError, "max_length must be a positive integer"),
        (lambda: model.generate([1], 3, stop=6), ValueError, r"stop must be in 0\.\.5, got 6"),
        (lambda: model.generate([1], 3, temperature=0), ValueError, "temperature must be"),
        (lambda: model.generate([1], 3, top_k=0), ValueError, "top_k must be a positive"),
        (lambda: model.generate([1], 3, seed=-1), ValueError, "seed must be an integer of at"),
        (lambda: model.generate([7], 3), ValueError, "x must hold tokens in 0..5, got 7"),
        (lambda: model.generate([0.5], 3), TypeError, "prompt must be integers, got float64"),
        (lambda: model.generate("The ", 3), TypeError, "prompt must be an array of numbers, got"),
    )
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
