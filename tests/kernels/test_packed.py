# SPDX-License-Identifier: Apache-2.0
"""Packed weights: a tape has those of its forward pass; a kernel refuses others than it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import _core

from support.layers import CELLS, make

UNITS, INPUTS, STEPS, BATCH = 5, 3, 4, 2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_tape_keeps_the_weights_of_its_forward_pass(cell: str, tokens: bool) -> None:
    layer = make(cell, INPUTS, UNITS, 2, bidirectional=True)
    random = np.random.default_rng(0)
    x: Any = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    if tokens:
        x = random.integers(0, INPUTS, (STEPS, BATCH))
    y, _, tape = layer.forward(x)
    before = tape.backward(y)
    for array in layer.params.values():
        array[...] = np.nan
    after = tape.backward(y)
    if not tokens:
        np.testing.assert_array_equal(after[0], before[0])
    for name, gradient in before[2].items():
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(after[2][name], gradient)


def packed(cell: str = "rnn_tanh", units: int = UNITS, dtype: str = "float32", **how: Any) -> Any:
    w_ih, w_hh = (np.zeros((units, columns), dtype) for columns in (INPUTS, units))
    return _core.Packed(cell, w_ih, w_hh, None, None, **how)


def state(dtype: str = "float32") -> Any:
    return np.zeros((BATCH, UNITS), dtype)


def x_and_y() -> tuple[Any, Any]:
    x, y = (np.zeros((STEPS, BATCH, n), np.float32) for n in (INPUTS, UNITS))
    return x, y


MISFITS = [
    ({"cell": "rnn_relu"}, "packed must be of these weights, for this pass and compute"),
    ({"units": UNITS + 1}, "packed must be of these weights"),
    ({"compute": "bfloat16"}, "packed must be of these weights"),
    ({"with_input": False}, "packed must be of these weights"),
    ({"dtype": "float64"}, "packed must have the dtype"),
]


@pytest.mark.parametrize(("how", "says"), [*MISFITS, ({"backward": True}, "for this pass")])
def test_a_forward_pass_refuses_other_weights(how: dict[str, Any], says: str) -> None:
    x, y = x_and_y()
    weights = np.zeros((UNITS, INPUTS), np.float32), np.zeros((UNITS, UNITS), np.float32)
    with pytest.raises(ValueError, match=says):
        _core.forward(
            "rnn_tanh", x, state(), None, *weights, None, None, None, False, y, False, packed(**how)
        )


@pytest.mark.parametrize(("how", "says"), [*MISFITS, ({"backward": False}, "for this pass")])
def test_a_backward_pass_refuses_other_weights(how: dict[str, Any], says: str) -> None:
    x, y = x_and_y()
    rest = (None, None, y, state(), None, np.zeros_like(x))
    gradients = np.zeros((UNITS, INPUTS), np.float32), np.zeros((UNITS, UNITS), np.float32)
    with pytest.raises(ValueError, match=says):
        _core.backward(
            "rnn_tanh",
            x,
            state(),
            None,
            packed(**{"backward": True, **how}),
            None,
            False,
            y,
            *rest,
            *gradients,
            None,
            None,
        )


def test_a_packed_matrix_refuses_what_does_not_fit() -> None:
    matrix = np.arange(10, dtype=np.float32).reshape(5, 2)
    for bad in (matrix[0], matrix[:0], np.float32(1)):
        with pytest.raises(ValueError, match="matrix must have 2 axes and at least one row"):
            _core.PackedMatrix(np.asarray(bad), None)
    with pytest.raises(ValueError, match=r"bias must be a float32 array of shape \(5,\)"):
        _core.PackedMatrix(matrix, np.zeros(2, np.float32))
    packed = _core.PackedMatrix(matrix, np.ones(5, np.float32))
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(packed.times(x), x @ matrix.T + 1.0)
    assert packed.times(x[:0]).shape == (0, 5)
    for wrong in (x.T, x[0], x.astype(np.float64), x[:, ::-1]):
        with pytest.raises(ValueError, match="x must be"):
            packed.times(wrong)
