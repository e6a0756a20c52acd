# SPDX-License-Identifier: Apache-2.0
"""What training drops, as calls show it."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.layers import as_layer_state, as_tuple, cast, random_state
from support.reference import Array

STEPS, BATCH, INPUTS, HIDDEN, KEY = 6, 5, 3, 11, 7


def arrays(layer: Any, cell: str, steps: int = STEPS, batch: int = BATCH) -> Any:
    """x, a first state, dy and dstate, all of random numbers."""
    dtype, rng = layer.dtype.name, np.random.default_rng(2)
    x = rng.standard_normal((steps, batch, layer.input_size)).astype(dtype)
    widths = [s.shape for s in as_tuple(layer(x[:1])[1])]
    state, dstate = (
        tuple(random_state(cell, shape, seed + k)[0] for k, shape in enumerate(widths))
        for seed in (0, 5)
    )
    dy = rng.standard_normal((steps, batch, layer.output_size)).astype(dtype)
    return x, cast(state, dtype), dy, cast(dstate, dtype)


def computed(
    layer: Any, x: Array, state: Any, dy: Array, dstate: Any, *, lengths: Any = None, **options: Any
) -> dict[str, Array]:
    """All that ``forward`` and its backward pass give, by name."""
    options.setdefault("dropout_key", KEY)
    y, last, tape = layer.forward(x, as_layer_state(state), lengths, **options)
    grads = tape.backward(dy, as_layer_state(dstate))
    found = {"y": y, **{f"d{name}": array for name, array in grads.params.items()}}
    if grads.x is not None:
        found["dx"] = grads.x
    for letter, end, first in zip("hc", as_tuple(last), as_tuple(grads.state), strict=False):
        found |= {f"{letter}_n": end, f"d{letter}_0": first}
    return found


def check_slopes(layer: Any, x: Array, state: Any, dy: Array, dstate: Any, **options: Any) -> None:
    """Every gradient of a float64 layer is that of finite differences."""
    grads = computed(layer, x, state, dy, dstate, **options)
    options.setdefault("dropout_key", KEY)

    def loss() -> float:
        y, last, _ = layer.forward(x, as_layer_state(state), **options)
        ends = zip(as_tuple(last), dstate, strict=True)
        return float((y * dy).sum() + sum((s * d).sum() for s, d in ends))

    firsts = zip(state, ("dh_0", "dc_0"), strict=False)
    places = [(p, f"d{n}") for n, p in layer.params.items()] + [(x, "dx"), *firsts]
    for array, name in places:
        flat, found = array.reshape(-1), grads[name].reshape(-1)
        for k in range(flat.size):
            kept = flat[k]
            flat[k] = kept + 1e-6
            above = loss()
            flat[k] = kept - 1e-6
            slope = (above - loss()) / 2e-6
            flat[k] = kept
            assert abs(slope - found[k]) < 1e-7 * max(1.0, abs(slope)), (name, k, slope, found[k])


def check_share(kept: Array, share: float) -> None:
    """So many are kept as may be, within five standard deviations."""
    deviation = np.sqrt(share * (1.0 - share) / kept.size)
    assert abs(float(kept.mean()) - (1.0 - share)) <= 5.0 * deviation
