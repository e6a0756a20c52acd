# SPDX-License-Identifier: Apache-2.0
"""Finite differences: what gradients are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from support.layers import as_layer_state, as_tuple, computed
from support.reference import Array, State

STEP = 1e-5  # in float64: the error is about its square

Place = tuple[int, ...]
Claimed = Mapping[str, tuple[Array, Array]]  # name -> what the loss reads, the gradient of it


def differences(
    loss: Callable[[], float],
    at: Array,
    *,
    step: float = STEP,
    places: Iterable[Place] | None = None,
) -> Array:
    """The central difference of ``loss`` in every number of ``at``, which it reads afresh.

    In some places alone, where they are given: elsewhere there is NaN.
    """
    found = np.full(at.shape, np.nan)
    for place in np.ndindex(at.shape) if places is None else places:
        value, losses = at[place], []
        for shift in (step, -step):
            at[place] = value + shift
            losses.append(loss())
        at[place] = value
        found[place] = (losses[0] - losses[1]) / (2.0 * step)
    return found


def slope(
    loss: Callable[[], float], at: Sequence[Array], ways: Sequence[Array], *, step: float = STEP
) -> float:
    """The central difference of ``loss`` along ways, one for each of ``at``, which it reads."""
    kept, losses = [array.copy() for array in at], []
    for shift in (step, -step):
        for array, value, way in zip(at, kept, ways, strict=True):
            array[...] = value + shift * way
        losses.append(loss())
    for array, value in zip(at, kept, strict=True):
        array[...] = value
    return (losses[0] - losses[1]) / (2.0 * step)


def weighted(results: Iterable[Array], weights: Iterable[Array]) -> float:
    """The loss whose gradients in the results are the weights."""
    return sum(float(np.sum(a * w)) for a, w in zip(results, weights, strict=True))


def check_gradients(
    loss: Callable[[], float], claimed: Claimed, *, rtol: float, atol: float = 0.0
) -> None:
    """Each number of each gradient is that of central differences."""
    for name, (at, gradient) in claimed.items():
        assert gradient.shape == at.shape, name
        want = differences(loss, at)
        np.testing.assert_allclose(gradient, want, rtol=rtol, atol=atol, err_msg=name)


def check_slope(loss: Callable[[], float], claimed: Claimed, *, atol: float = 1e-12) -> None:
    """All gradients at once are those of the loss along one random way."""
    rng = np.random.default_rng(0)
    places, gradients = zip(*claimed.values(), strict=True)
    ways = [rng.standard_normal(at.shape) for at in places]
    want = weighted(gradients, ways)
    assert slope(loss, places, ways) == pytest.approx(want, rel=1e-6, abs=atol)


def check_layer(
    layer: Any,
    x: Array,
    state: State,
    dy: Array,
    dstate: State,
    *,
    tolerance: float = 1e-7,
    **options: Any,
) -> None:
    """Every gradient of a float64 layer; the tolerance is of numbers of 1, or of larger ones."""
    found = computed(layer, x, state, dy, dstate, **options)

    def loss() -> float:
        y, last, _ = layer.forward(x, as_layer_state(state), **options)
        return weighted((y, *as_tuple(last)), (dy, *dstate))

    moved = {"x": x, **layer.params, **dict(zip(("h_0", "c_0"), state, strict=False))}
    claimed = {name: (at, found[f"d{name}"]) for name, at in moved.items()}
    check_gradients(loss, claimed, rtol=tolerance / 2, atol=tolerance / 2)
