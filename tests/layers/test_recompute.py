# SPDX-License-Identifier: Apache-2.0
"""forward(recompute=k): the same numbers from every k-th state alone."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.layers import CELLS, DTYPES, as_layer_state, as_tuple, cast, make, random_state

STEPS, BATCH, INPUTS = 23, 3, 5
SUMS = {"float32": 2e-6, "float64": 1e-14}  # sums in another order, norm-wise


def _x(dtype: str = "float32", steps: int = STEPS) -> Any:
    return np.random.default_rng(0).standard_normal((steps, BATCH, INPUTS)).astype(dtype)


def _check(layer: Any, cell: str, x: Any, every: int, lengths: Any = None, **options: Any) -> None:
    """Both passes, from random states and with all gradients, with and without recompute."""
    dtype = layer.dtype.name
    last = as_tuple(layer(x, None, lengths)[1])
    state = as_layer_state(cast(random_state(cell, last[0].shape), dtype))
    plain = layer.forward(x, state, lengths, **options)
    sparse = layer.forward(x, state, lengths, recompute=every, **options)
    dy = np.random.default_rng(1).standard_normal(plain[0].shape).astype(dtype)
    dstate = as_layer_state(cast(random_state(cell, last[0].shape, seed=2), dtype))
    dlast = np.ones_like(layer.last_output(*plain[:2]))
    want, got = (tape.backward(dy, dstate, dlast=dlast) for _, _, tape in (plain, sparse))
    assert_same_bits("y", sparse[0], plain[0])
    for name, mine, theirs in (("last", sparse[1], plain[1]), ("first", got.state, want.state)):
        for a, b in zip(as_tuple(mine), as_tuple(theirs), strict=True):
            assert_same_bits(name, a, b)
    if x.ndim == 3:
        assert_same_bits("dx", got.x, want.x)
    for name, array in want.params.items():
        assert_close(name, got.params[name], array, SUMS[dtype])
    again = sparse[2].backward(dy, dstate, dlast=dlast)
    for name, array in got.params.items():
        assert_same_bits(name, again.params[name], array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_of_every_cell(cell: str, dtype: str) -> None:
    _check(make(cell, INPUTS, 9, dtype=dtype), cell, _x(dtype), 5)


@pytest.mark.parametrize("every", [1, 4, STEPS, 10 * STEPS])
@pytest.mark.parametrize("lengths", [None, [STEPS, 0, 9]])
def test_of_any_k_and_lengths_in_a_stack_with_dropout(every: int, lengths: Any) -> None:
    layer = make("lstm", INPUTS, 7, 3, dropout=0.4)
    _check(layer, "lstm", _x(), every, lengths, dropout_key=3)


@pytest.mark.parametrize("lengths", [None, [STEPS, 0, 9]])
@pytest.mark.parametrize(
    "options",
    [
        {"reverse": True},
        {"bidirectional": True},
        *({"bidirectional": True, "merge": m} for m in ("sum", "average", "product")),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_of_other_directions(options: dict[str, Any], lengths: Any) -> None:
    layer = make("gru_after", INPUTS, 7, 3, dropout=0.4, **options)
    _check(layer, "gru_after", _x(), 4, lengths, dropout_key=3)


def test_of_tokens_and_bfloat16_and_batch_first() -> None:
    tokens = np.random.default_rng(3).integers(0, INPUTS, (BATCH, STEPS))
    _check(
        make("gru_after", INPUTS, 9, batch_first=True, compute="bfloat16"), "gru_after", tokens, 7
    )


def test_the_weights_are_those_of_the_forward_pass() -> None:
    layer, x = make("gru_before", INPUTS, 9), _x()
    y, _, tape = layer.forward(x, recompute=6)
    want = tape.backward(np.ones_like(y))
    for p in layer.params.values():
        p += 1.0
    assert_same_bits("dx", copy.deepcopy(tape).backward(np.ones_like(y)).x, want.x)


def test_long_sums_are_taken_by_parts() -> None:
    """More rows than are summed by themselves, in many pieces."""
    layer = make("rnn_tanh", INPUTS, 4)
    x = _x(steps=12000)
    y, _, tape = layer.forward(x)
    want = tape.backward(np.ones_like(y)).params
    got = layer.forward(x, recompute=100)[2].backward(np.ones_like(y)).params
    for name, array in want.items():
        assert_close(name, got[name], array, SUMS["float32"])


def test_what_is_kept_is_small() -> None:
    layer, x = make("lstm", INPUTS, 64), _x(steps=1000)

    def kept(**options: Any) -> int:
        tracemalloc.start()
        y, _, tape = layer.forward(x, **options)
        tape.backward(y[:1].repeat(len(y), 0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    of_y = 1000 * BATCH * 64 * 4
    assert kept() > 6 * of_y  # y, dy, four gates and c
    assert kept(recompute=32) < 3 * of_y


def test_of_a_stack_and_a_model() -> None:
    x = _x()
    stack = rk.Stack([rk.GRU(INPUTS, 5, 2, seed=0), rk.LSTM(5, 5, seed=1)], residual=True)
    y, _, tape = stack.forward(x)
    want = tape.backward(y)
    got = stack.forward(x, recompute=4)[2].backward(y)
    assert got.x is not None
    assert want.x is not None
    assert_same_bits("dx", got.x, want.x)
    model = rk.Model(stack, rk.Linear(5, 2, seed=2), readout="last", loss="mse")
    targets = np.ones((BATCH, 2), np.float32)
    loss, grads = model.loss_and_grads(x, targets, recompute=4)
    plain, of_plain = model.loss_and_grads(x, targets)
    assert loss == plain
    for name, array in of_plain.params.items():
        assert_close(name, grads.params[name], array, SUMS["float32"])


def test_empty_calls_and_unbatched_ones() -> None:
    layer = make("lstm", INPUTS, 4)
    y, _, tape = layer.forward(_x()[:0], recompute=4)
    assert not tape.backward(y).params["weight_hh_l0"].any()
    one = _x()[:, 0]
    y, _, tape = layer.forward(one, recompute=4)
    assert_same_bits("dx", tape.backward(y).x, layer.forward(one)[2].backward(y).x)


def test_what_is_refused() -> None:
    layer, x = make("lstm", INPUTS, 4), _x()
    with pytest.raises(ValueError, match="recompute must be a positive integer, got 0"):
        layer.forward(x, recompute=0)
    with pytest.raises(TypeError, match="recompute must be"):
        layer.forward(x, recompute=2.0)
    y, _, tape = layer.forward(x, recompute=4)
    with pytest.raises(ValueError, match=r"gates\(\) needs a tape that kept every step"):
        tape.gates()
    with pytest.raises(ValueError, match="state_gradients needs a tape that kept every step"):
        tape.backward(y, state_gradients=True)
