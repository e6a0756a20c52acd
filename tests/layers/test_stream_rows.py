# SPDX-License-Identifier: Apache-2.0
"""Streams of services: rows that idle, come and go, each as if it were alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_same_bits
from support.layers import CELLS, as_layer_state, as_tuple, cast, make, random_state
from support.threads import using_threads

INPUTS, HIDDEN, LAYERS = 5, 17, 2


def draw(*shape: int, tokens: bool = False, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.integers(0, INPUTS, shape) if tokens else rng.standard_normal((*shape, INPUTS), "f4")


def alone(layer: rk.Recurrent, xs: list[Any], weights: str | None = None) -> tuple[Any, Any]:
    """What one client gets whose steps are these: all y, and the last state."""
    stream = layer.stream(1, weights=weights)
    return [stream.step(x[None])[0] for x in xs], as_tuple(stream.state)


@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_idle_rows_hold_their_state(cell: str, tokens: bool, weights: str | None) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    x = draw(12, 4, tokens=tokens)
    live = np.random.default_rng(1).random((12, 4)) < 0.5
    live[0], live[1] = True, False  # all of them go on, and none
    stream = layer.stream(4, weights=weights)
    steps: list[list[Any]] = [[] for _ in range(4)]
    given: list[list[Any]] = [[] for _ in range(4)]
    for x_t, live_t in zip(x, live, strict=True):
        spoilt = x_t.copy()
        spoilt[~live_t] = 1000 if tokens else np.nan  # nobody looks at these
        y = stream.step(spoilt, mask=live_t)
        assert not y[~live_t].any()
        for row in np.flatnonzero(live_t).tolist():
            given[row].append(x_t[row])
            steps[row].append(y[row])
    for row in range(4):
        want, last = alone(layer, given[row], weights)
        for got, step in zip(steps[row], want, strict=True):
            assert_same_bits("y", got, step)
        for got, state in zip(as_tuple(stream.get_rows([row])), last, strict=True):
            assert_same_bits("state", got, state)


@pytest.mark.parametrize("cell", CELLS)
def test_a_masked_step_takes_out(cell: str) -> None:
    layer, x = make(cell, INPUTS, HIDDEN), draw(3)
    one, other = layer.stream(3), layer.stream(3)
    out = np.full((3, HIDDEN), 7.0, np.float32)
    assert one.step(x, out, mask=[True, False, True]) is out
    assert_same_bits("y", out, other.step(x, mask=np.array([True, False, True])))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_clients_come_and_go_as_if_each_were_alone(cell: str, tokens: bool, threads: int) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    rng = np.random.default_rng(3)
    with using_threads(threads):
        stream = layer.stream(0)
        clients: list[int] = []  # by row
        given: dict[int, list[Any]] = {}
        got: dict[int, list[Any]] = {}
        for t in range(60):
            if clients and rng.random() < 0.3:
                rows = rng.permutation(len(clients))[: rng.integers(1, 3)]
                stream.remove_rows(rows)
                clients = [c for row, c in enumerate(clients) if row not in rows]
            if rng.random() < 0.6:
                count = int(rng.integers(1, 3))
                rows = stream.add_rows(count)
                assert rows.tolist() == list(range(len(clients), len(clients) + count))
                for _ in rows:
                    clients.append(len(given))
                    given[clients[-1]], got[clients[-1]] = [], []
            assert stream.batch == len(clients)
            x = draw(len(clients), tokens=tokens, seed=t)
            mask = rng.random(len(clients)) < 0.7
            y = stream.step(x, mask=mask if t % 2 else None)
            for row, client in enumerate(clients):
                if mask[row] or t % 2 == 0:
                    given[client].append(x[row])
                    got[client].append(y[row])
    assert len(given) > 20
    for client, xs in given.items():
        for y, want in zip(got[client], alone(layer, xs)[0], strict=True):
            assert_same_bits(f"client {client}", y, want)


@pytest.mark.parametrize("cell", CELLS)
def test_rows_are_read_and_set(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    stream, x = layer.stream(4), draw(6, 4)
    stream.block(x)
    before = as_tuple(stream.state)
    for got, whole in zip(as_tuple(stream.get_rows([3, 1])), before, strict=True):
        assert_same_bits("state", got, whole[:, [3, 1]])
    stream.set_rows([0, 2], stream.get_rows([3, 1]))
    for got, whole in zip(as_tuple(stream.state), before, strict=True):
        assert_same_bits("state", got, whole[:, [3, 1, 1, 3]])
    stream.set_rows(np.array([1]), None)
    for got, whole in zip(as_tuple(stream.state), before, strict=True):
        assert_same_bits("state", got[:, [0, 2, 3]], whole[:, [3, 1, 3]])
        assert not got[:, 1].any()
    kept = stream.get_rows([0])
    stream.step(x[0])
    for got, whole in zip(as_tuple(kept), before, strict=True):
        assert_same_bits("a copy", got, whole[:, [3]])


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_comes_with_an_added_row_and_is_copied(cell: str) -> None:
    layer, x = make(cell, INPUTS, HIDDEN, LAYERS), draw(5, 3)
    whole, stream = layer.stream(3), layer.stream(2)
    state = cast(random_state(cell, (LAYERS, 1, HIDDEN)), "float32")
    whole.set_rows([2], as_layer_state(state))
    assert stream.add_rows(1, as_layer_state(state)).tolist() == [2]
    for array in state:
        array[...] = 9.0
    for x_t in x:
        assert_same_bits("y", stream.step(x_t), whole.step(x_t))


@pytest.mark.parametrize("cell", CELLS)
def test_rows_are_reset_by_number(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    by_number, by_mask = layer.stream(4), layer.stream(4)
    for stream, which in ((by_number, [2, 1]), (by_mask, [False, True, True, False])):
        stream.block(draw(3, 4))
        stream.reset(which)
    for got, want in zip(as_tuple(by_number.state), as_tuple(by_mask.state), strict=True):
        assert_same_bits("state", got, want)
        assert not got[:, 1:3].any()
        assert got[:, [0, 3]].any(axis=-1).all()
    by_number.reset([])
    assert as_tuple(by_number.state)[0][:, 0].any()


@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_takes_the_present_weights(cell: str, weights: str | None) -> None:
    layer, x = make(cell, INPUTS, HIDDEN, LAYERS), draw(4, 2)
    stream, old = layer.stream(2, weights=weights), layer.stream(2, weights=weights)
    stream.block(x)
    state = stream.state
    for array in layer.params.values():
        array *= 0.5
    old.state = state
    assert_same_bits("before", stream.step(x[0]), old.step(x[0]))
    stream.refresh()
    new = layer.stream(2, weights=weights)
    new.state = stream.state
    for x_t in x:
        assert_same_bits("step", stream.step(x_t), new.step(x_t))
    assert_same_bits("block", stream.block(x), new.block(x))
    assert not np.array_equal(stream.step(x[0]), old.step(x[0]))


def test_copies_go_on_alone_and_have_no_layer() -> None:
    layer, x = make("lstm", INPUTS, HIDDEN), draw(4, 3)
    stream = layer.stream(2)
    stream.add_rows(1)
    stream.block(x)
    for twin in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        other = copy.deepcopy(stream)
        assert_same_bits("y", twin.step(x[0]), other.step(x[0]))
        with pytest.raises(ValueError, match="refresh needs a stream that a layer's stream"):
            twin.refresh()
    assert stream.batch == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: s.step(x, mask=[True, False]), r"mask must be bool \(3,\), got bool of shap"),
        (lambda s, x: s.step(x, mask=[1, 0, 1]), r"mask must be bool \(3,\), got int64"),
        (lambda s, x: s.step(x[:2], mask=[True, False, True]), r"x must have shape \(3, 5\)"),
        (lambda s, x: s.get_rows([3]), r"rows must lie in 0\.\.2, got 3"),
        (lambda s, x: s.get_rows([-1]), r"rows must lie in 0\.\.2, got -1"),
        (lambda s, x: s.get_rows([1, 1]), r"rows must be different rows, got \[1, 1\]"),
        (lambda s, x: s.get_rows(1), r"rows must be integers \(N,\)"),
        (lambda s, x: s.get_rows([0.5]), r"rows must be integers \(N,\), got float64"),
        (lambda s, x: s.set_rows([1], s.state), r"state\['h'\] must have shape \(1, 1, 17\)"),
        (lambda s, x: s.add_rows(-1), "count must be an integer of at least 0"),
        (lambda s, x: s.add_rows(2, s.state), r"state\['h'\] must have shape \(1, 2, 17\)"),
        (lambda s, x: s.remove_rows([5]), r"rows must lie in 0\.\.2, got 5"),
        (lambda s, x: s.reset([5]), r"mask must lie in 0\.\.2, got 5"),
        (lambda s, x: s.take([0, 1]), r"rows must be integers \(3,\), got int64 of shape \(2,\)"),
        (lambda s, x: s.take([True] * 3), r"rows must be integers \(3,\), got bool"),
        (lambda s, x: s.take([0, 1, 3]), r"rows must lie in 0\.\.2, got 3"),
        (lambda s, x: s.take([0, -1, 1]), r"rows must lie in 0\.\.2, got -1"),
        (lambda s, x: s.take("abc"), "rows must be an array of numbers, got the text 'abc'"),
        (lambda s, x: s.step("abc"), r"got the text 'abc': np\.frombuffer\(text\.encode\(\), np\."),
        (lambda s, x: s.block("abc"), "x must be an array of numbers, got the text 'abc'"),
    ],
)
def test_bad_rows_are_named_and_change_nothing(call: Any, message: str) -> None:
    stream, x = make("lstm", INPUTS, HIDDEN).stream(3), draw(3)
    stream.step(x)
    before = as_tuple(stream.state)
    with pytest.raises((TypeError, ValueError), match=message):
        call(stream, x)
    for got, want in zip(as_tuple(stream.state), before, strict=True):
        assert_same_bits("state", got, want)
