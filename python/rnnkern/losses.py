"""The loss of a classifier, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, contiguous, host_array


def softmax_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean of ``-log softmax(logits)[target]`` in nats, and its gradient in the logits.

    Args:
        logits: (..., C), float32 or float64. A class may be ruled out by a logit of -inf.
        targets: (...), integers in 0..C-1.
        mask: (...), bool; the mean is over the places where it is true. Elsewhere the target is
            not looked at and the gradient is 0, whatever the logits. ``None`` takes every place.

    Returns:
        The loss, summed in float64 (0 when no place counts), and the gradient, shaped and typed
        like ``logits``.

    Raises:
        TypeError: Logits that are not float32 or float64, targets not integers, a mask not bool.
        ValueError: Shapes that do not belong together, or a target outside 0..C-1.

    """
    logits, targets = host_array("logits", logits), host_array("targets", targets)
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"logits must be float32 or float64, got {logits.dtype}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., classes), got {logits.shape}")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    classes = logits.shape[-1]
    if targets.dtype == np.uint64 and targets.size and targets.max() >= classes:
        targets = np.minimum(targets, classes)  # too large all the same, and an int64
    target = targets.reshape(-1).astype(np.int64, copy=False)
    count = target.size
    if mask is not None:
        mask = host_array("mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.shape != targets.shape:
            raise ValueError(f"mask must have shape {targets.shape}, got {mask.shape}")
        mask = contiguous(mask.reshape(-1))
        count = int(np.count_nonzero(mask))
    if count == 0:
        return 0.0, np.zeros_like(logits)
    gradient = np.empty((len(target), classes), logits.dtype)
    weight = 1.0 / count
    total = _core.softmax_cross_entropy(
        contiguous(logits.reshape(-1, classes)), contiguous(target), mask, weight, gradient
    )
    return total * weight, gradient.reshape(logits.shape)
