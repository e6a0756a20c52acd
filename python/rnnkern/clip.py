"""Bounds on gradients, applied in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, finite_float
from rnnkern.device import device_of

# Sums of squares below these may have lost some that vanished.
_SAFE_SQUARES = {np.dtype(np.float32): 1e-20, np.dtype(np.float64): 1e-280}


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scale all gradients together, in place, so that their joint norm is at most ``max_norm``.

    Args:
        grads: Arrays by parameter name, float32 or float64.
        max_norm: The bound on the Euclidean norm of all gradients as one vector, above 0.

    Returns:
        The norm before. When a gradient is infinite or NaN, so is the norm, and all are left as
        they are: look at it before using them. Finite ones are scaled however large or small they
        are, even where their norm is beyond the largest float64 and is given as inf. On a GPU it
        is an array of shape (), since a number would have to be waited for.

    Raises:
        TypeError: ``max_norm`` is not a number.
        ValueError: ``max_norm`` is not finite and above 0.

    """
    max_norm = finite_float("max_norm", max_norm, minimum=0.0, exclusive=True)
    devices = {device_of(g) for g in grads.values()}
    if any(not device.values_are_free for device in devices):
        return _clip_unseen(grads, max_norm)
    squares = sum(
        _core.sum_of_squares(device_of(g).contiguous(g)) for g in grads.values() if g.size
    )
    if not max((_SAFE_SQUARES[g.dtype] for g in grads.values()), default=0.0) < squares < math.inf:
        return _clip_extreme(grads, max_norm)
    norm = math.sqrt(squares)
    if norm > max_norm:
        for g in grads.values():
            g *= max_norm / norm
    return norm


def clip_grad_value(grads: Mapping[str, Array], max_value: float) -> None:
    """Clip every element of every gradient to ±``max_value``, in place; NaN stays NaN.

    Raises:
        TypeError: ``max_value`` is not a number.
        ValueError: ``max_value`` is not finite and above 0.

    """
    max_value = finite_float("max_value", max_value, minimum=0.0, exclusive=True)
    for g in grads.values():
        device_of(g).xp.clip(g, -max_value, max_value, out=g)


def _clip_extreme(grads: Mapping[str, Array], max_norm: float) -> float:
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
