# SPDX-License-Identifier: Apache-2.0
"""Any size, layout and use of a layer, against reference.py: outputs, states and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnkern as rk

from support import reference
from support.compare import assert_close, assert_same_bits
from support.layers import (
    CELLS,
    CLASSES,
    DTYPES,
    TOLERANCE,
    WITH_PRODUCT,
    as_layer_state,
    as_tuple,
    cast,
    check_against_reference,
    make,
    random_state,
)
from support.reference import Array, State
from support.threads import using_threads

HIDDEN = [1, 3, 7, 8, 16, 17, 33, 64, 100, 129]


def _inside(shape: tuple[int, ...], index: Any, x: Array) -> Array:
    """A view equal to x that is ``index`` of a larger array, the rest of which is NaN."""
    whole = np.full(shape, np.nan, x.dtype)
    whole[index] = x
    view: Array = whole[index]
    return view


def _read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


def _unaligned(x: Array) -> Array:
    raw = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    return raw


def _field(x: Array) -> Array:
    records = np.zeros(x.shape, np.dtype([("before", np.uint8), ("x", x.dtype)]))
    records["x"] = x
    return records["x"]


# The same values, otherwise laid out in memory. x is (T, B, I).
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "plain": lambda x: x,
    "every other step": lambda x: _inside((2 * len(x), *x.shape[1:]), np.s_[::2], x),
    "every third row": lambda x: _inside((len(x), 3 * x.shape[1], x.shape[2]), np.s_[:, 1::3], x),
    "features from the second on": lambda x: _inside(
        (*x.shape[:2], x.shape[2] + 1), np.s_[..., 1:], x
    ),
    "every other feature": lambda x: _inside((*x.shape[:2], 2 * x.shape[2]), np.s_[..., ::2], x),
    "steps backwards": lambda x: x[::-1].copy()[::-1],
    "features backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "Fortran order": np.asfortranarray,
    "batch first": lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
    "read-only": _read_only,
    "unaligned": _unaligned,
    "a field of packed records": _field,
}


@dataclass(frozen=True)
class Problem:
    """What hypothesis chooses; the numbers follow from ``seed``."""

    steps: int
    batch: int
    inputs: int
    layers: int
    bidirectional: bool
    bias: bool
    dtype: str
    layout: str
    lengths: str
    from_zero: bool
    upstream: str
    threads: int
    seed: int


problems = st.builds(
    Problem,
    steps=st.sampled_from([1, 2, 7, 50]),
    batch=st.sampled_from([1, 2, 3, 5, 16, 33]),
    inputs=st.sampled_from([1, 2, 5, 16, 40]),
    layers=st.sampled_from([1, 1, 2]),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    lengths=st.sampled_from(["none", "any", "positive", "full", "empty"]),
    from_zero=st.booleans(),
    upstream=st.sampled_from(["y", "state", "both"]),
    threads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**16),
)


def draw_lengths(kind: str, steps: int, batch: int, rng: np.random.Generator) -> Array | None:
    if kind == "none":
        return None
    low, high = {"any": (0, steps), "positive": (1, steps), "full": (steps, steps)}.get(
        kind, (0, 0)
    )
    return rng.integers(low, high + 1, batch)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("cell", CELLS)
@given(problem=problems)
def test_any_problem(cell: str, hidden: int, problem: Problem) -> None:
    rng = np.random.default_rng(problem.seed)
    directions = 2 if problem.bidirectional else 1
    layer = make(
        cell,
        problem.inputs,
        hidden,
        problem.layers,
        bidirectional=problem.bidirectional,
        bias=problem.bias,
        dtype=problem.dtype,
        seed=problem.seed,
    )
    x = rng.standard_normal((problem.steps, problem.batch, problem.inputs)).astype(problem.dtype)
    dy = rng.standard_normal((problem.steps, problem.batch, directions * hidden))
    state_shape = (problem.layers * directions, problem.batch, hidden)
    in_layout = LAYOUTS[problem.layout]

    def states(seed: int) -> State:
        drawn = random_state(cell, state_shape, seed)
        return tuple(in_layout(s.astype(problem.dtype)) for s in drawn)

    with using_threads(problem.threads):
        check_against_reference(
            layer,
            cell,
            in_layout(x),
            state=None if problem.from_zero else states(problem.seed + 1),
            lengths=draw_lengths(problem.lengths, problem.steps, problem.batch, rng),
            dy=None if problem.upstream == "state" else in_layout(dy.astype(problem.dtype)),
            dstate=None if problem.upstream == "y" else states(problem.seed + 2),
        )


@pytest.mark.parametrize("cell", CELLS)
@given(
    steps=st.sampled_from([1, 2, 7, 50]),
    batch=st.sampled_from([1, 3, 16, 33]),
    symbols=st.sampled_from([1, 2, 15, 40]),
    hidden=st.sampled_from(HIDDEN),
    bidirectional=st.booleans(),
    lengths=st.sampled_from(["none", "any"]),
    dtype=st.sampled_from(DTYPES),
    integer=st.sampled_from(["uint8", "int32", "int64"]),
    seed=st.integers(0, 2**16),
)
def test_any_tokens(
    cell: str,
    steps: int,
    batch: int,
    symbols: int,
    hidden: int,
    bidirectional: bool,
    lengths: str,
    dtype: str,
    integer: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    layer = make(cell, symbols, hidden, 1, bidirectional=bidirectional, dtype=dtype, seed=seed)
    tokens = rng.integers(0, symbols, (batch, 2 * steps)).astype(integer).T[::2]
    check_against_reference(
        layer,
        cell,
        tokens,
        lengths=draw_lengths(lengths, steps, batch, rng),
        dy=rng.standard_normal((steps, batch, hidden * (2 if bidirectional else 1))),
        dstate=random_state(cell, (2 if bidirectional else 1, batch, hidden), seed),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_float32_agrees_with_float64(cell: str) -> None:
    """To 1e-5 in norm over 50 steps: y, state and every gradient."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 16, 40)).astype("float32")
    dy = rng.standard_normal((50, 16, 128)).astype("float32")
    lengths = rng.integers(0, 51, 16)
    results: list[tuple[dict[str, Array], dict[str, Array]]] = []
    for dtype in DTYPES:
        layer = make(cell, 40, 64, 2, bidirectional=True, dtype=dtype)
        if results:  # the same weights, rounded once
            for name, p in layer.params.items():
                p[...] = results[0][0][name]
        y, last, tape = layer.forward(x.astype(dtype), None, lengths)
        dx, dfirst, grads = tape.backward(dy.astype(dtype), as_layer_state(as_tuple(last)))
        named = {"y": y, "dx": dx, **grads}
        named |= {f"last {k}": s for k, s in enumerate(as_tuple(last))}
        named |= {f"dfirst {k}": s for k, s in enumerate(as_tuple(dfirst))}
        results.append((layer.params, named))
    (_, single), (_, double) = results
    for name, want in double.items():
        assert single[name].dtype == np.float32
        assert want.dtype == np.float64
        assert_close(name, single[name], want, TOLERANCE["float32"])


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_of_every_argument(layout: str) -> None:
    """None is read otherwise for lying otherwise in memory: the same bits."""
    layer = make("lstm", 5, 17, 2, bidirectional=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 6, 5), dtype=np.float32)
    dy = rng.standard_normal((7, 6, 34), dtype=np.float32)
    state = cast(random_state("lstm", (4, 6, 17)), "float32")
    lengths = np.array([3, 0, 7, 1, 7, 2])
    other = LAYOUTS[layout]

    want_y, want_last, want_tape = layer.forward(x, state, lengths)
    want_dx, want_dfirst, want_grads = want_tape.backward(dy, state)
    turned = tuple(other(s) for s in state)
    y, last, tape = layer.forward(other(x), turned, np.repeat(lengths, 2)[::2])
    dx, dfirst, grads = tape.backward(other(dy), turned)
    assert_same_bits("y", y, want_y)
    assert_same_bits("dx", dx, want_dx)
    for got, want in zip((*last, *dfirst), (*want_last, *want_dfirst), strict=True):
        assert_same_bits("state", got, want)
    for name, want in want_grads.items():
        assert_same_bits(name, grads[name], want)

    for name, p in layer.params.copy().items():
        layer.params[name] = other(p[None])[0] if p.ndim == 2 else p[::-1].copy()[::-1]
    assert_same_bits("y", layer(x, state, lengths)[0], want_y)


