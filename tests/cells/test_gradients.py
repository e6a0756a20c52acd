# SPDX-License-Identifier: Apache-2.0
"""Every gradient against central differences in float64, and what a tape promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from support import reference
from support.compare import assert_close, assert_same_bits
from support.differences import differences
from support.layers import CELLS, as_layer_state, as_tuple, cast, make, random_state
from support.marks import live_steps
from support.reference import Array, State

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 2, 3
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Problem:
    """One way to use a layer; everything is tiny, since each number is moved twice."""

    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    dropout: float = 0.0
    lengths: tuple[int, ...] | None = None
    tokens: bool = False
    from_zero: bool = False
    upstream: str = "both"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def make(self, cell: str) -> Any:
        return make(
            cell,
            INPUTS,
            HIDDEN,
            self.layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            dropout=self.dropout,
            dtype="float64",
        )

    def x(self) -> Array:
        rng = np.random.default_rng(1)
        if self.tokens:
            return rng.integers(0, INPUTS, (STEPS, BATCH))
        return rng.standard_normal((STEPS, BATCH, INPUTS))

    def state(self, cell: str) -> State | None:
        shape = (self.layers * self.directions, BATCH, HIDDEN)
        return None if self.from_zero else random_state(cell, shape, seed=2)

    def dy(self) -> Array | None:
        shape = (STEPS, BATCH, self.directions * HIDDEN)
        return np.random.default_rng(3).standard_normal(shape) if self.upstream != "state" else None

    def dstate(self, cell: str) -> State | None:
        shape = (self.layers * self.directions, BATCH, HIDDEN)
        return random_state(cell, shape, seed=4) if self.upstream != "y" else None


PROBLEMS = {
    "plain": Problem(),
    "upstream-y": Problem(upstream="y"),
    "upstream-state": Problem(upstream="state"),
    "from-zero": Problem(from_zero=True),
    "no-bias": Problem(bias=False),
    "ragged": Problem(lengths=(2, 0, 4)),
    "ragged-upstream-state": Problem(lengths=(0, 3, 1), upstream="state"),
    "all-empty": Problem(lengths=(0, 0, 0)),
    "tokens": Problem(tokens=True),
    "tokens-ragged-bidirectional": Problem(tokens=True, lengths=(4, 0, 3), bidirectional=True),
    "stacked": Problem(layers=3),
    "bidirectional-ragged": Problem(bidirectional=True, lengths=(1, 4, 0)),
    "stacked-bidirectional-ragged": Problem(layers=2, bidirectional=True, lengths=(4, 0, 2)),
    "stacked-bidirectional-dropout": Problem(layers=3, bidirectional=True, dropout=0.4),
    "stacked-dropout-ragged-no-bias": Problem(layers=2, dropout=0.5, lengths=(2, 4, 1), bias=False),
}


def weighted(y: Array, state: State, dy: Array | None, dstate: State | None) -> float:
    """The scalar whose gradients in y and state are dy and dstate."""
    total = 0.0 if dy is None else float(np.sum(y * dy))
    pairs = () if dstate is None else zip(state, dstate, strict=True)
    return total + sum(float(np.sum(s * d)) for s, d in pairs)


def check_differences(
    forward: Callable[[], tuple[Array, State]],
    dy: Array | None,
    dstate: State | None,
    moved: dict[str, tuple[Array, Array]],
) -> None:
    """``moved``: name -> (the array that forward reads, the gradient claimed for it)."""
    for name, (at, claimed) in moved.items():
        numeric = differences(lambda: weighted(*forward(), dy, dstate), at)
        if np.any(numeric):
            assert_close(name, claimed, numeric, TOLERANCE)
        else:
            assert not np.any(claimed), f"{name}: nothing depends on it"


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell: str, problem: Problem) -> None:
    layer, x, state = problem.make(cell), problem.x(), problem.state(cell)
    lengths = None if problem.lengths is None else np.array(problem.lengths)
    dy, dstate = problem.dy(), problem.dstate(cell)
    key = 11 if problem.dropout else None

    def call() -> Any:
        return layer.forward(x, as_layer_state(state), lengths, dropout_key=key)

    def forward() -> tuple[Array, State]:
        y, last, _ = call()
        return y, as_tuple(last)

    _, _, tape = call()
    dx, dfirst, grads = tape.backward(dy, as_layer_state(dstate))
    assert grads.keys() == layer.params.keys()
    moved = {name: (layer.params[name], grads[name]) for name in grads}
    if problem.tokens:
        assert dx is None
    else:
        moved["x"] = (x, dx)
    for name, s, d in zip(("h_0", "c_0"), state or (), as_tuple(dfirst), strict=False):
        moved[name] = (s, d)
    check_differences(forward, dy, dstate, moved)


@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS.values() if not p.dropout],
    ids=[k for k, p in PROBLEMS.items() if not p.dropout],
)
@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences_of_the_reference(cell: str, problem: Problem) -> None:
    params, x, state = problem.make(cell).params, problem.x(), problem.state(cell)
    lengths = None if problem.lengths is None else np.array(problem.lengths)
    dy, dstate = problem.dy(), problem.dstate(cell)

    def run() -> reference.Tape:
        return reference.Tape(cell, params, x, state, lengths)

    def forward() -> tuple[Array, State]:
        oracle = run()
        return oracle.y, oracle.state

    dx, dfirst, grads = run().backward(dy, dstate)
    moved = {name: (params[name], grads[name]) for name in params}
    if dx is not None:
        moved["x"] = (x, dx)
    for name, s, d in zip(("h_0", "c_0"), state or (), dfirst, strict=False):
        moved[name] = (s, d)
    check_differences(forward, dy, dstate, moved)


def test_finite_differences_of_the_reference_with_masks() -> None:
    problem = Problem(layers=2, bidirectional=True)
    params, x, dy = problem.make("lstm").params, problem.x(), problem.dy()
    masks = [np.random.default_rng(5).integers(0, 2, (STEPS, BATCH, 2 * HIDDEN)) / 0.5]

    def forward() -> tuple[Array, State]:
        oracle = reference.Tape("lstm", params, x, masks=masks)
        return oracle.y, oracle.state

    dx, _, grads = reference.Tape("lstm", params, x, masks=masks).backward(dy)
    assert dx is not None
    moved = {name: (params[name], grads[name]) for name in params} | {"x": (x, dx)}
    check_differences(forward, dy, None, moved)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_no_gradient_flows_past_a_length(cell: str, dtype: str) -> None:
    layer = make(cell, 5, 9, 2, bidirectional=True, dtype=dtype)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 4, 5)).astype(dtype)
    lengths = np.array([3, 0, 6, 1])
    dstate = cast(random_state(cell, (4, 4, 9)), dtype)
    dy = rng.standard_normal((6, 4, 18)).astype(dtype)
    _, _, tape = layer.forward(x, None, lengths)
    dx, dfirst, grads = tape.backward(dy, as_layer_state(dstate))
    for b, n in enumerate(lengths):
        assert not np.any(dx[n:, b])
        assert n == 0 or np.any(dx[n - 1, b])
    for got, want in zip(as_tuple(dfirst), dstate, strict=True):
        assert_same_bits("the state's gradient of an empty row", got[:, 1], want[:, 1])

    # What stands past a length, in x or in the gradient of y, is not looked at.
    past = ~live_steps(6, lengths)
    x[past] = np.nan
    dy[past] = np.nan
    y, _, tape = layer.forward(x, None, lengths)
    assert not np.any(y[past])
    again_dx, _, again = tape.backward(dy, as_layer_state(dstate))
    assert_same_bits("dx", again_dx, dx)
    for name in grads:
        assert_same_bits(name, again[name], grads[name])


@pytest.mark.parametrize("cell", CELLS)
def test_tokens_are_one_hot_rows(cell: str) -> None:
    layer = make(cell, 6, 5, 2, bidirectional=True, dtype="float64")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 6, (7, 4))
    dy = rng.standard_normal((7, 4, 10))
    lengths = np.array([7, 2, 0, 5])
    y, last, tape = layer.forward(tokens, None, lengths)
    hot_y, hot_last, hot_tape = layer.forward(np.eye(6)[tokens], None, lengths)
    assert_close("y", y, hot_y, 1e-14)
    for got, want in zip(as_tuple(last), as_tuple(hot_last), strict=True):
        assert_close("state", got, want, 1e-14)
    dx, _, grads = tape.backward(dy)
    hot_dx, _, hot_grads = hot_tape.backward(dy)
    assert dx is None
    assert hot_dx is not None
    for name in grads:
        assert_close(name, grads[name], hot_grads[name], 1e-13)


@pytest.mark.parametrize("integer", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
def test_tokens_of_every_integer_dtype(integer: str) -> None:
    layer = make("gru_before", 6, 5)
    tokens = np.random.default_rng(0).integers(0, 6, (7, 4))
    want, _ = layer(tokens)
    got, _ = layer(tokens.astype(integer))
    assert_same_bits(integer, got, want)


@pytest.mark.parametrize("cell", CELLS)
def test_a_tape_may_be_kept(cell: str) -> None:
    """Used twice it says the same: neither learning nor the next batch's lengths reach it."""
    layer = make(cell, 5, 8, 2, bidirectional=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3, 5), dtype=np.float32)
    state = cast(random_state(cell, (4, 3, 8)), "float32")
    dy = rng.standard_normal((6, 3, 16), dtype=np.float32)
    lengths = np.array([6, 2, 4])
    _, last, tape = layer.forward(x, as_layer_state(state), lengths)
    first_dx, first_dstate, first = tape.backward(dy)
    for array in (*as_tuple(last), *layer.params.values()):
        array[...] = 0.25
    lengths[...] = [4, 6, 2]
    dx, dstate, grads = tape.backward(dy)
    assert_same_bits("dx", dx, first_dx)
    for got, want in zip(as_tuple(dstate), as_tuple(first_dstate), strict=True):
        assert_same_bits("dstate", got, want)
    for name in first:
        assert_same_bits(name, grads[name], first[name])


