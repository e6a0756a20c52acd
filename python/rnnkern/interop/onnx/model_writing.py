# SPDX-License-Identifier: Apache-2.0
"""Models of recurrent layers and a head as ONNX files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from rnnkern._checks import Array, boolean
from rnnkern.devices import to_host
from rnnkern.interop.onnx.writing import (
    Writer,
    add_layer,
    add_linear,
    add_merge,
    input_of,
    lengths_of,
)
from rnnkern.layers.base import Recurrent
from rnnkern.layers.linear import Linear


def write_model(
    layers: Sequence[Recurrent],
    residual: Sequence[bool],
    head: Linear,
    embedding: Array | None,
    readout: str,
    path: str | os.PathLike[str],
    *,
    lengths: bool,
    tokens: bool,
) -> None:
    """The file that `Model.to_onnx` describes.

    `residual` says of each layer whether its input is added to its output; `embedding` is the
    matrix of one, if there is one.
    """
    bottom, top, tokens = layers[0], layers[-1], boolean("tokens", tokens)
    writer = Writer("to_onnx", bottom.dtype)
    axes = ["batch", "steps"] if bottom.batch_first else ["steps", "batch"]
    if embedding is None:
        x = input_of(writer, bottom, "x", axes, tokens=tokens)
    else:
        table = writer.constant("embedding_weight", to_host(embedding))
        x = writer.node("Gather", table, writer.input("x", np.int64, axes), name="embedding")
    ends = lengths_of(writer, lengths=lengths)
    if bottom.batch_first:
        x = writer.node("Transpose", x, name="time_first", perm=[1, 0, 2])
    live = _live(writer, x, ends) if ends else ""
    last: list[str] = []
    for k, (layer, around) in enumerate(zip(layers, residual, strict=True)):
        y, last = add_layer(writer, layer, x, [], ends, f"recurrent_{k}")
        if around:
            if live:
                x = writer.node("Where", live, x, _zero(writer), name=f"within_{k}")
            y = writer.node("Add", y, x, name=f"residual_{k}")
        x = y
    if readout == "last" and residual[-1]:
        raise ValueError("to_onnx of readout='last' needs a last layer without residual connection")
    seen = {"all": _all, "last": _last, "mean": _mean, "max": _greatest}[readout](
        writer, top, x, last[0], ends, live
    )
    outputs = add_linear(writer, head.params, seen, "head")
    shape = ["batch", head.out_features]
    if readout == "all":
        shape = [*axes, head.out_features]
    writer.output(outputs, "y", shape)
    writer.write(path)


def _zero(writer: Writer) -> str:
    return writer.constant("zero", np.zeros((), writer.dtype))


def _live(writer: Writer, x: str, ends: str) -> str:
    """Which steps are within a row's length: (T, B, 1)."""
    shape = writer.node("Shape", x, name="shape")
    first = writer.constant("first", np.int64(0))
    steps = writer.node("Gather", shape, first, name="step_count")
    one = writer.constant("one", np.int64(1))
    places = writer.node("Range", first, steps, one, name="places")
    column = writer.constant("column", np.array([1, 2]))
    places = writer.node("Unsqueeze", places, column, name="places_of_rows")
    row = writer.constant("row", np.array([0, 2]))
    long = writer.node("Cast", ends, name="long_lengths", to=7)
    long = writer.node("Unsqueeze", long, row, name="ends_of_rows")
    live: str = writer.node("Less", places, long, name="live")
    return live


def _all(writer: Writer, top: Recurrent, y: str, h: str, ends: str, live: str) -> str:
    if not top.batch_first:
        return y
    turned: str = writer.node("Transpose", y, name="batch_first", perm=[1, 0, 2])
    return turned


def _last(writer: Writer, top: Recurrent, y: str, h: str, ends: str, live: str) -> str:
    """The last h of the top layer, both directions' side by side."""
    if not top.bidirectional:
        found: str = writer.node(
            "Gather", h, writer.constant("top", np.int64(-1)), name="last", axis=0
        )
        return found
    limits = [
        writer.constant(n, np.array([v])) for n, v in (("two", -2), ("end", 1 << 31), ("axis", 0))
    ]
    both = writer.node("Slice", h, *limits, name="last_both")
    if top.merge != "concat":
        return add_merge(writer, top, both, 0, "last")
    rows = writer.node("Transpose", both, name="last_rows", perm=[1, 0, 2])
    joined: str = writer.node(
        "Reshape", rows, writer.constant("joined", np.array([0, -1])), name="last"
    )
    return joined


def _mean(writer: Writer, top: Recurrent, y: str, h: str, ends: str, live: str) -> str:
    """The mean over a row's steps; past them y is 0."""
    if not ends:
        mean: str = writer.node("ReduceMean", y, name="mean", axes=[0], keepdims=0)
        return mean
    kept = writer.node("Where", live, y, _zero(writer), name="counted")
    first = writer.constant("steps_axis", np.array([0]))
    total = writer.node("ReduceSum", kept, first, name="total", keepdims=0)
    number = writer.node("Cast", ends, name="number", to=_NUMBERS[writer.dtype.name])
    least = writer.node(
        "Max", number, writer.constant("least", np.ones((), writer.dtype)), name="count"
    )
    column = writer.node(
        "Unsqueeze", least, writer.constant("last_axis", np.array([1])), name="counts"
    )
    share: str = writer.node("Div", total, column, name="mean")
    return share


def _greatest(writer: Writer, top: Recurrent, y: str, h: str, ends: str, live: str) -> str:
    """The greatest of a row's steps, 0 of a row without steps."""
    if ends:
        least = writer.constant("least", np.array(-np.inf, writer.dtype))
        y = writer.node("Where", live, y, least, name="counted")
    greatest: str = writer.node("ReduceMax", y, name="greatest", axes=[0], keepdims=0)
    if not ends:
        return greatest
    any_step = writer.node("Greater", ends, writer.constant("none", np.int32(0)), name="any_step")
    rows = writer.node(
        "Unsqueeze", any_step, writer.constant("column_axis", np.array([1])), name="rows"
    )
    found: str = writer.node("Where", rows, greatest, _zero(writer), name="max")
    return found


_NUMBERS = {"float32": 1, "float64": 11}  # of dtypes, in ONNX
