# SPDX-License-Identifier: Apache-2.0
"""A small model, and what it is given."""

from __future__ import annotations

from typing import Any

import numpy as np

import rnnkern as rk

STEPS, BATCH, INPUTS, HIDDEN = 6, 3, 5, 4


FLOATS = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS), np.float32)


TOKENS = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))


LENGTHS = np.array([6, 2, 4])


def model(**options: Any) -> rk.Seq2Seq:
    return rk.Seq2Seq(INPUTS, 9, HIDDEN, bos=0, eos=8, seed=0, **options)


def unaligned(array: Any) -> Any:
    """The same numbers one byte off their boundaries."""
    raw = np.empty(array.nbytes + 1, np.uint8)
    moved = raw[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved
