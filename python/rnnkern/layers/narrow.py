# SPDX-License-Identifier: Apache-2.0
"""Snapshots for inference whose weights are narrower than the layer's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rnnkern._checks import Array, choice
from rnnkern.layers.arguments import Layout
from rnnkern.layers.network import Network

_INT8_MOST = np.float32(127)


def check_narrow(network: Network, weights: str | None, offered: Sequence[str]) -> None:
    """Refuse weights that a network cannot have so."""
    if weights is None:
        return
    choice("weights", weights, offered)
    spec, device = network.spec, network.device
    if not device.has_stepper:
        remedy = (
            "compute='bfloat16' is its like there"
            if weights == "bfloat16"
            else "there is none on a GPU"
        )
        raise ValueError(
            f"weights={weights!r} needs device='cpu', got a layer with device={device.name!r}: "
            f"{remedy}"
        )
    if spec.dtype != np.float32:
        raise ValueError(
            f"weights={weights!r} needs a layer of dtype float32, got {spec.dtype.name}"
        )
    if weights == "int8":
        if spec.compute not in (None, "int8"):  # the second of a copied stream
            raise ValueError(
                f"weights='int8' needs a layer with compute=None, got compute={spec.compute!r}, "
                "which says how products are done"
            )
        if spec.facts.layer_norm:
            raise ValueError(
                "weights='int8' needs a layer with layer_norm=False, got True: what is rounded "
                "would be normalised"
            )


def narrow_layout(layout: Layout, weights: str | None) -> Layout:
    """That of a snapshot with such weights: int8 is how its products are done, too."""
    if weights != "int8":
        return layout
    return layout._replace(spec=layout.spec._replace(compute="int8"))


def round_weights(network: Network, weights: str | None) -> None:
    """Give the matrices of a snapshot, in place, values that such weights have."""
    if weights is None:
        return
    rounded = _rounded_to_int8 if weights == "int8" else _rounded_to_bfloat16
    for w in network.weights:
        for matrix in w.matrices:
            matrix[...] = rounded(matrix)


def _rounded_to_bfloat16(array: Array) -> Array:
    """The nearest float32 values whose lower half is 0, ties to even; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    result: Array = np.where(np.isnan(array), np.float32(np.nan), rounded.view(np.float32))
    return result


def _rounded_to_int8(matrix: Array) -> Array:
    """Rows of whole numbers in -127..127 times a scale.

    It is as the kernels pack them, csrc/cpu/gemm/int8_product.h: a scale has 16 bits, so that its
    products with such numbers are exact, and what is rounded once rounds to itself.
    """
    with np.errstate(all="ignore"):
        most: Array = np.abs(matrix).max(axis=1, keepdims=True)  # NaN where there is one
        scale = ((most / _INT8_MOST).view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)
        scale = scale.view(np.float32)
        scale[~np.isfinite(most)] = np.nan
        whole = np.where(scale == 0, np.float32(0), np.rint(matrix / scale))
        result: Array = whole * scale
    return result
