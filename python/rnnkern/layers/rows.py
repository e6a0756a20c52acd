# SPDX-License-Identifier: Apache-2.0
"""What maps over the last axis share: rows of features, and sums over many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnkern._checks import Array, conversion, dtype_text
from rnnkern.devices import Device

_SUMMED_ROWS = 8192  # of a gradient, by themselves


def as_rows(device: Device, name: str, array: Array, features: int, dtype: np.dtype[Any]) -> Array:
    """``array`` (..., features) checked, as contiguous rows of ``features`` numbers."""
    if array.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype.name}, got {dtype_text(array.dtype)}: "
            f"{conversion(dtype, array.dtype)}"
        )
    if array.ndim == 0 or array.shape[-1] != features:
        raise ValueError(f"{name} must have shape (..., {features}), got {array.shape}")
    return device.contiguous(array).reshape(-1, features)


def summed(of_rows: Callable[..., Array], *arrays: Array) -> Array:
    """The sum of `of_rows` over blocks of rows: long sums of float32 lose digits."""
    total = of_rows(*(a[:_SUMMED_ROWS] for a in arrays))
    for start in range(_SUMMED_ROWS, len(arrays[0]), _SUMMED_ROWS):
        total += of_rows(*(a[start : start + _SUMMED_ROWS] for a in arrays))
    return total


def column_sums(rows: Array) -> Array:
    """The sum of all rows (N, features)."""
    sums: Array = summed(_of_block, rows).astype(rows.dtype)
    return sums


def _of_block(rows: Array) -> Array:
    """Of 16 rows as they are, for equal addends lose the same each time; of those in float64."""
    blocks, columns = len(rows) // 16, rows.shape[1]
    of_blocks = rows[: 16 * blocks].reshape(blocks, 16, columns).sum(axis=1)
    sums: Array = of_blocks.sum(axis=0, dtype=np.float64)
    if 16 * blocks < len(rows):
        sums += rows[16 * blocks :].sum(axis=0)
    return sums
