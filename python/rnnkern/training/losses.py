# SPDX-License-Identifier: Apache-2.0
"""Losses, each with its gradient in what a model gave: means over the places that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, dtype_text, finite_float
from rnnkern.devices import Device, device_of


def softmax_cross_entropy(
    logits: Any,
    targets: Any,
    mask: Any = None,
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
) -> tuple[float, Array]:
    """Mean of ``-log softmax(logits)[target]`` in nats, and its gradient in the logits.

    Args:
        logits: (..., C), float32 or float64. A class may be ruled out by a logit of -inf.
        targets: (...), integers in 0..C-1.
        mask: (...), bool; the mean is over the places where it is true. Elsewhere the target is
            not looked at and the gradient is 0, whatever the logits. ``None`` takes every place.
        class_weights: (C,), at least 0: how much places of a class count. The mean is then the
            weighted one, over the sum of the weights of the targets that count. ``None`` is 1.
        label_smoothing: In 0..1: the share of a target that is spread evenly over all classes,
            which keeps logits from growing without end (Szegedy et al. 2016). Each class's part of
            it counts by that class's weight, as in PyTorch.

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
    smoothing = finite_float("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
    device = device_of(logits)
    logits, targets = device.floats("logits", logits), device.array("targets", targets)
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
    mask = _mask(device, mask, targets.shape)
    if class_weights is not None or smoothing > 0.0:
        weights = _weights(device, class_weights, classes, logits.dtype)
        if device.values_are_free:
            _check_range(target, mask, classes)
        with np.errstate(all="ignore"):
            loss, gradient = _weighted(
                device.xp, logits.reshape(-1, classes), target, mask, weights, smoothing
            )
        if device.values_are_free:
            loss = float(loss)
        return loss, gradient.reshape(logits.shape)
    if not device.values_are_free:
        with np.errstate(all="ignore"):
            loss, gradient = _unseen(device.xp, logits.reshape(-1, classes), target, mask)
        return loss, gradient.reshape(logits.shape)
    count = target.size
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


def _weighted(
    xp: Any,
    logits: Array,
    target: Array,
    mask: Array | None,
    weights: Array,
    smoothing: float,
) -> tuple[Any, Array]:
    """As ``_unseen``, with weights (C,) of classes and smoothed labels."""
    classes, dtype = logits.shape[1], logits.dtype
    outside = (target < 0) | (target >= classes)
    rows, target = xp.arange(len(target)), xp.clip(target, 0, classes - 1)
    counted = weights[target] if mask is None else xp.where(mask, weights[target], dtype.type(0))
    whole = counted.sum(dtype=np.float64)
    share = xp.where(whole > 0.0, 1.0 / whole, 0.0)  # nothing counts: a loss of 0
    # A target's own part, and that of every class, in a row's loss.
    own = (counted * (dtype.type(1.0 - smoothing) * share)).astype(dtype)
    spread = (smoothing / classes * share).astype(dtype) * weights
    each = xp.ones(target.shape, np.bool_) if mask is None else mask
    below_top = logits - logits.max(axis=1, keepdims=True)
    gradient = np.exp(below_top)
    totals = gradient.sum(axis=1)
    logs = np.log(totals.astype(np.float64))
    losses = xp.where(own > 0.0, own * (logs - below_top[rows, target]), 0.0)
    if smoothing > 0.0:
        of_classes = xp.where(spread > 0.0, below_top * spread, dtype.type(0))
        all_classes = spread.sum(dtype=np.float64)
        losses += all_classes * logs - of_classes.sum(axis=1, dtype=np.float64)
        gradient *= ((own + all_classes) / totals).astype(dtype)[:, np.newaxis]
        gradient -= spread
    else:
        gradient *= (own / totals)[:, np.newaxis]
    gradient[rows, target] -= own
    gradient = xp.where(each[:, np.newaxis], gradient, dtype.type(0))
    losses = xp.where(outside, np.nan, losses)
    return xp.where(each, losses, 0.0).sum(dtype=np.float64), gradient


def binary_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean of ``-t·log σ(z) - (1 - t)·log(1 - σ(z))`` of logits z, and its gradient in them.

    For yes or no, or for several of these at each place, which do not exclude one another. The
    logits are what a `Linear` gives: σ is part of the loss, so that none of them overflows.

    Args:
        logits: (...), float32 or float64.
        targets: Shaped as the logits, bool or numbers in 0..1: the probabilities of a yes.
        mask: Bool, shaped as the logits or without their last axis: what counts; ``None`` is all.

    Returns:
        The loss in nats, summed in float64 (0 when nothing counts), and the gradient, shaped and
        typed like ``logits``. On a GPU the loss is an array of shape ().

    Raises:
        TypeError: Logits that are not float32 or float64, targets no numbers, a mask not bool.
        ValueError: Shapes that do not belong together, or a target outside 0..1.

    Example:
        >>> loss, dlogits = rk.binary_cross_entropy(np.zeros(2, np.float32), [True, False])
        >>> round(loss, 4), dlogits
        (0.6931, array([-0.25,  0.25], dtype=float32))

    """
    device = device_of(logits)
    z = device.floats("logits", logits)
    t = _numbers(device, "targets", targets, z)
    counts = _places(device, mask, z)
    if device.values_are_free:
        wrong = ~((t >= 0) & (t <= 1)) if counts is None else ~((t >= 0) & (t <= 1)) & counts
        if wrong.any():
            raise ValueError(f"targets must be in 0..1, got {t[wrong].flat[0]:g}")

    def of(z: Array) -> tuple[Array, Array]:
        small = np.exp(-np.abs(z))
        positive = np.maximum(z, 0)
        probability = device.xp.where(z >= 0, 1 / (1 + small), small / (1 + small))
        return positive - z * t + np.log1p(small), probability - t

    return _mean(device, z, counts, of)


def mse(outputs: Any, targets: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean of ``(output - target)²``, and its gradient in the outputs.

    Args:
        outputs: (...), float32 or float64.
        targets: Numbers, shaped as the outputs.
        mask: Bool, shaped as the outputs or without their last axis: what counts; elsewhere the
            gradient is 0, whatever is there. ``None`` is all.

    Returns:
        The loss, summed in float64 (0 when nothing counts), and the gradient, shaped and typed like
        ``outputs``. On a GPU the loss is an array of shape ().

    Raises:
        TypeError: Outputs that are not float32 or float64, targets no numbers, a mask not bool.
        ValueError: Shapes that do not belong together.

    Example:
        >>> rk.mse(np.array([1.0, 3.0]), [1, 1])
        (2.0, array([0., 2.]))

    """
    device = device_of(outputs)
    y = device.floats("outputs", outputs)
    t = _numbers(device, "targets", targets, y)

    def of(y: Array) -> tuple[Array, Array]:
        difference = y - t
        return np.square(difference, dtype=np.float64), 2 * difference

    return _mean(device, y, _places(device, mask, y), of)


def huber(
    outputs: Any, targets: Any, mask: Any = None, *, delta: float = 1.0
) -> tuple[float, Array]:
    """Mean of a square that goes on as a straight line, and its gradient in the outputs.

    With e the distance of output and target it is e²/2 up to e = delta, and delta·(e - delta/2)
    beyond: what lies far off pulls no harder than that (Huber 1964).

    Args:
        outputs: (...), float32 or float64.
        targets: Numbers, shaped as the outputs.
        mask: As for `mse`.
        delta: Above 0: where the line begins.

    Returns:
        As `mse`.

    Raises:
        TypeError: As `mse` raises, or ``delta`` is not a number.
        ValueError: As `mse` raises, or ``delta`` is not above 0.

    Example:
        >>> rk.huber(np.array([0.5, 3.0]), [0, 0])
        (1.3125, array([0.25, 0.5 ]))

    """
    bound = finite_float("delta", delta, minimum=0.0, exclusive=True)
    device = device_of(outputs)
    y = device.floats("outputs", outputs)
    t = _numbers(device, "targets", targets, y)

    def of(y: Array) -> tuple[Array, Array]:
        difference = y - t
        slope = device.xp.clip(difference, -bound, bound)
        return slope * (difference - 0.5 * slope), slope

    return _mean(device, y, _places(device, mask, y), of)


def _mean(
    device: Device,
    given: Array,
    counts: Array | None,
    of: Callable[[Array], tuple[Array, Array]],
) -> tuple[Any, Array]:
    """The mean of a loss of single numbers over those that count, and its gradient.

    `of` gives the losses and their derivatives.
    """
    xp, zero = device.xp, given.dtype.type(0)
    with np.errstate(all="ignore"):
        losses, slopes = of(given)
        if counts is None:
            count: Any = max(given.size, 1)
        else:
            count = np.maximum(xp.count_nonzero(counts), 1)
            losses = xp.where(counts, losses, zero)
            slopes = xp.where(counts, slopes, zero)
        loss = losses.sum(dtype=np.float64) / count
        gradient = slopes * xp.asarray(1.0 / count, given.dtype)
    return float(loss) if device.values_are_free else xp.asarray(loss), gradient


def _numbers(device: Device, name: str, value: Any, like: Array) -> Array:
    """Targets, of any dtype that holds real numbers, as those of another array."""
    array = device.array(name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numbers, got {dtype_text(array.dtype)}")
    if array.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {array.shape}")
    return array.astype(like.dtype, copy=False)


def _mask(device: Device, mask: Any, shape: tuple[int, ...]) -> Array | None:
    """A mask of places, flat."""
    if mask is None:
        return None
    array = device.array("mask", mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask must be bool, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"mask must have shape {shape}, got {array.shape}")
    return array.reshape(-1)


def _places(device: Device, mask: Any, given: Array) -> Array | None:
    """A mask of numbers or of places, as it meets the numbers."""
    if mask is None:
        return None
    array = device.array("mask", mask)
    if array.dtype != np.bool_:
        raise TypeError(f"mask must be bool, got {array.dtype}")
    if array.shape == given.shape:
        return array
    if given.ndim == 0 or array.shape != given.shape[:-1]:
        raise ValueError(
            f"mask must have shape {given.shape} or {given.shape[:-1]}, got {array.shape}"
        )
    whole: Array = device.xp.broadcast_to(array[..., np.newaxis], given.shape)
    return whole


def _weights(device: Device, weights: Any, classes: int, dtype: np.dtype[Any]) -> Array:
    """How much each class counts."""
    if weights is None:
        ones: Array = device.xp.ones(classes, dtype)
        return ones
    array = device.array("class_weights", weights)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"class_weights must be numbers, got {dtype_text(array.dtype)}")
    if array.shape != (classes,):
        raise ValueError(f"class_weights must have shape ({classes},), got {array.shape}")
    if device.values_are_free and not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError("class_weights must be finite numbers of at least 0")
    return array.astype(dtype, copy=False)


def _check_range(target: Array, mask: Array | None, classes: int) -> None:
    """Refuse targets that are no classes, where they count."""
    wrong = (target < 0) | (target >= classes)
    if mask is not None:
        wrong &= mask
    if wrong.any():
        raise ValueError(f"targets must be in 0..{classes - 1}, got {target[wrong][0]}")
