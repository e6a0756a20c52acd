# SPDX-License-Identifier: Apache-2.0
"""What a stack refuses, and the words in which it says so."""

from __future__ import annotations

import numpy as np
import pytest

import rnnkern as rk

T, B = 6, 4


def test_layers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="layers must be at least one, got none"):
        rk.Stack([])
    with pytest.raises(TypeError, match=r"layers\[1\] must be a recurrent layer, got Linear"):
        rk.Stack([rk.GRU(3, 4), rk.Linear(4, 4)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"layers\[1\] must have input_size=8, .* got 4"):
        rk.Stack([rk.GRU(3, 4, bidirectional=True), rk.GRU(4, 4)])
    with pytest.raises(ValueError, match=r"layers\[1\] must have dtype=float32 .* got float64"):
        rk.Stack([rk.GRU(3, 4), rk.GRU(4, 4, dtype="float64")])
    with pytest.raises(ValueError, match=r"layers\[1\] must have batch_first=False .* got True"):
        rk.Stack([rk.GRU(3, 4), rk.GRU(4, 4, batch_first=True)])
    layer = rk.GRU(4, 4)
    with pytest.raises(ValueError, match=r"layers\[1\] must be another layer than those below"):
        rk.Stack([layer, layer])
    with pytest.raises(
        ValueError, match=r"residual needs .* got layers\[1\] with 4 inputs and 5 outputs"
    ):
        rk.Stack([rk.GRU(3, 4), rk.GRU(4, 5)], residual=True)
    with pytest.raises(ValueError, match="residual must be a bool or one for each of the 2 layers"):
        rk.Stack([rk.GRU(3, 4), rk.GRU(4, 4)], residual=[True])
    with pytest.raises(ValueError, match="dropout must be below 1"):
        rk.Stack([rk.GRU(3, 4), rk.GRU(4, 4)], dropout=1.0)


def test_arguments_that_do_not_fit() -> None:
    stack = rk.Stack([rk.GRU(3, 4), rk.LSTM(4, 4)], dropout=0.5)
    x = np.ones((T, B, 3), np.float32)
    h = np.ones((1, B, 4), np.float32)
    with pytest.raises(TypeError, match=r"x must be float32 .* got float64.*dtype='float64'"):
        stack(np.ones((T, B, 3)))
    with pytest.raises(TypeError, match="state must be a list or tuple with the state of each"):
        stack(x, h)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of the 2 layers, got 3 parts"):
        stack(x, (h, None, None))
    with pytest.raises(TypeError, match=r"state must be the pair \(h, c\) of this LSTM"):
        stack(x, (h, h))
    with pytest.raises(ValueError, match=r"dropout_key must be given when dropout is 0\.5"):
        stack.forward(x)
    _, _, tape = stack.forward(x, dropout_key=0)
    with pytest.raises(ValueError, match=r"dy must have shape \(6, 4, 4\), got \(6, 4, 3\)"):
        tape.backward(x)
    with pytest.raises(ValueError, match=r"dlast must have shape \(4, 4\), got \(4, 3\)"):
        tape.backward(dlast=x[0])
    with pytest.raises(ValueError, match="dstate must be a list or tuple"):
        tape.backward(None, (None,))
    with pytest.raises(ValueError, match="stream needs a layer with bidirectional=False"):
        rk.Stack([rk.GRU(3, 4, bidirectional=True)]).stream()
    tokens = rk.Stack([rk.GRU(4, 4)], residual=[True])
    with pytest.raises(TypeError, match="residual adds it to what the first layer gives, got tok"):
        tokens(np.zeros((T, B), int))
    with pytest.raises(TypeError, match="residual adds it to what the first layer gives, got tok"):
        tokens.stream(B).step(np.zeros(B, int))