@pytest.mark.parametrize("cell", CELLS)
def test_no_upstream_gradient_means_zeros(cell: str) -> None:
    layer = make(cell, 5, 8)
    x = np.ones((6, 3, 5), np.float32)
    _, _, tape = layer.forward(x)
    dx, dstate, grads = tape.backward()
    for array in (dx, *as_tuple(dstate), *grads.values()):
        assert not np.any(array)
    assert grads.keys() == layer.params.keys()


@pytest.mark.parametrize("cell", CELLS)
def test_parts_of_the_upstream_gradient_add_up(cell: str) -> None:
    layer = make(cell, 5, 8, 2, dtype="float64")
    rng = np.random.default_rng(0)
    dy, dstate = rng.standard_normal((6, 3, 8)), random_state(cell, (2, 3, 8))
    _, _, tape = layer.forward(rng.standard_normal((6, 3, 5)))
    both, _, both_grads = tape.backward(dy, as_layer_state(dstate))
    of_y, _, of_y_grads = tape.backward(dy)
    of_state, _, of_state_grads = tape.backward(None, as_layer_state(dstate))
    assert_close("dx", of_y + of_state, both, 1e-13)
    for name in both_grads:
        assert_close(name, of_y_grads[name] + of_state_grads[name], both_grads[name], 1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_agree(cell: str) -> None:
    """batch_first and unbatched input are the same numbers, forward and backward."""
    sizes = {"dtype": "float64", "bidirectional": True}
    layer, turned = make(cell, 5, 8, 2, **sizes), make(cell, 5, 8, 2, batch_first=True, **sizes)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((6, 1, 5)), rng.standard_normal((6, 1, 16))
    state = random_state(cell, (4, 1, 8))
    y, last, tape = layer.forward(x, as_layer_state(state))
    dx, dfirst, grads = tape.backward(dy, as_layer_state(state))

    ways: dict[str, tuple[Any, Callable[[Array], Array], Callable[[Array], Array]]] = {
        # name -> the layer, x or y in its order, a state in its shape
        "batch_first": (turned, lambda a: a.swapaxes(0, 1), lambda s: s),
        "unbatched": (layer, lambda a: a.squeeze(1), lambda s: s.squeeze(1)),
        "unbatched to batch_first": (turned, lambda a: a.squeeze(1), lambda s: s.squeeze(1)),
    }
    for name, (one, to_layout, to_state) in ways.items():
        given = as_layer_state(tuple(to_state(s) for s in state))
        got_y, got_last, got_tape = one.forward(to_layout(x), given)
        got_dx, got_dfirst, got_grads = got_tape.backward(to_layout(dy), given)
        assert_close(f"{name}: y", got_y, to_layout(y), 1e-14)
        assert_close(f"{name}: dx", got_dx, to_layout(dx), 1e-13)
        for got, want in zip(as_tuple(got_last), as_tuple(last), strict=True):
            assert_close(f"{name}: state", got, to_state(want), 1e-14)
        for got, want in zip(as_tuple(got_dfirst), as_tuple(dfirst), strict=True):
            assert_close(f"{name}: dstate", got, to_state(want), 1e-13)
        for key in grads:
            assert_close(f"{name}: {key}", got_grads[key], grads[key], 1e-13)
