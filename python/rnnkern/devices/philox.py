# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers in array operations alone, the same as NumPy's bit for bit.

Philox4x64-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkern._checks import Array

# Rounds, multipliers and increments are those of its authors' Random123 (philox.h); the increments
# are the fractions of the golden ratio and of √3, in 64 bits.
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


BLOCK = 8  # float32 numbers that one value of the counter gives


def random(xp: Any, key: int, stream: int, shape: tuple[int, ...], first: int = 0) -> Array:
    """What ``Generator(Philox(key=[key, stream])).random(shape, dtype=float32)`` gives.

    Args:
        xp: the array module to compute with, NumPy or one like it.
        key: below 2**64, as is `stream`.
        shape: of the result, float32 in [0, 1).
        first: the place of the first number among all that the two keys give.

    """
    skipped, before = divmod(first, BLOCK)
    end = before + math.prod(shape)
    # Block n of four words comes from counter n + 1; a word gives its lower half, then its upper.
    blocks = xp.arange(skipped + 1, skipped + -(-end // BLOCK) + 1, dtype=np.uint64)
    zero = xp.zeros_like(blocks)
    words = [blocks, zero, zero, zero]
    keys = [key, stream]
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(words[0], _MULTIPLIERS[0])
        high_1, low_1 = _product(words[2], _MULTIPLIERS[1])
        words = [
            high_1 ^ words[1] ^ np.uint64(keys[0]),
            low_1,
            high_0 ^ words[3] ^ np.uint64(keys[1]),
            low_0,
        ]
        keys = [(k + weyl) % 2**64 for k, weyl in zip(keys, _WEYL, strict=True)]
    halves = xp.stack([half for w in words for half in (w & _LOW, w >> _HALF)], axis=1)
    top = (halves.reshape(-1)[before:end] >> np.uint64(8)).astype(np.float32)
    result: Array = (top * np.float32(2.0**-24)).reshape(shape)
    return result


def _product(a: Array, factor: int) -> tuple[Array, Array]:
    """The upper and the lower 64 bits of a·factor, from products of 32 bits."""
    a_low, a_high = a & _LOW, a >> _HALF
    f_low, f_high = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    crossed = a_low * f_high
    middle = ((a_low * f_low) >> _HALF) + (crossed & _LOW) + a_high * f_low
    return a_high * f_high + (crossed >> _HALF) + (middle >> _HALF), a * np.uint64(factor)
