# SPDX-License-Identifier: Apache-2.0
"""What a model is made of, as a table, and how many numbers it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rnnkern._checks import boolean
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell
from rnnkern.layers.embedding import Embedding
from rnnkern.layers.fixed import Fixed, call_text
from rnnkern.layers.layer_norm import LayerNorm
from rnnkern.layers.linear import Linear
from rnnkern.training.named import named_arrays

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def num_parameters(model: Any) -> int:
    """How many numbers training changes.

    Args:
        model: A layer or model, arrays by name, or a dict or list of these, as optimizers take it.

    Raises:
        TypeError: It holds something else.

    Example:
        >>> rk.num_parameters(rk.LSTM(64, 256))
        328704

    """
    return sum(array.size for array in named_arrays("model", model).values())


def summary(model: Any, *, arrays: bool = False) -> str:
    """A table of a model's layers: what they are, what they give and how many parameters they have.

    In the shapes T is the number of steps and B that of rows; ``...`` stands for any axes.

    Args:
        model: A layer or model, or a dict or list of them.
        arrays: Whether each layer's parameters are listed below it, with their shapes.

    Raises:
        TypeError: It is something else.

    Example:
        >>> model = rk.Model(rk.GRU(8, 16), rk.Linear(16, 2), embedding=rk.Embedding(50, 8))
        >>> print(rk.summary(model))
        part       layer             output     parameters
        embedding  Embedding(50, 8)  (..., 8)          400
        recurrent  GRU(8, 16)        (T, B, 16)      1,200
        head       Linear(16, 2)     (..., 2)           34
        total                                        1,634  float32, 6.4 KiB

    """
    boolean("arrays", arrays)
    own = named_arrays("model", model)
    rows = [("part", "layer", "output", "parameters")]
    for name, layer in _layers(model, ""):
        text = call_text(layer, without=("seed", "dtype", "device"))
        rows.append((name, text, _output(layer), f"{num_parameters(layer):,}"))
        if arrays:
            rows += [
                (f"  {array_name}", "", str(array.shape), f"{array.size:,}")
                for array_name, array in layer.params.items()
            ]
    total = sum(array.size for array in own.values())
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if place == len(widths) - 1 else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    dtypes = ", ".join(sorted({array.dtype.name for array in own.values()}))
    lines[-1] += f"  {dtypes}, {_size(sum(array.nbytes for array in own.values()))}"
    return "\n".join(lines)


def _layers(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The layers that a model is made of, by the names that its parameters begin with."""
    parts = _parts(model)
    if not parts:
        if not _is_model(model):
            raise TypeError(
                f"model must be a layer, a model, or a dict or list of these, got {type(model)!r}"
            )
        yield prefix or type(model).__name__, model
    for name, part in parts.items():
        yield from _layers(part, f"{prefix}.{name}" if prefix else name)


def _parts(model: Any) -> dict[str, Any]:
    """What a model holds that has parameters, in the order of these; nothing of a layer."""
    if isinstance(model, Mapping):
        return {str(name): part for name, part in model.items()}
    if isinstance(model, (list, tuple)):
        return {str(place): part for place, part in enumerate(model)}
    if not _is_model(model):
        return {}
    held: dict[str, Any] = {}
    for name, value in vars(model).items():
        if isinstance(value, tuple) and all(map(_is_model, value)):
            held |= {str(place): part for place, part in enumerate(value)}
        elif _is_model(value):
            held[name] = value
    params: Any = vars(model)["params"]
    names = dict.fromkeys(name.partition(".")[0] for name in params if "." in name)
    return {name: held[name] for name in names}


def _is_model(value: Any) -> bool:
    """Whether it is a layer, or a model of some."""
    return isinstance(value, Fixed) and "params" in vars(value)


def _output(layer: Any) -> str:
    """The shape of what a layer gives."""
    if isinstance(layer, Recurrent):
        return f"({'B, T' if layer.batch_first else 'T, B'}, {layer.output_size})"
    if isinstance(layer, RecurrentCell):
        return f"(B, {layer.output_size})"
    if isinstance(layer, (Embedding, LayerNorm)):
        return f"(..., {layer.features})"
    return f"(..., {layer.out_features})" if isinstance(layer, Linear) else ""


def _size(count: int) -> str:
    """A number of bytes in words."""
    power = min(int(math.log(max(count, 1), 1024)), len(_UNITS) - 1)
    return f"{count} bytes" if power == 0 else f"{count / 1024**power:.1f} {_UNITS[power]}"
