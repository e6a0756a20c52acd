# SPDX-License-Identifier: Apache-2.0
"""Nothing that can be called from Python reads or writes memory that is not the call's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core

from support.kernel_arguments import (
    BATCH,
    SPEC,
    STEPS,
    UNITS,
    forward,
    forward_arguments,
    network,
    weights,
)
from support.layers import draw
from support.processes import run_python
from support.reference import Array

# --- What is no array of the right kind -----------------------------------------------------------


def backward_arguments() -> dict[str, Any]:
    given = forward_arguments()
    forward(**given)
    return {
        "x": given["x"],
        "y": given["y"],
        "dy": draw(STEPS, BATCH, UNITS),
        "dh": draw(1, BATCH, UNITS),
        "dc": draw(1, BATCH, UNITS),
        "dx": np.zeros_like(given["x"]),
        **{"d" + name: np.zeros_like(array) for name, array in weights().items()},
        "state_gradients": np.zeros((7, 6, UNITS), np.float32),
    }


def backward(
    x: Any, y: Any, dy: Any, dh: Any, dc: Any, dx: Any, state_gradients: Any, **gradients: Any
) -> None:
    kept = forward(**forward_arguments())
    kept.backward(x, y, dy, dh, dc, dx, [tuple(gradients.values())], [state_gradients])


def loss_arguments() -> dict[str, Any]:
    return {
        "logits": draw(6, 3),
        "targets": np.array([0, 1, 2, 2, 1, 0]),
        "mask": np.array([True, False] * 3),
        "weight": 1.0,
        "gradient": np.zeros((6, 3), np.float32),
    }


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], set[str]]] = {
    # name -> function, its arguments, those that are written
    "forward": (forward, forward_arguments, {"h", "c", "y"}),
    "backward": (
        backward,
        backward_arguments,
        {"dh", "dc", "dx", "dweight_ih", "dweight_hh", "dbias", "dbias_hn", "state_gradients"},
    ),
    "Network": (network, weights, set()),
    "matmul": (
        _core.matmul,
        lambda: {"a": draw(2, 3), "b": draw(3, 4), "bias": draw(4), "out": draw(2, 4)},
        {"out"},
    ),
    "softmax_cross_entropy": (_core.softmax_cross_entropy, loss_arguments, {"gradient"}),
    "adam": (
        _core.adam,
        lambda: {
            **{name: np.ones(5, np.float32) for name in ("p", "g", "first", "second")},
            **dict.fromkeys(("decay", "first_beta", "second_beta", "epsilon", "rate"), 0.5),
        },
        {"p", "first", "second"},
    ),
    "sum_of_squares": (_core.sum_of_squares, lambda: {"x": draw(5)}, set()),
    "add_by_token": (
        _core.add_by_token,
        lambda: {
            "tokens": np.array([0, 3, 1]),
            "rows": draw(3, 5),
            "sums": np.zeros((4, 5), np.float32),
        },
        {"sums"},
    ),
}


def unaligned(array: Array) -> Array:
    room = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype)
    room[...] = array.reshape(-1)
    return room.reshape(array.shape)


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


CHANGES: dict[str, Callable[[Array], Any]] = {
    "a list": lambda a: a.tolist(),
    "a memoryview": lambda a: a.data,
    "of another byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "of another dtype": lambda a: a.astype(np.float16),
    "unaligned": unaligned,
    "of another shape": lambda a: a[..., None],
    "empty": lambda a: a[:0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_converted(call: str, change: str) -> None:
    """A conversion's result would be freed before the kernel reads it, or be written in vain."""
    function, arguments, _ = CALLS[call]
    function(**arguments())
    for name, value in arguments().items():
        if not isinstance(value, np.ndarray) or (value.dtype == bool and change != "a list"):
            continue
        if call in ("adam", "sum_of_squares") and change in ("of another shape", "empty"):
            continue  # they take any shape
        print("with", name)
        with pytest.raises((TypeError, ValueError)):
            function(**{**arguments(), name: CHANGES[change](value)})


