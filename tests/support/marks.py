# SPDX-License-Identifier: Apache-2.0
"""Which steps of a batch's rows are live."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from support.reference import Array


def live_steps(steps: int, lengths: Array | Sequence[int], mask: Array | None = None) -> Array:
    """(T, B) bool: the steps that rows of those lengths have, where the mask is True."""
    within: Array = np.arange(steps)[:, None] < np.asarray(lengths)
    return within if mask is None else within & mask
