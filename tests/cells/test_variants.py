# SPDX-License-Identifier: Apache-2.0
"""Options of the cells' equations: values and every gradient against PyTorch's autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support import variants
from support.compare import assert_close
from support.layers import TOLERANCE, as_layer_state, as_tuple
from support.reference import Array

STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 3, 11

LSTMS = {
    "peepholes": {"peepholes": True},
    "coupled": {"coupled": True},
    "peepholes and coupled": {"peepholes": True, "coupled": True},
}
CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    f"LSTM, {name}": (rk.LSTM, options) for name, options in LSTMS.items()
}


def make(case: str, *sizes: int, **options: Any) -> Any:
    kind, own = CASES[case]
    layer = kind(*sizes, **own, **options)
    rng = np.random.default_rng(1)
    for p in layer.params.values():
        p[...] = 1.5 * rng.uniform(-1.0, 1.0, p.shape)
    return layer


def arrays(layer: Any, dtype: str, steps: int = STEPS, batch: int = BATCH) -> tuple[Any, ...]:
    """x, a state, dy and dstate."""
    rng = np.random.default_rng(2)
    states = 2 if isinstance(layer, rk.LSTM) else 1
    shape = layer.num_layers * layer.num_directions, batch, layer.hidden_size

    def draw(*sizes: int) -> Array:
        return np.asarray(rng.standard_normal(sizes), dtype)

    return (
        draw(steps, batch, layer.input_size),
        tuple(draw(*shape) for _ in range(states)),
        draw(steps, batch, layer.output_size),
        tuple(draw(*shape) for _ in range(states)),
    )


def computed(layer: Any, x: Array, state: Any, lengths: Any, dy: Array, dstate: Any) -> Any:
    """All that a call and its backward pass give, by the names that `variants.run` has."""
    y, last, tape = layer.forward(x, as_layer_state(state), lengths)
    dx, dfirst, grads = tape.backward(dy, as_layer_state(dstate))
    found = {"y": y, "dx": dx, **{f"d{name}": g for name, g in grads.items()}}
    for name, s, ds in zip(("h", "c"), as_tuple(last), as_tuple(dfirst), strict=False):
        found |= {f"{name}_n": s, f"d{name}_0": ds}
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str, dtype: str) -> None:
    layer = make(case, INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype)
    x, state, dy, dstate = arrays(layer, dtype)
    lengths = np.array([6, 2, 0, 5, 6])
    want = variants.run(layer, x, state, lengths, dy, dstate)
    found = computed(layer, x, state, lengths, dy, dstate)
    assert found.keys() == want.keys()
    for name, array in found.items():
        assert_close(name, array, want[name], TOLERANCE[dtype])
