# SPDX-License-Identifier: Apache-2.0
"""Bounds on gradients, applied in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import FLOATS, Array, finite_float
from rnnkern.devices import device_of
from rnnkern.training.named import named_arrays

# Sums of squares below these may have lost some that vanished.
_SAFE_SQUARES = {np.dtype(np.float32): 1e-20, np.dtype(np.float64): 1e-280}


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    """Scale all gradients together, in place, so that their joint norm is at most ``max_norm``.

    Args:
        grads: What a tape's ``backward`` gave, or arrays by parameter name, float32 or float64, or
            a mapping or list of such, as the gradients of several layers.
        max_norm: The bound on the Euclidean norm of all gradients as one vector, above 0.

    Returns:
        The norm before. When a gradient is infinite or NaN, so is the norm, and all are left as
        they are: look at it before using them. Finite ones are scaled however large or small they
        are, even where their norm is beyond the largest float64 and is given as inf. On a GPU it
        is an array of shape (), since a number would have to be waited for.

    Raises:
        TypeError: ``max_norm`` is not a number, or a gradient no float32 or float64 array.
        ValueError: ``max_norm`` is not finite and above 0, or a gradient is read-only. Nothing was
            changed then.

    Example:
        >>> grads = {"weight": np.array([3.0, 4.0])}
        >>> rk.clip_grad_norm(grads, 1.0), grads["weight"].round(6).tolist()
        (5.0, [0.6, 0.8])

    """
    max_norm = finite_float("max_norm", max_norm, minimum=0.0, exclusive=True)
    arrays = _writeable(grads)
    with np.errstate(all="ignore"):  # squares may overflow, and what is scaled may vanish
        if not all(device_of(g).values_are_free for g in arrays.values()):
            return _clip_unseen(arrays, max_norm)
        squares = sum(
            _core.sum_of_squares(device_of(g).contiguous(g)) for g in arrays.values() if g.size
        )
        safe = max((_SAFE_SQUARES[g.dtype] for g in arrays.values()), default=0.0)
        if not safe < squares < math.inf:
            return _clip_extreme(arrays, max_norm)
        norm = math.sqrt(squares)
        if norm > max_norm:
            for g in arrays.values():
                g *= max_norm / norm
    return norm


def clip_grad_value(grads: Any, max_value: float) -> None:
    """Clip every element of every gradient to ±``max_value``, in place; NaN stays NaN.

    Args:
        grads: As for ``clip_grad_norm``.
        max_value: Above 0.

    Raises:
        TypeError: ``max_value`` is not a number, or a gradient no float32 or float64 array.
        ValueError: ``max_value`` is not finite and above 0, or a gradient is read-only. Nothing was
            changed then.

    Example:
        >>> grads = {"weight": np.array([3.0, -0.5])}
        >>> rk.clip_grad_value(grads, 1.0)
        >>> grads["weight"].tolist()
        [1.0, -0.5]

    """
    max_value = finite_float("max_value", max_value, minimum=0.0, exclusive=True)
    for g in _writeable(grads).values():
        device_of(g).xp.clip(g, -max_value, max_value, out=g)


def _writeable(grads: Any) -> dict[str, Array]:
    """The gradients by name, each an array that can be changed in place."""
    arrays = named_arrays("grads", grads)
    for name, g in arrays.items():
        device = device_of(g)
        if not isinstance(g, device.xp.ndarray) or g.dtype not in FLOATS:
            found = g.dtype if isinstance(g, device.xp.ndarray) else type(g)
            raise TypeError(f"grads[{name!r}] must be a float32 or float64 array, got {found}")
        if not device.writeable(g):
            raise ValueError(f"grads[{name!r}] must be writeable, got a read-only array")
    return arrays


def _clip_extreme(grads: dict[str, Array], max_norm: float) -> float:
    """``clip_grad_norm`` where squares may overflow or vanish: relative to the largest number."""
    full = [g for g in grads.values() if g.size]
    largest = float(np.max([np.abs(g).max() for g in full])) if full else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    norm = math.sqrt(
        sum(float(np.square(np.divide(g, largest, dtype=np.float64)).sum()) for g in full)
    )
    if largest * norm > max_norm:
        for g in full:
            g /= largest
            g *= max_norm / norm
    return largest * norm


def _clip_unseen(grads: Mapping[str, Array], max_norm: float) -> float:
    """``clip_grad_norm`` without looking at a value; the squares are summed in float64."""
    if not grads:
        return 0.0
    xp = device_of(next(iter(grads.values()))).xp
    full = [g for g in grads.values() if g.size]
    unit: Any = 1.0
    wide = any(g.dtype == np.float64 for g in full)  # the squares of float32 need no unit
    if wide:
        largest = reduce(np.maximum, [np.abs(g).max() for g in full])
        unit = xp.where((largest > 0.0) & np.isfinite(largest), largest, 1.0)
    squares: Any = sum(np.square(g / unit, dtype=np.float64).sum() for g in full)
    norm: Any = np.sqrt(squares)  # an array of shape (), which float() would wait for
    too_long = np.isfinite(norm) & (norm * unit > max_norm)
    for g in full:
        if wide:
            g /= xp.where(too_long, unit, 1.0)
        g *= xp.where(too_long, max_norm / norm, 1.0)
    result: float = norm * unit
    return result
