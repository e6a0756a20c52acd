# SPDX-License-Identifier: Apache-2.0
"""The gradients of every step's state and gates, and the gates' values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support import reference
from support.compare import assert_close
from support.layers import CELLS, as_layer_state, as_tuple, make, random_state
from support.reference import Array

STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 4, 9
LENGTHS = np.array([3, 6, 0, 1, 6])
TOLERANCE = 1e-12


def inputs(cell: str, layers: int = 1, directions: int = 1) -> tuple[Array, Any, Array, Any]:
    rng = np.random.default_rng(1)
    state = (layers * directions, BATCH, HIDDEN)
    return (
        rng.standard_normal((STEPS, BATCH, INPUTS)),
        as_layer_state(random_state(cell, state, seed=2)),
        rng.standard_normal((STEPS, BATCH, directions * HIDDEN)),
        as_layer_state(random_state(cell, state, seed=3)),
    )


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_gradient_is_that_of_the_rest_of_the_sequence(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, dtype="float64")
    x, state, dy, dstate = inputs(cell)
    _, _, tape = layer.forward(x, state)
    *_, (traced,) = tape.backward(dy, dstate, state_gradients=True)
    output = tape.gates()[0].get("o")
    for t in range(STEPS):
        _, middle = layer(x[: t + 1], state)
        if t + 1 < STEPS:
            _, _, rest = layer.forward(x[t + 1 :], middle)
            d_middle = as_tuple(rest.backward(dy[t + 1 :], dstate)[1])
        else:
            d_middle = as_tuple(dstate)
        dh = dy[t] + d_middle[0][0]
        assert_close("h", traced.h[t], dh, TOLERANCE)
        if len(d_middle) == 2:
            assert output is not None
            assert traced.c is not None
            c = as_tuple(middle)[1][0]
            assert_close(
                "c", traced.c[t], d_middle[1][0] + dh * output[t] * (1 - np.tanh(c) ** 2), TOLERANCE
            )
        else:
            assert traced.c is None


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gate_gradients_make_the_weights_gradients(cell: str, batch_first: bool) -> None:
    layer = make(
        cell, INPUTS, HIDDEN, 2, bidirectional=True, dtype="float64", batch_first=batch_first
    )
    x, state, dy, dstate = inputs(cell, 2, 2)
    if batch_first:
        x, dy = x.swapaxes(0, 1), dy.swapaxes(0, 1)
    _, _, tape = layer.forward(x, state, LENGTHS)
    plain = tape.backward(dy, dstate)
    dx, dfirst, grads, traced = tape.backward(dy, dstate, state_gradients=True)
    np.testing.assert_array_equal(dx, plain[0])
    for got, want in zip(as_tuple(dfirst), as_tuple(plain[1]), strict=True):
        np.testing.assert_array_equal(got, want)
    assert len(traced) == 2
    past = np.arange(STEPS) >= LENGTHS[:, None]
    for index, one in enumerate(traced):
        assert tuple(one.gates) == layer.gates
        arrays = [one.h, *one.gates.values()] + ([] if one.c is None else [one.c])
        for array in arrays:
            by_row = array if batch_first else array.swapaxes(0, 1)
            assert not np.any(by_row[past])
            if cell not in ("rnn_relu", "ind_rnn"):  # whose derivative is 0 for half of all units
                assert np.all(by_row[~past] != 0)
        for direction, suffix in enumerate(("", "_reverse")):
            columns = slice(direction * HIDDEN, (direction + 1) * HIDDEN)
            da = np.concatenate([g[..., columns] for g in one.gates.values()], axis=-1)
            bias = grads[f"bias_l{index}{suffix}"]
            assert_close("bias", da.sum((0, 1)), bias, TOLERANCE)
            if index == 0:
                weight = grads[f"weight_ih_l0{suffix}"]
                assert_close("weight_ih", np.einsum("tbg,tbi->gi", da, x), weight, TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_those_of_the_reference(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, bidirectional=True, dtype="float64")
    x, state, _, _ = inputs(cell, 1, 2)
    _, _, tape = layer.forward(x, state, LENGTHS)
    (gates,) = tape.gates()
    assert tuple(gates) == layer.gates
    oracle = reference.Tape(cell, layer.params, x, as_tuple(state), LENGTHS)
    for number, direction in enumerate(oracle.directions):
        columns = slice(number * HIDDEN, (number + 1) * HIDDEN)
        for t, live, _, saved in direction.saved:
            wanted = saved[direction.cell.states :]
            for (name, array), want in zip(gates.items(), wanted, strict=False):
                assert_close(name, array[t, :, columns], np.where(live, want, 0.0), TOLERANCE)


def test_an_unbatched_sequence_is_traced_unbatched() -> None:
    layer = make("lstm", INPUTS, HIDDEN, dtype="float64")
    x = inputs("lstm")[0][:, 0]
    y, _, tape = layer.forward(x)
    *_, (traced,) = tape.backward(np.ones_like(y), state_gradients=True)
    assert traced.h.shape == y.shape
    assert tape.gates()[0]["u"].shape == y.shape


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_a_large_batch_keep_their_places(cell: str) -> None:
    """Forty rows of three lengths: a sort that is not stable mixes those of one length up."""
    layer = make(cell, INPUTS, HIDDEN, dtype="float64")
    x = np.random.default_rng(1).standard_normal((3, 40, INPUTS))
    lengths = np.random.default_rng(2).integers(1, 4, 40)
    y, _, tape = layer.forward(x, None, lengths)
    *_, (traced,) = tape.backward(y, state_gradients=True)
    (gates,) = tape.gates()
    for b, n in enumerate(lengths):
        y_alone, _, alone = layer.forward(x[:n, b : b + 1])
        *_, (traced_alone,) = alone.backward(y_alone, state_gradients=True)
        assert_close("h", traced.h[:n, b], traced_alone.h[:, 0], TOLERANCE)
        for name, values in alone.gates()[0].items():
            assert_close(name, gates[name][:n, b], values[:, 0], TOLERANCE)
