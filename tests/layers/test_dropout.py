# SPDX-License-Identifier: Apache-2.0
"""Dropout between layers: what is dropped, when, and that a key says it all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support import reference
from support.compare import assert_close, assert_same_bits
from support.layers import CELLS, TOLERANCE, as_tuple, make
from support.reference import Array
from support.threads import using_threads

STEPS, BATCH, HIDDEN = 6, 10, 16


def masks(layer: Any, key: int, steps: int = STEPS, batch: int = BATCH) -> Array:
    """The factors that a relu RNN puts on what goes into its last layer, (T, B, D*H).

    The first layer is made to give ones, the last to pass its input on, those between likewise;
    so with three layers it is the product of the two masks.
    """
    saved = {name: p.copy() for name, p in layer.params.items()}
    hidden = layer.params["weight_hh_l0"].shape[1]
    for name, p in layer.params.items():
        first = "_l0" in name
        p[...] = 1.0 if first and name.startswith("bias") else 0.0
        if name.startswith("weight_ih") and not first:
            half = slice(hidden, None) if name.endswith("_reverse") else slice(0, hidden)
            p[:, half] = np.eye(hidden)
    first_weight = layer.params["weight_ih_l0"]
    x = np.zeros((steps, batch, first_weight.shape[1]), first_weight.dtype)
    y: Array = layer.forward(x, dropout_key=key)[0]
    for name, p in layer.params.items():
        p[...] = saved[name]
    return y


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_factors_keep_the_mean(dropout: float, bidirectional: bool) -> None:
    layer = make("rnn_relu", 3, HIDDEN, 2, dropout=dropout, bidirectional=bidirectional)
    factors = masks(layer, 5, steps=50, batch=40)
    kept = factors != 0.0
    np.testing.assert_allclose(factors[kept], 1.0 / (1.0 - dropout), rtol=1e-6)
    # Of every unit, row and step alike, within five standard deviations.
    for axes in ((), (0,), (1,), (2,)):
        others = tuple(a for a in range(3) if a not in axes) or None
        count = kept.size // int(np.prod([kept.shape[a] for a in axes], dtype=int))
        deviation = np.sqrt(dropout * (1.0 - dropout) / count)
        share = np.mean(kept, axis=others)
        np.testing.assert_allclose(share, 1.0 - dropout, atol=5.0 * deviation)


def test_no_two_steps_rows_units_layers_or_keys_share_a_mask() -> None:
    layer = make("rnn_relu", 3, HIDDEN, 2, dropout=0.5)
    factors = masks(layer, 5)
    for axis in range(3):
        slices = {s.tobytes() for s in np.moveaxis(factors, axis, 0)}
        assert len(slices) == factors.shape[axis]
    # Products of two independent masks: a quarter survives, not a half.
    both = masks(make("rnn_relu", 3, HIDDEN, 3, dropout=0.5), 5, steps=50, batch=40)
    assert abs(np.mean(both != 0.0) - 0.25) < 0.02
    keys = [0, 1, 2, 5, 2**32, 2**63 - 1]
    distinct = {masks(layer, key).tobytes() for key in keys}
    assert len(distinct) == len(keys)
    # Neighbouring keys are no shifts of one another.
    agreement = np.mean((masks(layer, 1) != 0.0) == (masks(layer, 2) != 0.0))
    assert abs(agreement - 0.5) < 0.1


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_the_reference_with_the_same_masks(dtype: str, bidirectional: bool) -> None:
    options = {"dropout": 0.3, "bidirectional": bidirectional, "dtype": dtype}
    layer = make("rnn_relu", 5, HIDDEN, 2, **options)
    factors = masks(layer, 9)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, 5)).astype(dtype)
    oracle = reference.Tape("rnn_relu", layer.params, x, masks=[factors])
    y, last, tape = layer.forward(x, dropout_key=9)
    assert_close("y", y, oracle.y, TOLERANCE[dtype])
    for got, want in zip(as_tuple(last), oracle.state, strict=True):
        assert_close("state", got, want, TOLERANCE[dtype])
    dy = rng.standard_normal(y.shape).astype(dtype)
    want_dx, _, want_grads = oracle.backward(dy)
    assert want_dx is not None
    dx, _, grads = tape.backward(dy)
    assert_close("dx", dx, want_dx, TOLERANCE[dtype])
    for name, want in want_grads.items():
        assert_close(name, grads[name], want, TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
def test_a_key_says_it_all(cell: str) -> None:
    layer = make(cell, 5, 33, 3, dropout=0.4, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, 5), dtype=np.float32)
    want, _, _ = layer.forward(x, dropout_key=3)
    other, _, _ = layer.forward(x, dropout_key=4)
    assert not np.allclose(want, other)
    for threads in (1, 2, 4):
        with using_threads(threads):
            again, _, _ = layer.forward(x, dropout_key=3)
        assert_same_bits(f"{threads} threads", again, want)


@pytest.mark.parametrize("cell", CELLS)
def test_inference_drops_nothing(cell: str) -> None:
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, 5), dtype=np.float32)
    y, last = make(cell, 5, HIDDEN, 2, dropout=0.5)(x)
    want, want_last = make(cell, 5, HIDDEN, 2)(x)
    assert_same_bits("y", y, want)
    for got, w in zip(as_tuple(last), as_tuple(want_last), strict=True):
        assert_same_bits("state", got, w)


@pytest.mark.parametrize("cell", CELLS)
def test_only_what_goes_between_layers_is_dropped(cell: str) -> None:
    """Neither the last layer's output, nor any state, nor the first layer itself."""
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, 5), dtype=np.float32)
    layer = make(cell, 5, HIDDEN, 2, dropout=0.5)
    plain, plain_last = layer(x)
    y, last, _ = layer.forward(x, dropout_key=3)
    assert not np.allclose(y, plain)
    assert_same_bits("h_n", y[-1], as_tuple(last)[0][1])
    if cell not in ("rnn_relu", "ind_rnn"):
        assert np.all(y)
    for got, want in zip(as_tuple(last), as_tuple(plain_last), strict=True):
        assert_same_bits("the first layer's state", got[0], want[0])

    with pytest.warns(UserWarning, match="dropout=0.5 does nothing with num_layers=1"):
        single = make(cell, 5, HIDDEN, 1, dropout=0.5)
    assert_same_bits("one layer", single.forward(x, dropout_key=3)[0], single(x)[0])
