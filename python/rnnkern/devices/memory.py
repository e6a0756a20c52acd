# SPDX-License-Identifier: Apache-2.0
"""Which arrays lie in the same memory: exact, from addresses and strides alone, on any device.

An array is seen as contiguous runs of bytes, all of one length. There are never more of them than
the array has rows, so that a question costs less than a call of the kernels on that array.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Region(NamedTuple):
    """The memory of a strided array; strides and ``item``, the size of an element, in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item: int

    def overlaps(self, other: Region) -> bool:
        """Whether there is a byte that belongs to both."""
        if 0 in self.shape or 0 in other.shape:
            return False
        begin, length = self._runs()
        other_begin, other_length = other._runs()
        # All of a region's runs are as long: the last that begins before an end reaches furthest.
        last = np.searchsorted(other_begin, begin + length) - 1
        reached = other_begin[np.maximum(last, 0)] + other_length
        return bool(np.any((last >= 0) & (reached > begin)))

    def has_own_elements(self) -> bool:
        """Whether no two elements share a byte."""
        if 0 in self.shape:
            return True
        axes = [
            (n, abs(stride)) for n, stride in zip(self.shape, self.strides, strict=True) if n > 1
        ]
        if any(stride == 0 for _, stride in axes):
            return False
        span = self.item + sum((n - 1) * stride for n, stride in axes)
        if self.item * math.prod(n for n, _ in axes) > span:
            return False
        begin, length = self._runs()
        return bool(np.all(np.diff(begin) >= length))

    def _runs(self) -> tuple[NDArray[np.int64], int]:
        """Where the runs begin, in order, and the length of each."""
        begin, length = self.address, self.item
        axes: list[tuple[int, int]] = []
        for stride, n in sorted(
            (abs(stride), n) for n, stride in zip(self.shape, self.strides, strict=True)
        ):
            if n == 1 or stride == 0:
                continue
            if stride == length and not axes:
                length *= n
            else:
                axes.append((stride, n))
        begin += sum(
            (n - 1) * stride
            for n, stride in zip(self.shape, self.strides, strict=True)
            if stride < 0
        )
        begins = np.array([begin], np.int64)
        for stride, n in axes:
            begins = np.add.outer(begins, np.arange(n, dtype=np.int64) * stride).reshape(-1)
        return np.sort(begins), length
