# SPDX-License-Identifier: Apache-2.0
"""Every wrong argument has a message that names it, what was given and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import layer_classes

from support import reference
from support.arguments import unaligned
from support.layers import CELLS, as_layer_state, make
from support.processes import run_python

STEPS, BATCH, INPUTS, HIDDEN, LAYERS = 7, 3, 5, 8, 2


def says(*parts: object) -> str:
    """A pattern for a message that has every one of these words or numbers, in any order."""
    return "(?s)" + "".join(rf"(?=.*(?<!\w){re.escape(str(p))}(?!\w))" for p in parts)


def x(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape or (STEPS, BATCH, INPUTS), dtype)


def h(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape or (LAYERS, BATCH, HIDDEN), dtype)


# --- Constructors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", layer_classes().values())
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-3, ValueError),
        (1.5, TypeError),
        (float("nan"), TypeError),
        ("4", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_sizes(cls: Any, name: str, value: Any, error: type[Exception]) -> None:
    sizes = {"input_size": 3, "hidden_size": 4, "num_layers": 1, name: value}
    with pytest.raises(error, match=says(name, "positive integer", str(value).strip("-"))):
        cls(**sizes)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        *(((2**k, 4, 1), ["input_size", 2**k]) for k in (40, 62, 63, 64, 100)),
        *(((3, 2**k, 1), ["hidden_size", 2**k]) for k in (31, 40, 62, 63, 64, 100)),
        *(((3, 4, 2**k), ["num_layers", 2**k]) for k in (17, 31, 40, 62, 63, 64, 100)),
        ((2**30, 2**30, 1), ["hidden_size", "input_size", 2**30]),
        ((3, 2**15, 2**20), ["hidden_size", "num_layers", 2**15, 2**20]),
    ],
)
def test_sizes_that_overflow(sizes: tuple[int, int, int], parts: list[object]) -> None:
    """In a child of limited memory: without a check, some of these take all there is."""
    done = run_python(
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32));"
        f"import rnnkern as rk; rk.LSTM(*{sizes})",
        OPENBLAS_NUM_THREADS="1",
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert re.search(says(*parts), last)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (-float("inf"), ValueError),
        (-0.1, ValueError),
        (1.0, ValueError),
        (1.5, ValueError),
        ("0.5", TypeError),
        (None, TypeError),
    ],
)
def test_dropout_rate(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=says("dropout", str(value).strip("-"))):
        rk.LSTM(3, 4, 2, dropout=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1"])
def test_forget_bias(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=says("forget_bias", value)):
        rk.LSTM(3, 4, forget_bias=value)


@pytest.mark.parametrize(
    ("cls", "name", "value", "choices"),
    [
        (rk.RNN, "nonlinearity", "sine", ["tanh", "relu"]),
        (rk.GRU, "reset", "never", ["before", "after"]),
        (rk.LSTM, "dtype", "float16", ["float32", "float64"]),
        (rk.LSTM, "dtype", "int32", ["float32", "float64"]),
        (rk.LSTM, "dtype", "nonsense", ["float32", "float64"]),
        (rk.LSTM, "compute", "nonsense", ["None", "bfloat16"]),
        (rk.LSTM, "compute", "tfloat32", ["None", "bfloat16"]),
        (rk.LSTM, "compute", "float16", ["None", "bfloat16"]),
        (rk.LSTM, "device", "tpu", ["cpu"]),
        (rk.LSTM, "device", "", ["cpu"]),
        (rk.LSTM, "recurrent_init", "xavier", ["uniform", "orthogonal"]),
    ],
)
def test_choices(cls: Any, name: str, value: str, choices: list[str]) -> None:
    with pytest.raises((TypeError, ValueError), match=says(name, *choices)) as caught:
        cls(3, 4, **{name: value})
    assert value in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 1.5, "seed"])
def test_seed(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=says("seed", str(seed).strip("-"))):
        rk.LSTM(3, 4, seed=seed)


@pytest.mark.parametrize("name", ["bidirectional", "batch_first", "bias"])
def test_switches(name: str) -> None:
    switch: dict[str, Any] = {name: "yes"}
    with pytest.raises(TypeError, match=says(name, "yes", "True or False")):
        rk.LSTM(3, 4, **switch)


# --- Calls ----------------------------------------------------------------------------------------


def into_memory_of_x(f: Callable[..., Any]) -> Any:
    whole = x(7, 3, 8)
    return f(whole[..., 3:], out=whole)


CASES: dict[str, tuple[type[Exception], list[object], Callable[[Any], Any]]] = {
    # name -> the error, what its message has, the call on an LSTM(5, 8, num_layers=2)
    "x of rank 1": (ValueError, ["x", "(5,)"], lambda f: f(x(5))),
    "x of rank 4": (ValueError, ["x", "(1, 2, 3, 5)"], lambda f: f(x(1, 2, 3, 5))),
    "x of rank 0": (ValueError, ["x", "()"], lambda f: f(np.float32(1.0))),
    "x too narrow": (ValueError, ["x", 4, 5], lambda f: f(x(7, 3, 4))),
    "x too wide": (ValueError, ["x", 6, 5], lambda f: f(x(7, 3, 6))),
    "x unbatched, too wide": (ValueError, ["x", 6, 5], lambda f: f(x(7, 6))),
    "x without features": (ValueError, ["x", 0, 5], lambda f: f(x(7, 3, 0))),
    "x of float64": (TypeError, ["x", "float64", "float32"], lambda f: f(x(dtype="float64"))),
    "x of float16": (TypeError, ["x", "float16", "float32"], lambda f: f(x(dtype="float16"))),
    "x complex": (TypeError, ["x", "complex64", "float32"], lambda f: f(x(dtype="complex64"))),
    "x of bool": (TypeError, ["x", "bool", "float32"], lambda f: f(x(dtype="bool"))),
    "x of objects": (TypeError, ["x", "object", "float32"], lambda f: f(x(dtype="object"))),
    "x of text": (TypeError, ["x", "numbers", "hello", "frombuffer"], lambda f: f("hello")),
    "x is None": (TypeError, ["x", "NoneType"], lambda f: f(None)),
    "tokens of rank 3": (ValueError, ["x", "(7, 3, 5)"], lambda f: f(x(dtype="int64"))),
    "tokens of rank 0": (ValueError, ["x", "()"], lambda f: f(np.int64(1))),
    "a token too large": (ValueError, ["x", 5], lambda f: f(np.full((7, 3), 5))),
    "a token far too large": (ValueError, ["x", 2**40], lambda f: f(np.full((7, 3), 2**40))),
    "a token that wraps to a good one": (
        ValueError,
        ["x", 2**32 + 1],
        lambda f: f(np.full((7, 3), 2**32 + 1)),
    ),
    "an unsigned token too large": (
        ValueError,
        ["x", 2**64 - 1],
        lambda f: f(np.full((7, 3), 2**64 - 1, np.uint64)),
    ),
    "a token below zero": (ValueError, ["x", "-1"], lambda f: f(np.full((7, 3), -1))),
    "state not a pair": (TypeError, ["state", "(h, c)"], lambda f: f(x(), h())),
    "state of three": (
        ValueError,
        ["state", "(h, c)", 3],
        lambda f: f(x(), (h(), h(), h())),
    ),
    "state of rank 2": (ValueError, ["(3, 8)", "(2, 3, 8)"], lambda f: f(x(), (h(3, 8), h()))),
    "state of other rows": (
        ValueError,
        ["(2, 4, 8)", "(2, 3, 8)"],
        lambda f: f(x(), (h(), h(2, 4, 8))),
    ),
    "state of other layers": (
        ValueError,
        ["(1, 3, 8)", "(2, 3, 8)"],
        lambda f: f(x(), (h(1, 3, 8), h())),
    ),
    "state of an unbatched x": (
        ValueError,
        ["(2, 1, 8)", "(2, 8)"],
        lambda f: f(x(7, 5), (h(2, 1, 8), h(2, 1, 8))),
    ),
    "state of float64": (
        TypeError,
        ["float64", "float32"],
        lambda f: f(x(), (h(dtype="float64"), h())),
    ),
    "lengths of float": (
        TypeError,
        ["lengths", "float64", "integer"],
        lambda f: f(x(), None, np.array([1.0, 2.0, 3.0])),
    ),
    "lengths of bool": (
        TypeError,
        ["lengths", "bool", "integer"],
        lambda f: f(x(), None, np.array([True, True, False])),
    ),
    "lengths too many": (
        ValueError,
        ["lengths", "(4,)", "(3,)"],
        lambda f: f(x(), None, np.array([1, 2, 3, 4])),
    ),
    "lengths of rank 2": (
        ValueError,
        ["lengths", "(3, 1)", "(3,)"],
        lambda f: f(x(), None, np.array([[1], [2], [3]])),
    ),
    "a length past the steps": (
        ValueError,
        ["lengths", 8, 7],
        lambda f: f(x(), None, np.array([1, 8, 3])),
    ),
    "a length far past the steps": (
        ValueError,
        ["lengths", 2**40, 7],
        lambda f: f(x(), None, np.array([1, 2**40, 3])),
    ),
    "a length below zero": (
        ValueError,
        ["lengths", "-1", 7],
        lambda f: f(x(), None, np.array([1, -1, 3])),
    ),
    "out of another shape": (
        ValueError,
        ["out", "(7, 3, 9)", "(7, 3, 8)"],
        lambda f: f(x(), out=x(7, 3, 9)),
    ),
    "out of another rank": (
        ValueError,
        ["out", "(21, 8)", "(7, 3, 8)"],
        lambda f: f(x(), out=x(21, 8)),
    ),
    "out of float64": (
        TypeError,
        ["out", "float64", "float32"],
        lambda f: f(x(), out=x(7, 3, 8, dtype="float64")),
    ),
    "out is no array": (TypeError, ["out", "list"], lambda f: f(x(), out=[])),
    "out strided": (
        ValueError,
        ["out", "contiguous", "(192, 64, 8)"],
        lambda f: f(x(), out=x(7, 3, 16)[..., ::2]),
    ),
    "out over x": (ValueError, ["out", "x", "memory"], into_memory_of_x),
    "x of foreign byte order": (
        TypeError,
        ["x", "float32", ">f4"],
        lambda f: f(x(dtype=">f4")),
    ),
    "out read-only": (
        ValueError,
        ["out", "writable"],
        lambda f: f(x(), out=np.broadcast_to(np.float32(0), (7, 3, 8))),
    ),
}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("case", CASES)
def test_calls(case: str, mode: str) -> None:
    layer = make("lstm", INPUTS, HIDDEN, LAYERS)
    error, parts, call = CASES[case]
    with pytest.raises(error, match=says(*parts)):
        call(layer if mode == "inference" else layer.forward)
    layer(x())  # and the layer is as good as before


@pytest.mark.parametrize("cell", [c for c in CELLS if reference.CELLS[c].states == 1])
def test_a_pair_for_a_cell_of_one_state(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    with pytest.raises(TypeError, match=says("state", "tuple")):
        layer(x(), (h(), h()))


def test_batch_first_counts_rows_first() -> None:
    layer = make("gru_before", INPUTS, HIDDEN, LAYERS, batch_first=True)
    with pytest.raises(ValueError, match=says("(2, 7, 8)", "(2, 3, 8)")):
        layer(x(3, 7, 5), h(2, 7, 8))
    with pytest.raises(ValueError, match=says("lengths", "(7,)", "(3,)")):
        layer(x(3, 7, 5), None, np.ones(7, int))


def test_lengths_of_an_unbatched_x() -> None:
    layer = make("gru_before", INPUTS, HIDDEN)
    with pytest.raises(ValueError, match=says("lengths")):
        layer(x(7, 5), None, np.array([1, 2]))


@pytest.mark.parametrize(
    ("key", "error"), [(None, ValueError), (1.5, TypeError), ("key", TypeError), (-1, ValueError)]
)
def test_dropout_key(key: Any, error: type[Exception]) -> None:
    layer = make("lstm", INPUTS, HIDDEN, LAYERS, dropout=0.5)
    with pytest.raises(error, match=says("dropout_key", str(key).strip("-"))):
        layer.forward(x(), dropout_key=key)


@pytest.mark.parametrize(
    ("value", "error", "parts"),
    [
        (x(3, 3), ValueError, ["(3, 3)", "(32, 8)"]),
        (h(32, 8, dtype="float64"), TypeError, ["float64", "float32"]),
        ("weights", TypeError, ["numbers", "weights"]),
    ],
    ids=["shape", "dtype", "type"],
)
def test_a_parameter_put_in_the_place_of_another(
    value: Any, error: type[Exception], parts: list[object]
) -> None:
    layer = make("lstm", INPUTS, HIDDEN)
    with pytest.raises(error, match=says("weight_hh_l0", *parts)):
        layer.params["weight_hh_l0"] = value


# --- Tapes ----------------------------------------------------------------------------------------

BACKWARD_CASES: dict[str, tuple[Any, list[object], Any, Any]] = {
    # name -> the error, what its message has, dy, dstate; of an LSTM(5, 8, 2) on (7, 3, 5)
    "dy of another width": (ValueError, ["dy", "(7, 3, 9)", "(7, 3, 8)"], x(7, 3, 9), None),
    "dy of another rank": (ValueError, ["dy", "(3, 8)", "(7, 3, 8)"], x(3, 8), None),
    "dy with time and batch turned": (
        ValueError,
        ["dy", "(3, 7, 8)", "(7, 3, 8)"],
        x(3, 7, 8),
        None,
    ),
    "dy of float64": (
        TypeError,
        ["dy", "float64", "float32"],
        x(7, 3, 8, dtype="float64"),
        None,
    ),
    "dy of integers": (TypeError, ["dy", "int64", "float32"], x(7, 3, 8, dtype="int64"), None),
    "dstate not a pair": (TypeError, ["dstate", "(h, c)"], None, h()),
    "dstate of another shape": (
        ValueError,
        ["dstate", "(2, 3, 9)", "(2, 3, 8)"],
        None,
        (h(2, 3, 9), h()),
    ),
    "dstate of float64": (
        TypeError,
        ["dstate", "float64", "float32"],
        None,
        (h(), h(dtype="float64")),
    ),
}


@pytest.mark.parametrize("case", BACKWARD_CASES)
def test_backward(case: str) -> None:
    error, parts, dy, dstate = BACKWARD_CASES[case]
    _, _, tape = make("lstm", INPUTS, HIDDEN, LAYERS).forward(x())
    with pytest.raises(error, match=says(*parts)):
        tape.backward(dy, dstate)


# --- Streams and plans ----------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_batch_of_a_stream(batch: Any, error: type[Exception]) -> None:
    layer = make("lstm", INPUTS, HIDDEN)
    with pytest.raises(error, match=says("batch", "integer of at least 0", str(batch).strip("-"))):
        layer.stream(batch=batch)


STREAM_CASES: dict[str, tuple[Any, list[object], Callable[[Any], Any]]] = {
    # name -> the error, what its message has, the call on a stream of 3 rows
    "step too wide": (ValueError, ["x", 6, 5], lambda s: s.step(x(3, 6))),
    "step of other rows": (ValueError, ["x", "(4, 5)", "(3, 5)"], lambda s: s.step(x(4, 5))),
    "step of rank 3": (ValueError, ["x", "(1, 3, 5)"], lambda s: s.step(x(1, 3, 5))),
    "step of float64": (
        TypeError,
        ["x", "float64", "float32"],
        lambda s: s.step(x(3, 5, dtype="float64")),
    ),
    "step with a bad token": (ValueError, ["x", 5], lambda s: s.step(np.array([0, 5, 1]))),
    "step into a wrong out": (
        ValueError,
        ["out", "(3, 9)", "(3, 8)"],
        lambda s: s.step(x(3, 5), out=x(3, 9)),
    ),
    "block of other rows": (ValueError, ["x", "(7, 4, 5)", 3], lambda s: s.block(x(7, 4, 5))),
    "state of other rows": (
        ValueError,
        ["(2, 4, 8)", "(2, 3, 8)"],
        lambda s: setattr(s, "state", (h(2, 4, 8), h())),
    ),
    "state of float64": (
        TypeError,
        ["float64", "float32"],
        lambda s: setattr(s, "state", (h(dtype="float64"), h())),
    ),
    "mask of other rows": (
        ValueError,
        ["mask", "(4,)", "(3,)"],
        lambda s: s.reset(np.zeros(4, bool)),
    ),
    "a row twice": (ValueError, ["mask", "different rows"], lambda s: s.reset([0, 0])),
    "mask of numbers": (ValueError, ["mask", "float64"], lambda s: s.reset(np.zeros(3))),
}


@pytest.mark.parametrize("case", STREAM_CASES)
def test_stream(case: str) -> None:
    error, parts, call = STREAM_CASES[case]
    layer = make("lstm", INPUTS, HIDDEN, LAYERS)
    stream = layer.stream(batch=BATCH)
    stream.step(np.ones((BATCH, INPUTS), np.float32))
    before = [s.copy() for s in stream.state]
    with pytest.raises(error, match=says(*parts)):
        call(stream)
    for got, want in zip(stream.state, before, strict=True):
        np.testing.assert_array_equal(got, want)  # an error moves nothing


@pytest.mark.parametrize("sizes", [(0, 3), (7, 0), (1.5, 3), (7, "3")])
def test_plan(sizes: tuple[Any, Any]) -> None:
    layer = make("lstm", INPUTS, HIDDEN)
    with pytest.raises((TypeError, ValueError), match="positive integer"):
        layer.plan(*sizes)


# --- What is no error -----------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_data_goes_through_and_stays_in_its_row(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, LAYERS)
    data = np.random.default_rng(0).standard_normal((7, 3, 5)).astype(np.float32)
    want, _ = layer(data)
    data[2, 1, 0] = np.nan
    y, _ = layer(data)
    np.testing.assert_array_equal(y[:, [0, 2]], want[:, [0, 2]])
    np.testing.assert_array_equal(y[:2], want[:2])
    assert np.all(np.isnan(y[2:, 1]))


def test_states_may_be_none_or_given_by_name() -> None:
    layer = make("lstm", INPUTS, HIDDEN, LAYERS)
    want, _ = layer(x())
    zeros = as_layer_state((h(), h()))
    np.testing.assert_array_equal(layer(x(), state=zeros, lengths=[7, 7, 7])[0], want)


def test_misaligned_arrays_are_copied() -> None:
    layer = rk.LSTM(5, 8, seed=0)
    x = np.random.default_rng(0).standard_normal((7, 3, 5)).astype(np.float32)
    state = (np.ones((1, 3, 8), np.float32), np.ones((1, 3, 8), np.float32))
    want = layer(x, state)[0]
    layer.params.update({name: unaligned(array) for name, array in layer.params.items()})
    got = layer(unaligned(x), (unaligned(state[0]), unaligned(state[1])))[0]
    assert np.array_equal(got, want)


def test_misaligned_out_is_refused() -> None:
    layer = rk.LSTM(5, 8)
    out = unaligned(np.zeros((7, 3, 8), np.float32))
    with pytest.raises(ValueError, match="out must be aligned, got"):
        layer(np.zeros((7, 3, 5), np.float32), out=out)
