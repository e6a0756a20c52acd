# SPDX-License-Identifier: Apache-2.0
"""Python's habit of float64: whatever takes float32 says both ways out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

X, STEP = np.ones((5, 2, 3)), np.ones((2, 3))
H = np.ones((1, 2, 4), np.float32)


def tape() -> Any:
    return rk.GRU(3, 4).forward(X.astype(np.float32))[2]


CALLS: dict[str, Callable[[], Any]] = {
    "a layer": lambda: rk.LSTM(3, 4)(X),
    "training": lambda: rk.LSTM(3, 4).forward(X),
    "a frozen layer": lambda: rk.LSTM(3, 4).freeze()(X),
    "a step": lambda: rk.LSTM(3, 4).stream(2).step(STEP),
    "a block": lambda: rk.LSTM(3, 4).stream(2).block(X),
    "a state": lambda: rk.LSTM(3, 4)(X.astype(np.float32), (H, H.astype(np.float64))),
    "dy": lambda: tape().backward(np.ones((5, 2, 4))),
    "dstate": lambda: tape().backward(None, H.astype(np.float64)),
    "dlast": lambda: tape().backward(dlast=np.ones((2, 4))),
    "a cell": lambda: rk.LSTMCell(3, 4)(STEP),
    "a stack": lambda: rk.Stack([rk.GRU(3, 4)])(X),
    "a step of a stack": lambda: rk.Stack([rk.GRU(3, 4)]).stream(2).step(STEP),
    "Linear": lambda: rk.Linear(3, 4)(X),
    "frozen Linear": lambda: rk.Linear(3, 4).freeze()(X),
    "a list": lambda: rk.Linear(3, 4)([1.0, 2.0, 3.0]),
    "LayerNorm": lambda: rk.LayerNorm(3)(X),
    "a model": lambda: rk.Model(rk.GRU(3, 4), rk.Linear(4, 2)).predict(X),
    "a step of a model": lambda: rk.Model(rk.GRU(3, 4), rk.Linear(4, 2)).stream(2).step(STEP),
    "parameters": lambda: rk.LayerNorm(3, bias=False).params.update(weight=np.ones(3)),
    "an optimizer": lambda: rk.SGD(rk.LayerNorm(3, bias=False), 0.1).step({"weight": np.ones(3)}),
}


@pytest.mark.parametrize("name", CALLS)
def test_both_ways_out_are_told(name: str) -> None:
    with pytest.raises(TypeError, match=r"must be float32.*got float64: ") as caught:
        CALLS[name]()
    assert ".astype('float32')" in str(caught.value)
    assert "dtype='float64'" in str(caught.value)
