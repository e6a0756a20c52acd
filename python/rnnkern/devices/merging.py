# SPDX-License-Identifier: Apache-2.0
"""What two directions give together, where it is not the kernels that make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices.spec import LayerSpec


def merged(xp: Any, spec: LayerSpec, parts: Sequence[Array]) -> Array:
    """One array (..., features) of what each direction gave, (..., P), by their array module."""
    if len(parts) == 1:
        return parts[0]
    if not spec.merges:
        whole: Array = xp.concatenate(parts, axis=-1)
        return whole
    first, second = parts
    with np.errstate(all="ignore"):
        if spec.merge == "product":
            return first * second
        total: Array = first + second
        return total * spec.dtype.type(0.5) if spec.merge == "average" else total


def split_gradient(spec: LayerSpec, gradient: Array, parts: Sequence[Array]) -> list[Array]:
    """The way back: ∂L/∂(each direction's), of ∂L/∂(what they give together).

    `parts` are what they gave; "product" alone looks at them.
    """
    if not spec.merges:
        return spec.by_direction(gradient)
    if spec.merge == "sum":
        return [gradient, gradient]
    with np.errstate(all="ignore"):
        if spec.merge == "average":
            half = gradient * spec.dtype.type(0.5)
            return [half, half]
        return [gradient * parts[1], gradient * parts[0]]
