# SPDX-License-Identifier: Apache-2.0
"""Layers by a cell's name, and all that they compute held against reference.py."""

from __future__ import annotations

from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern.cells import CELLS as REGISTRY

from support import reference
from support.compare import assert_close, assert_same_bits
from support.reference import Array, State

CELLS = list(reference.CELLS)
# Those with a recurrent product: the GPU's kernels, and others' formats, have no other.
WITH_PRODUCT = [name for name, cell in reference.CELLS.items() if cell.recurrent == "weight_hh"]
WITHOUT_PRODUCT = [name for name in CELLS if name not in WITH_PRODUCT]

DTYPES = ["float32", "float64"]

# Norm-wise relative error against the float64 reference, on up to 50 steps.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# By the kernels' names: the registry's, and the one that has no name of its own there.
CLASSES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    **{cell.build(1, 1)._cell: (cell.layer, {**cell.options}) for cell in REGISTRY.values()},
    "rnn_relu": (rk.RNN, {"nonlinearity": "relu"}),
}
KINDS_WITHOUT_PRODUCT = [CLASSES[name][0] for name in WITHOUT_PRODUCT]


# A layer of any class: the classes share no base that the tests may count on.
def make(cell: str, *sizes: int, **options: Any) -> Any:
    """A layer with every parameter drawn anew, sizes as the constructors take them.

    Scaled by the number of columns, so that no size drives a unit so far into saturation that its
    float32 derivative is ill-conditioned.
    """
    cls, fixed = CLASSES[cell]
    layer = cls(*sizes, **fixed, **options)
    rng = np.random.default_rng(options.get("seed", 0))
    for name, p in layer.params.items():
        p[...] = rng.uniform(-1.0, 1.0, p.shape) / (np.sqrt(p.shape[1]) if p.ndim == 2 else 2.0)
        if name.startswith("weight_u"):  # no sum of columns: powers of small ones vanish
            p[...] = np.copysign(0.5 + rng.uniform(0.0, 0.5, p.shape), p)
    return layer


def as_tuple(state: Any) -> State:
    """A layer's state, ``h`` or ``(h, c)``, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def as_layer_state(state: State | None) -> Any:
    """A tuple of states as a layer takes them, ``h`` or ``(h, c)``."""
    return state[0] if state is not None and len(state) == 1 else state


def draw(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Random numbers of the normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def random_state(cell: str, shape: tuple[int, ...], seed: int = 0) -> State:
    """Random states, float64, ``(h,)`` or ``(h, c)``."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape) for _ in range(reference.CELLS[cell].states))


def cast(state: State, dtype: str) -> State:
    """The same states in another dtype."""
    return tuple(s.astype(dtype) for s in state)


