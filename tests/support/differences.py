# SPDX-License-Identifier: Apache-2.0
"""Finite differences: what gradients are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from support.reference import Array

STEP = 1e-5  # in float64: the error is about its square

Place = tuple[int, ...]


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
