# SPDX-License-Identifier: Apache-2.0
"""What others' layers gave, held against what ours give."""

from __future__ import annotations

import numpy as np

from rnnkern._checks import Array
from rnnkern.layers.base import Recurrent
from rnnkern.layers.linear import Linear

# How far outputs near 1 may be apart, for both have rounded. An equation of another kind is off by
# far more.
_NEAR = {"float32": 1e-4, "float64": 1e-9}


def check_near(
    theirs: str, layer: Recurrent | Linear, want: Array, got: Array, *, least: float = 0.0
) -> None:
    """Refuse a layer that does not compute what the one that it was made of did.

    Args:
        theirs: what errors call it.
        layer: the one that was made.
        want: what theirs gave.
        got: what ours gave.
        least: how far apart they may be in any dtype.

    Raises:
        ValueError: the outputs part.

    """
    if want.shape != got.shape:
        raise ValueError(f"{theirs} gives an output of shape {want.shape}, expected {got.shape}")
    near = max(_NEAR.get(str(want.dtype), 0.05), _NEAR[layer.dtype.name], least)
    off = float(np.max(np.abs(want - got), initial=0.0))
    if not off <= near * max(1.0, float(np.max(np.abs(got), initial=0.0))):
        raise ValueError(
            f"{theirs} must compute what a {type(layer).__name__} does, got outputs that are off "
            f"by {off:.3g}: it has equations of its own"
        )
