# SPDX-License-Identifier: Apache-2.0
"""Which steps of a model's x its rows go through."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, host_array
from rnnkern.layers.marks import bool_marks
from rnnkern.layers.steps import live_steps


def checked_mask(x: Array, x_mask: Any) -> NDArray[np.bool_] | None:
    """A mask of the steps of x, a batch or one sequence, of tokens or features: a copy."""
    mask = bool_marks("x_mask", x_mask, x.shape if x.dtype.kind in "iu" else x.shape[:-1])
    return None if mask is None else mask.copy()


def live_within(
    shape: tuple[int, ...], axis: int, lengths: Any, x_mask: Any
) -> NDArray[np.bool_] | None:
    """Of steps (T, B), or (B, T) where ``axis`` is 1, or (T,): those within lengths and mask.

    ``None`` is all of them.
    """
    live: NDArray[np.bool_] | None = None if x_mask is None else host_array("x_mask", x_mask)
    if lengths is None:
        return live
    axis = axis if len(shape) == 2 else 0
    within = live_steps(shape[axis], np.asarray(lengths), axis).reshape(shape)
    return within if live is None else within & live
