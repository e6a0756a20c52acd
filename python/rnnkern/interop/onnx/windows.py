# SPDX-License-Identifier: Apache-2.0
"""ONNX's convolution and padding, in NumPy: what often stands before a recurrent node."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern._checks import Array

_MOST = 1 << 20  # elements that one side is padded by
_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def pad(
    x: Array,
    given: Array | None = None,
    constant: Array | None = None,
    along: Array | None = None,
    *,
    mode: str = "constant",
    pads: Any = None,
    value: float = 0.0,
) -> Array:
    """ONNX's Pad, by lengths from an attribute or, in later versions, from an input."""
    lengths = [int(n) for n in (pads if given is None else given)]
    axes = list(range(x.ndim)) if along is None else [int(a) % x.ndim for a in along]
    if len(lengths) != 2 * len(axes) or min(lengths, default=0) < 0 or mode not in _MODES:
        raise ValueError(f"Pad of {x.shape} by {lengths} with mode={mode!r} is not supported")
    if max(lengths, default=0) > _MOST:
        raise ValueError(f"Pad by {max(lengths)} is not supported")
    widths = [(0, 0)] * x.ndim
    for k, axis in enumerate(axes):
        widths[axis] = (lengths[k], lengths[k + len(axes)])
    if mode != "constant":
        return np.pad(x, widths, mode=_MODES[mode])  # type: ignore[call-overload, no-any-return]
    filled = value if constant is None else constant.reshape(-1)[0]
    return np.pad(x, widths, constant_values=filled)


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Any = None,
    group: int = 1,
    kernel_shape: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Array:
    """ONNX's Conv of x (B, C, ...) with weight (O, C / group, ...)."""
    space = x.ndim - 2
    if auto_pad not in ("NOTSET", "VALID") or space < 1 or weight.ndim != x.ndim:
        raise ValueError(f"Conv of {x.shape} with {weight.shape}, {auto_pad=} is not supported")
    dilations = dilations or (1,) * space
    strides = strides or (1,) * space
    pads = pads or (0,) * (2 * space)
    sizes = weight.shape[2:]
    if not len(dilations) == len(strides) == len(pads) // 2 == space or min(*pads, 0) < 0:
        raise ValueError(f"Conv has {dilations=}, {strides=} and {pads=} for {space} axes")
    if min(*dilations, *strides, group) < 1 or max(pads) > _MOST:
        raise ValueError(f"Conv has {dilations=}, {strides=}, {group=} and {pads=}")
    if kernel_shape is not None and tuple(kernel_shape) != sizes:
        raise ValueError(f"Conv has {kernel_shape=}, but weights of {sizes}")
    channels, out = x.shape[1], weight.shape[0]
    if channels != weight.shape[1] * group or out % group:
        raise ValueError(f"Conv of {channels} channels cannot be with {weight.shape}, {group=}")
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:space], pads[space:], strict=True)])
    spans = tuple((n - 1) * d + 1 for n, d in zip(sizes, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    places = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, d) for d in dilations)
    whole = slice(None), slice(None)
    windows = windows[whole + places + taps]
    each, of_group = channels // group, out // group
    axes = tuple(range(2 + space, 2 + 2 * space))
    parts = []
    for g in range(group):
        seen = windows[:, g * each : (g + 1) * each]
        filters = weight[g * of_group : (g + 1) * of_group]
        parts.append(np.tensordot(seen, filters, ((1, *axes), tuple(range(1, 2 + space)))))
    y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
    return y if bias is None else y + bias.reshape(-1, *(1,) * space)