def test_broadcast_arguments() -> None:
    layer = make("gru_before", 5, 9)
    row = np.random.default_rng(0).standard_normal((1, 1, 5), dtype=np.float32)
    x = np.broadcast_to(row, (6, 4, 5))
    dy = np.broadcast_to(np.float32(0.5), (6, 4, 9))
    h = np.broadcast_to(np.float32(0.25), (1, 4, 9))
    want_y, _, want_tape = layer.forward(x.copy(), h.copy())
    y, _, tape = layer.forward(x, h)
    assert_same_bits("y", y, want_y)
    assert_same_bits("dx", tape.backward(dy, h)[0], want_tape.backward(dy.copy(), h.copy())[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("cell", CELLS)
def test_out_is_filled_and_returned(cell: str, order: str, dtype: str) -> None:
    batch_first = order == "batch first"
    layer = make(cell, 5, 17, 2, bidirectional=True, batch_first=batch_first, dtype=dtype)
    steps, lengths = 7, np.array([3]) if order == "unbatched" else np.array([3, 0, 7, 1, 7, 2])
    shape = {"time first": (steps, 6), "batch first": (6, steps), "unbatched": (steps,)}[order]
    x = np.random.default_rng(0).standard_normal((*shape, 5)).astype(dtype)
    want, want_last = layer(x, None, lengths)
    live = np.arange(steps) < lengths[:, None]
    live = {"time first": live.T, "batch first": live, "unbatched": live[0]}[order]
    assert np.all(np.any(want[live], axis=-1))
    assert not np.any(want[~live])
    for call in (layer, layer.forward):
        out = np.full((*shape, 34), np.nan, dtype)
        y, last, *_ = call(x, None, lengths, out=out)
        assert y is out
        assert_same_bits("out", out, want)
        for got, w in zip(as_tuple(last), as_tuple(want_last), strict=True):
            assert_same_bits("state", got, w)


@pytest.mark.parametrize("cell", CELLS)
def test_out_may_be_part_of_a_larger_array(cell: str) -> None:
    layer = make(cell, 5, 17, 2, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((7, 6, 5), dtype=np.float32)
    lengths = np.array([3, 0, 7, 1, 7, 2])
    want, _ = layer(x, None, lengths)
    whole = np.full((14, 18, 40), np.nan, np.float32)
    out = whole[::2, 1::3, 2:36]
    y, _, tape = layer.forward(x, None, lengths, out=out)
    assert y is out
    assert_same_bits("out", out.copy(), want)
    assert np.sum(~np.isnan(whole)) == out.size
    # The tape reads y where it is.
    dx, _, _ = tape.backward(x[..., :1] + np.zeros_like(want))
    plain_dx, _, _ = layer.forward(x, None, lengths)[2].backward(x[..., :1] + np.zeros_like(want))
    assert_same_bits("dx", dx, plain_dx)


@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_left_alone(cell: str) -> None:
    layer = make(cell, 5, 8, 2, bidirectional=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 3, 5), dtype=np.float32)
    state = cast(random_state(cell, (4, 3, 8)), "float32")
    dy = rng.standard_normal((6, 3, 16), dtype=np.float32)
    dstate = cast(random_state(cell, (4, 3, 8), seed=1), "float32")
    lengths = np.array([6, 2, 0])
    arguments = [x, *state, dy, *dstate, lengths, *layer.params.values()]
    before = [a.copy() for a in arguments]
    layer(x, as_layer_state(state), lengths)
    _, last, tape = layer.forward(x, as_layer_state(state), lengths)
    tape.backward(dy, as_layer_state(dstate))
    tape.backward(
        dy, as_layer_state(dstate), state_gradients=True
    )  # what kernels cannot take alone
    for got, want in zip(arguments, before, strict=True):
        assert_same_bits("an argument", got, want)
    for got, given_state in zip(as_tuple(last), state, strict=True):
        assert not np.shares_memory(got, given_state)


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_and_their_first_values(cell: str) -> None:
    """PyTorch's names and shapes; uniform within 1/sqrt(H); a seed says them all."""
    cls, fixed = CLASSES[cell]
    layer = cls(5, 16, 2, bidirectional=True, seed=3, **fixed)
    rows = reference.CELLS[cell].gates * 16
    want: dict[str, tuple[int, ...]] = {}
    for k, inputs in [(0, 5), (1, 32)]:
        for end in (f"_l{k}", f"_l{k}_reverse"):
            of_h = reference.CELLS[cell].recurrent
            want |= {f"weight_ih{end}": (rows, inputs), f"bias{end}": (rows,)}
            if of_h is not None:
                want[f"{of_h}{end}"] = (rows if of_h == "weight_hh" else 1, 16)
            want |= {f"bias_hn{end}": (16,)} if reference.CELLS[cell].own_bias else {}
    assert {name: p.shape for name, p in layer.params.items()} == want
    weights = [
        p.ravel() for name, p in layer.params.items() if name.startswith(("weight_ih", "weight_hh"))
    ]
    values = np.concatenate(weights)
    assert values.dtype == np.float32
    assert np.max(np.abs(values)) <= 0.25
    assert abs(np.mean(values)) < 0.02
    np.testing.assert_allclose(np.std(values), 0.25 / np.sqrt(3.0), rtol=0.05)

    again = type(layer)(**layer.config())
    other = cls(5, 16, 2, bidirectional=True, seed=4, **fixed)
    for name, p in layer.params.items():
        assert_same_bits(name, again.params[name], p)
        assert not np.array_equal(other.params[name], p)
    assert again.config() == layer.config()


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_orthogonal_recurrent_matrices(cell: str) -> None:
    cls, fixed = CLASSES[cell]
    layer = cls(5, 16, recurrent_init="orthogonal", seed=0, dtype="float64", **fixed)
    blocks = np.split(layer.params["weight_hh_l0"], reference.CELLS[cell].gates)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(16), atol=1e-14)
    assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_forget_bias_fills_its_gate_alone() -> None:
    options: dict[str, Any] = {"bidirectional": True, "seed": 0}
    plain, filled = rk.LSTM(5, 8, 2, **options), rk.LSTM(5, 8, 2, forget_bias=1.5, **options)
    for name, p in filled.params.items():
        if name.startswith("bias"):
            assert np.all(p[8:16] == 1.5)
            assert not np.any(plain.params[name][8:16] == 1.5)
        rows = np.r_[0:8, 16:32]
        assert_same_bits(name, p[rows], plain.params[name][rows])


@pytest.mark.parametrize("cell", CELLS)
def test_no_bias_means_no_bias(cell: str) -> None:
    layer = make(cell, 5, 8, 2, bias=False)
    assert all(name.startswith("weight") for name in layer.params)
    assert not np.any(layer(np.zeros((3, 2, 5), np.float32))[0])