@pytest.mark.parametrize("call", [name for name, (*_, written) in CALLS.items() if written])
def test_what_is_read_only_is_not_written(call: str) -> None:
    function, arguments, written = CALLS[call]
    for name in written:
        given = arguments()
        with pytest.raises(ValueError, match=f"{name} must be writable"):
            function(**{**given, name: read_only(given[name])})


def test_a_stepper_keeps_to_arrays() -> None:
    own = list(weights().values())
    h, c = draw(1, BATCH, UNITS), draw(1, BATCH, UNITS)
    _core.Stepper(SPEC, [tuple(own)], h, c)
    for k in range(3):
        given: Any = tuple(
            w.astype(np.float64).tolist() if i == k else w for i, w in enumerate(own)
        )
        with pytest.raises(TypeError, match="must be a NumPy array"):
            _core.Stepper(SPEC, [given], h, c)
    wrong: list[Any] = [[], [()], [tuple(own[:2])], [own]]
    for layers in wrong:
        with pytest.raises(ValueError, match="weights must"):
            _core.Stepper(SPEC, layers, h, c)


def test_a_parameter_that_is_no_array() -> None:
    """This was a use after free: the numbers were those of whatever came to lie there."""
    layer = rk.Linear(4, 300, dtype="float64")
    layer.params["bias"] = [1.0] * 300
    assert np.all(layer(np.zeros((1, 4))) == 1.0)
    bias: Any = [1.0] * 300
    with pytest.raises((TypeError, ValueError), match="bias must be"):
        _core.matmul(np.zeros((1, 4)), np.zeros((4, 300)), bias=bias)


# --- What another thread changes meanwhile --------------------------------------------------------

RACES = {
    "targets": """
        targets, gradient = np.zeros(2000, np.int64), np.zeros((2000, 50), np.float32)
        shared, wild = targets, 2**40
        logits = np.ones((2000, 50), np.float32)
        call = lambda: _core.softmax_cross_entropy(logits, targets, None, 1.0, gradient)
    """,
    "an embedding's tokens": """
        tokens, rows = np.zeros(2000, np.int64), np.ones((2000, 50), np.float32)
        shared, wild = tokens, 2**40
        sums = np.zeros((7, 50), np.float32)
        call = lambda: _core.add_by_token(tokens, rows, sums)
    """,
    "a mask": """
        targets, gradient = np.full(2000, 2**40), np.zeros((2000, 50), np.float32)
        mask = np.zeros(2000, bool)
        shared, wild = mask, True
        logits = np.ones((2000, 50), np.float32)
        call = lambda: _core.softmax_cross_entropy(logits, targets, mask, 1.0, gradient)
    """,
    "a stream's tokens": """
        stream = rk.LSTM(5, 16).stream(2000)
        shared, wild = np.zeros(2000, np.int64), 2**40
        call = lambda: stream.step(shared)
    """,
    "a layer's tokens": """
        layer = rk.LSTM(5, 8)
        shared, wild = np.zeros((100, 20), np.int64), 2**40
        call = lambda: layer.forward(shared)[2].backward()
    """,
    "lengths": """
        layer, x = rk.GRU(5, 8), np.zeros((50, 100, 5), np.float32)
        shared, wild = np.full(100, 50), 2**40
        call = lambda: layer.forward(x, None, shared)[2].backward()
    """,
}


@pytest.mark.parametrize("what", RACES)
def test_indices_may_change_meanwhile(what: str) -> None:
    """A child checks them, releases the GIL, and must not look at them again."""
    lines = [line[8:] for line in RACES[what].splitlines()]
    code = """
import sys, threading, time
import numpy as np, rnnkern as rk
from rnnkern import _core
sys.setswitchinterval(1e-5)
{}
done = threading.Event()
def scribble():
    while not done.is_set():
        shared[...] = wild
        shared[...] = 0
thread = threading.Thread(target=scribble)
thread.start()
calls = refused = 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    calls += 1
    try:
        call()
    except ValueError:
        refused += 1
done.set()
thread.join()
print("done", calls, refused)
"""
    child = run_python(code.format("\n".join(lines)))
    assert child.returncode == 0, child
    assert child.stdout.startswith("done"), child
