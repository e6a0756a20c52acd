# SPDX-License-Identifier: Apache-2.0
"""The loss of a classifier, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import FLOATS, Array, conversion, dtype_text
from rnnkern.devices import device_of


def softmax_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean of ``-log softmax(logits)[target]`` in nats, and its gradient in the logits.

    Args:
        logits: (..., C), float32 or float64. A class may be ruled out by a logit of -inf.
        targets: (...), integers in 0..C-1.
        mask: (...), bool; the mean is over the places where it is true. Elsewhere the target is
            not looked at and the gradient is 0, whatever the logits. ``None`` takes every place.

    Returns:
        The loss, summed in float64 (0 when no place counts, or there is none), and the gradient,
        shaped and typed like ``logits``. On a GPU the loss is an array of shape (), since a number
        would have to be waited for; a target outside 0..C-1 makes it NaN there.

    Raises:
        TypeError: Logits that are not float32 or float64, targets not integers, a mask not bool.
        ValueError: Shapes that do not belong together, or a target outside 0..C-1.

    Example:
        >>> logits = np.zeros((2, 4), np.float32)
        >>> loss, dlogits = rk.softmax_cross_entropy(logits, np.array([1, 3]))
        >>> round(loss, 4), dlogits[0].tolist()
        (1.3863, [0.125, -0.375, 0.125, 0.125])

    """
    device = device_of(logits)
    logits, targets = device.array("logits", logits), device.array("targets", targets)
    if logits.dtype not in FLOATS:
        raise TypeError(
            f"logits must be float32 or float64, got {dtype_text(logits.dtype)}: "
            f"{conversion(np.dtype(np.float32))}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., classes), got {logits.shape}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    classes = logits.shape[-1]
    if targets.dtype == np.uint64:
        targets = np.minimum(targets, classes)  # still out of range, and now an int64
    target = targets.reshape(-1).astype(np.int64, copy=False)
    count = target.size
    if mask is not None:
        mask = device.array("mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.shape != targets.shape:
            raise ValueError(f"mask must have shape {targets.shape}, got {mask.shape}")
        mask = mask.reshape(-1)
    if not device.values_are_free:
        with np.errstate(all="ignore"):
            loss, gradient = _unseen(device.xp, logits.reshape(-1, classes), target, mask)
        return loss, gradient.reshape(logits.shape)
    if mask is not None:
        mask = device.contiguous(mask)
        count = int(np.count_nonzero(mask))
    if count == 0:
        return 0.0, np.zeros_like(logits)
    gradient = np.empty((len(target), classes), logits.dtype)
    weight = 1.0 / count
    total = _core.softmax_cross_entropy(
        device.contiguous(logits.reshape(-1, classes)),
        device.contiguous(target),
        mask,
        weight,
        gradient,
    )
    return total * weight, gradient.reshape(logits.shape)


def _unseen(xp: Any, logits: Array, target: Array, mask: Array | None) -> tuple[Any, Array]:
    """The loss of rows (N, C), targets (N,) and a mask (N,) without looking at a value."""
    classes = logits.shape[1]
    counts = xp.ones(target.shape, np.bool_) if mask is None else mask
    outside = (target < 0) | (target >= classes)
    places = (xp.arange(len(target)), xp.clip(target, 0, classes - 1))
    weight = 1.0 / np.maximum(xp.count_nonzero(counts), 1)
    top = logits.max(axis=1, keepdims=True)
    gradient = np.exp(logits - top)
    totals = gradient.sum(axis=1)
    # In float64: logits may be further apart than their type's numbers reach.
    below_top = top[:, 0].astype(np.float64) - logits[places]
    losses = xp.where(outside, np.nan, np.log(totals) + below_top)
    gradient /= totals[:, np.newaxis]
    gradient[places] -= 1.0
    gradient *= weight
    gradient = xp.where(counts[:, np.newaxis], gradient, gradient.dtype.type(0))
    return xp.where(counts, losses, 0.0).sum(dtype=np.float64) * weight, gradient
