# SPDX-License-Identifier: Apache-2.0
"""Packed weights: a tape has those of its forward pass; a kernel refuses others than it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import _core
from rnnkern.devices import LayerSpec

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


@pytest.mark.parametrize("tokens", [False, True])
def test_weights_packed_for_tokens_take_nothing_else(tokens: bool) -> None:
    spec = LayerSpec("rnn_tanh", INPUTS, UNITS)
    w_ih, w_hh = (np.zeros((UNITS, columns), np.float32) for columns in (INPUTS, UNITS))
    network = _core.Network(spec, [(w_ih, w_hh, None, None)]).packed(with_input=False)
    x: Any = np.zeros((STEPS, BATCH), np.int64)
    if not tokens:
        x = np.zeros((STEPS, BATCH, INPUTS), np.float32)
    rest = np.zeros((1, BATCH, UNITS), np.float32), None, np.zeros((STEPS, BATCH, UNITS), "f4")
    if tokens:
        network.forward(x, None, *rest, (), True)
        return
    with pytest.raises(ValueError, match="packed must be of these weights, for this pass"):
        network.forward(x, None, *rest, (), True)


def test_a_network_takes_weights_of_one_kind() -> None:
    def of(units: int, dtype: str) -> Any:
        return *(np.zeros((units, n), dtype) for n in (INPUTS, units)), None, None

    spec = LayerSpec("rnn_tanh", INPUTS, UNITS, directions=2)
    _core.Network(spec, [of(UNITS, "f4"), of(UNITS, "f4")])
    for other, says in ((of(UNITS + 1, "f4"), "of one size"), (of(UNITS, "f8"), "float32 array")):
        with pytest.raises(ValueError, match=says):
            _core.Network(spec, [of(UNITS, "f4"), other])
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"each layer and direction, 2, got {count}"):
            _core.Network(spec, [of(UNITS, "f4")] * count)
    with pytest.raises(ValueError, match="must fit those of the layer below"):
        _core.Network(spec._replace(layers=2, directions=1), [of(UNITS, "f4")] * 2)


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
