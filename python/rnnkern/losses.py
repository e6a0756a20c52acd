"""The loss of a classifier, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.device import device_of


def softmax_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean of ``-log softmax(logits)[target]`` in nats, and its gradient in the logits.

    Args:
        logits: (..., C), float32 or float64. A class may be ruled out by a logit of -inf.
        targets: (...), integers in 0..C-1.
        mask: (...), bool; the mean is over the places where it is true. Elsewhere the target is
            not looked at and the gradient is 0, whatever the logits. ``None`` takes every place.

    Returns:
        The loss, summed in float64 (0 when no place counts), and the gradient, shaped and typed
        like ``logits``. On a GPU the loss is an array of shape (), since a number would have to be
        waited for; a target outside 0..C-1 makes it NaN there.

    Raises:
        TypeError: Logits that are not float32 or float64, targets not integers, a mask not bool.
        ValueError: Shapes that do not belong together, or a target outside 0..C-1.

    """
    device = device_of(logits)
    xp = device.xp
    logits, targets = device.array("logits", logits), device.array("targets", targets)
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"logits must be float32 or float64, got {logits.dtype}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., classes), got {logits.shape}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    classes = logits.shape[-1]
    target = targets.reshape(-1)
    count = target.size
    if mask is not None:
        mask = device.array("mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.shape != targets.shape:
            raise ValueError(f"mask must have shape {targets.shape}, got {mask.shape}")
        mask = mask.reshape(-1)
        target = xp.where(mask, target, 0)
        count = xp.count_nonzero(mask)
    if device.values_are_free:
        if count == 0:
            return 0.0, np.zeros_like(logits)
        if target.min() < 0 or target.max() >= classes:
            wrong = target[(target < 0) | (target >= classes)][0]
            raise ValueError(f"targets must be in 0..{classes - 1}, got {wrong}")

    # One buffer all the way: shifted logits, their exponentials, the gradient.
    rows = logits.reshape(-1, classes)
    buffer = rows - rows.max(axis=1, keepdims=True)
    picked = (xp.arange(len(target)), device.index(target, classes))
    losses = -buffer[picked]
    np.exp(buffer, out=buffer)
    totals = buffer.sum(axis=1)
    losses += np.log(totals)
    weight = device.scalar(1.0 / np.maximum(count, 1))
    buffer *= (weight / totals)[:, np.newaxis]
    buffer[picked] -= weight
    if not device.values_are_free:
        losses = xp.where((target < 0) | (target >= classes), np.nan, losses)
    if mask is not None:
        losses = device.counted(losses, mask)
        xp.copyto(buffer, 0.0, where=~mask[:, np.newaxis])
    return device.scalar(losses.sum(dtype=np.float64)) * weight, buffer.reshape(logits.shape)