def arrays(layer: Any, steps: int, batch: int) -> tuple[Array, State, Array, State]:
    """x, a first state, dy and dstate, of random numbers, of a layer whose x begins with steps."""
    rng = np.random.default_rng(2)

    def drawn(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(layer.dtype)

    x = drawn(steps, batch, layer.input_size)
    shapes = [part.shape for part in as_tuple(layer(x[:1])[1])]
    state = tuple(drawn(*shape) for shape in shapes)
    dy = drawn(steps, batch, layer.output_size)
    return x, state, dy, tuple(drawn(*shape) for shape in shapes)


def computed(
    layer: Any, x: Array, state: State | None, dy: Array, dstate: State | None, **options: Any
) -> dict[str, Array]:
    """All that ``forward`` and its backward pass give, by name: "h_n", "dh_0", "dweight_hh_l0"."""
    y, last, tape = layer.forward(x, as_layer_state(state), **options)
    gradients = tape.backward(dy, as_layer_state(dstate))
    found = {"y": y, **{f"d{name}": array for name, array in gradients.params.items()}}
    if gradients.x is not None:
        found["dx"] = gradients.x
    for letter, end, first in zip("hc", as_tuple(last), as_tuple(gradients.state), strict=False):
        found |= {f"{letter}_n": end, f"d{letter}_0": first}
    return found


def check_against_reference(
    layer: Any,
    cell: str,
    x: Array,
    *,
    state: State | None = None,
    lengths: Array | None = None,
    dy: Array | None = None,
    dstate: State | None = None,
    tolerance: float | None = None,
) -> None:
    """Inference, training forward and every gradient of ``layer`` agree with reference.py."""
    dtype = layer.dtype
    if tolerance is None:
        # Of few relu units most terms of a gradient are 0, and those that are left may cancel.
        tolerance = TOLERANCE[dtype.name] * (3.0 if cell == "ind_rnn" else 1.0)
    state = None if state is None else cast(state, dtype.name)
    dstate = None if dstate is None else cast(dstate, dtype.name)
    dy = None if dy is None else dy.astype(dtype)
    ways = {"reverse": layer.reverse, "merge": layer.merge}
    oracle = reference.Tape(cell, layer.params, x, state, lengths, **ways)

    y, last = layer(x, as_layer_state(state), lengths)
    y_again, last_again, tape = layer.forward(x, as_layer_state(state), lengths)
    for name, got, want, again in [
        ("y", y, oracle.y, y_again),
        *zip(("h_n", "c_n"), as_tuple(last), oracle.state, as_tuple(last_again), strict=False),
    ]:
        assert got.dtype == dtype, f"{name} is {got.dtype}"
        assert_close(name, got, want, tolerance)
        assert_same_bits(f"{name} of inference and of training", got, again)

    # A relu whose input rounds to the other side of zero has another derivative: not an error.
    if cell in ("rnn_relu", "ind_rnn"):
        own = [gates["h"] > 0 for gates in tape.gates()]
        theirs = [np.concatenate(outputs, axis=-1) > 0 for outputs in oracle.outputs]
        if any(np.any(a != b) for a, b in zip(own, theirs, strict=True)):
            return
    want_dx, want_dfirst, want_grads = oracle.backward(dy, dstate)
    dx, dfirst, grads = tape.backward(dy, as_layer_state(dstate))
    if want_dx is None:
        assert dx is None
    else:
        assert_close("dx", dx, want_dx, tolerance)
    for name, got, want in zip(("dh_0", "dc_0"), as_tuple(dfirst), want_dfirst, strict=False):
        assert_close(name, got, want, tolerance)
    assert grads.keys() == layer.params.keys()
    for name, want in want_grads.items():
        assert grads[name].dtype == dtype
        assert_close(name, grads[name], want, tolerance)


def forward_by(
    implementation: str,
    cell: str,
    params: dict[str, Array],
    x: Array,
    state: State | None = None,
    lengths: Array | None = None,
    *,
    reverse: bool = False,
) -> tuple[Array, State]:
    """Run parameters that came from elsewhere through "reference" or through "rnnkern"."""
    if implementation == "reference":
        oracle = reference.Tape(cell, params, x, state, lengths, reverse=reverse)
        return oracle.y, oracle.state
    endings = reference.suffixes(params)
    both = any(e.endswith("_reverse") for e in endings)
    layer = make(
        cell,
        params["weight_ih_l0"].shape[1],
        params["weight_hh_l0"].shape[1],
        len(endings) // (2 if both else 1),
        bidirectional=both,
        reverse=reverse,
        bias="bias_l0" in params,
        dtype=params["weight_ih_l0"].dtype.name,
    )
    assert layer.params.keys() == params.keys()
    for name, p in layer.params.items():
        assert p.shape == params[name].shape
        p[...] = params[name]
    y, last = layer(x, as_layer_state(state), lengths)
    return y, as_tuple(last)


def run_all(layer: Any, cell: str, x: Array, lengths: Array | None, key: int | None) -> list[Array]:
    """Everything that a call computes, with all upstream gradients."""
    steps, batch = x.shape[:2]
    dtype = layer.dtype.name
    rng = np.random.default_rng(5)
    plain_y, plain_last = layer(x, None, lengths)
    shape = as_tuple(plain_last)[0].shape
    state = as_layer_state(cast(random_state(cell, shape), dtype))
    y, last, tape = layer.forward(x, state, lengths, dropout_key=key)
    dy = rng.standard_normal((steps, batch, y.shape[2])).astype(dtype)
    dstate = as_layer_state(cast(random_state(cell, shape, seed=1), dtype))
    dx, dfirst, grads = tape.backward(dy, dstate)
    of_x = [] if dx is None else [dx]
    return [
        plain_y,
        *as_tuple(plain_last),
        y,
        *as_tuple(last),
        *of_x,
        *as_tuple(dfirst),
        *grads.values(),
    ]
