# SPDX-License-Identifier: Apache-2.0
"""Layers made of arrays that came from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnkern._checks import Array, float_dtype
from rnnkern.cells import layer_classes
from rnnkern.interop.gates import ORDERS, Order, Theirs
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import spec_of
from rnnkern.layers.linear import Linear
from rnnkern.layers.parameters import undrawn
from rnnkern.layers.weights import parameter_names


def recurrent(
    whose: str,
    kind: str,
    parts: Sequence[Theirs],
    *,
    bidirectional: bool = False,
    options: Mapping[str, Any],
    unit_weights: Sequence[Array] | None = None,
) -> Recurrent:
    """A layer of the class `kind` with their arrays.

    Args:
        whose: they are, a key of `ORDERS`.
        kind: the name of our class.
        parts: of each layer its one or two directions, in the order of the states.
        bidirectional: whether there are two.
        options: further ones of the constructor; "dtype" is what the arrays become.
        unit_weights: of each part those that no product multiplies, as ours, where there are any.

    Raises:
        ValueError: the shapes of the arrays do not fit each other.

    """
    if kind not in ORDERS[whose]:
        raise ValueError(f"{whose} has no cell like {kind}")
    directions = 2 if bidirectional else 1
    outputs = units = _last("weight_hh", parts[0].weight_hh)
    if parts[0].weight_hr is not None:
        units = _last("weight_hr", parts[0].weight_hr)
        options = {**options, "proj_size": outputs}
    inputs = _last("weight_ih", parts[0].weight_ih)
    has_bias = any(p.bias_ih is not None or p.bias_hh is not None for p in parts)
    layer: Recurrent = undrawn(
        layer_classes()[kind],
        {
            **options,
            "input_size": inputs,
            "hidden_size": units,
            "num_layers": len(parts) // directions,
            "bidirectional": bidirectional,
            "bias": has_bias,
        },
    )
    spec = spec_of(layer)
    order = Order(whose, kind, spec.facts)
    rows = len(layer.gates) * units
    arrays: dict[str, Array] = {}
    for k, (part, names) in enumerate(zip(parts, parameter_names(spec), strict=True)):
        width = inputs if k < directions else spec.features
        shapes = ((rows, width), (rows, outputs), (rows,), (rows,), (outputs, units))
        for field, array, shape in zip(Theirs._fields, part, shapes, strict=True):
            if array is not None and array.shape != shape:
                way = ", the second direction," if k % directions else ""
                raise ValueError(
                    f"{field} of layer {k // directions}{way} must have shape {shape} in a {kind} "
                    f"with input_size={inputs} and hidden_size={units}, got {array.shape}"
                )
        made = [None if array is None else np.asarray(array, spec.dtype) for array in part]
        if has_bias and made[2] is None:
            made[2] = np.zeros(rows, spec.dtype)
        ours = order.to_ours(Theirs(*made))  # type: ignore[arg-type]
        if unit_weights is not None:
            ours = ours._replace(unit_weights=np.asarray(unit_weights[k], spec.dtype))
        arrays |= {n: a for n, a in zip(names, ours, strict=True) if n and a is not None}
    layer.params.fill(arrays)
    return layer


def linear(weight: Array, bias: Array | None, *, dtype: Any, device: str = "cpu") -> Linear:
    """A ``Linear`` with weight (out, in) and bias (out,)."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight must have shape (out, in), got {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {weight.shape[:1]}, got {bias.shape}")
    layer: Linear = undrawn(
        Linear,
        {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": bias is not None,
            "dtype": dtype,
            "device": device,
        },
    )
    arrays = {"weight": np.asarray(weight, layer.dtype)}
    if bias is not None:
        arrays["bias"] = np.asarray(bias, layer.dtype)
    layer.params.fill(arrays)
    return layer


def dtype_for(dtype: Any, arrays: Sequence[Array]) -> str:
    """The dtype asked for, or the widest of the arrays', float32 at least."""
    if dtype is not None:
        return str(float_dtype("dtype", dtype).name)
    return "float64" if any(a.dtype == np.float64 for a in arrays) else "float32"


def _last(name: str, array: Array) -> int:
    """The columns of a matrix, of which there are some."""
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must have two axes and elements, got shape {array.shape}")
    return int(array.shape[1])
