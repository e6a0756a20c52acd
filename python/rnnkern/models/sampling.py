# SPDX-License-Identifier: Apache-2.0
"""Tokens drawn by the probabilities that logits give them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, finite_float, positive_int
from rnnkern.devices import device_of


def sample(
    logits: Any,
    random: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> NDArray[np.int64]:
    """Draw a class of each row, by softmax(logits / temperature).

    Args:
        logits: (..., C), float32 or float64; a class is ruled out by a logit of -inf.
        random: Where the draws come from, one number a row: the same generator gives the same
            classes on every device.
        temperature: Above 0. Below 1 likely classes become likelier; at 0 there would be the
            likeliest alone, which is ``logits.argmax(axis=-1)``.
        top_k: Draw among so many likeliest classes, ties by their order; ``None`` takes all.

    Returns:
        (...) integers in 0..C-1.

    Raises:
        TypeError: ``random`` is no generator, or a number is of the wrong type.
        ValueError: ``temperature`` or ``top_k`` is out of range, or a row has no likeliest class:
            a NaN, an infinity or nothing but -inf (not looked for on a GPU).

    Example:
        >>> logits = np.log(np.array([[0.5, 0.5, 0.0]] * 1000) + 1e-30)
        >>> drawn = rk.sample(logits, np.random.default_rng(0))
        >>> np.bincount(drawn, minlength=3)
        array([473, 527,   0])

    """
    device = device_of(logits)
    xp, logits = device.xp, device.array("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., classes), got {logits.shape}")
    if not isinstance(random, np.random.Generator):
        raise TypeError(
            f"random must be a generator, as np.random.default_rng(seed), got {type(random)!r}"
        )
    temperature = finite_float("temperature", temperature, minimum=0.0, exclusive=True)
    wide, order = logits.astype(np.float64), None
    if top_k is not None and positive_int("top_k", top_k) < wide.shape[-1]:
        order = xp.argsort(-wide, axis=-1, kind="stable")[..., :top_k]
        wide = xp.take_along_axis(wide, order, axis=-1)
    top = wide.max(axis=-1, keepdims=True)
    if device.values_are_free and not np.isfinite(top).all():
        raise ValueError("logits must have a finite greatest number in each row")
    drawn = device.put(random.random(logits.shape[:-1]))[..., None]
    with np.errstate(all="ignore"):  # what is far from likely vanishes
        sums = xp.cumsum(np.exp((wide - top) / temperature), axis=-1)
    total = sums[..., -1:]
    # Below the total, so that no class is drawn that adds nothing to it.
    bound = np.minimum(drawn * total, np.nextafter(total, 0.0))
    place: Array = (sums <= bound).sum(axis=-1)
    if order is not None:
        place = xp.take_along_axis(order, place[..., None], axis=-1)[..., 0]
    return place.astype(np.int64)


class Sampler:
    """Draws as ``sample`` does from one logits after the other, of a seed or of a fresh one."""

    def __init__(self, temperature: float, top_k: int | None, seed: int | None) -> None:
        self._temperature, self._top_k = temperature, top_k
        seed = None if seed is None else positive_int("seed", seed, minimum=0)
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Any) -> NDArray[np.int64]:
        """A class of each row."""
        return sample(logits, self._random, temperature=self._temperature, top_k=self._top_k)
