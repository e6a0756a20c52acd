# SPDX-License-Identifier: Apache-2.0
"""Layers and models as ONNX files.

Cells that ONNX lacks are written as a GRU, which computes the same: a simplified GRU as one whose
reset gate is 1, a minimal gated unit as one whose two gates are the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from rnnkern._checks import Array, boolean
from rnnkern._files import replace
from rnnkern._version import __version__
from rnnkern.devices import CellOptions, Weights, cell_facts, to_host
from rnnkern.interop.gates import ORDERS, Order, Theirs
from rnnkern.interop.onnx.functions import written_functions
from rnnkern.interop.onnx.graph import load_onnx
from rnnkern.interop.parts import ONNX_OPTIONS, own_weights, parts_of, refuse_options
from rnnkern.layers.configured import Configured, spec_of, state_names
from rnnkern.layers.parameters import Parameters

_OPSET, _IR = 17, 8  # of 2022: what runtimes have had since then
_OPEN = 100.0  # σ of it is 1 in float64, too
# Cells that ONNX lacks: for the gates r, u and n of a GRU the one of ours that takes its place.
_AS_GRU = {"SimplifiedGRU": (None, "u", "n"), "MGU": ("f", "f", "n")}


class Writer:
    """A graph that grows node by node, to be written to a file."""

    def __init__(self, who: str, dtype: np.dtype[Any]) -> None:
        self._onnx = load_onnx(who)
        self.dtype = dtype
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._taken: set[str] = set()

    def input(self, name: str, dtype: Any, shape: Sequence[Any] | None) -> str:
        """An input of the graph; lengths that stay open have names."""
        self._inputs.append(self._value(name, dtype, shape))
        return self._new(name)

    def output(self, value: str, name: str, shape: Sequence[Any] | None) -> None:
        """An output of the graph, of the writer's dtype."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(self._value(name, self.dtype, shape))

    def constant(self, name: str, array: Any) -> str:
        """An array of the file."""
        name = self._new(name)
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, name: str, count: int = 1, **attributes: Any) -> Any:
        """A node; the name of its output, or the list of those of several."""
        name = self._new(name)
        names = [name] if count == 1 else [self._new(f"{name}_{k}") for k in range(count)]
        self._nodes.append(
            self._onnx.helper.make_node(op, list(inputs), names, name=name, **attributes)
        )
        return name if count == 1 else names

    def write(self, path: str | os.PathLike[str]) -> None:
        """The file, whole or not at all."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, "rnnkern", self._inputs, self._outputs, self._constants
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR,
            producer_name="rnnkern",
            producer_version=__version__,
        )
        try:
            content = model.SerializeToString()
        except Exception as error:  # protobuf's own
            raise ValueError(f"an ONNX file holds at most 2 GiB: {error}") from error

        def put(file: BinaryIO) -> None:
            file.write(content)

        replace(path, put)

    def _value(self, name: str, dtype: Any, shape: Sequence[Any] | None) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, shape)

    def _new(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def write_layer(
    layer: Configured,
    path: str | os.PathLike[str],
    *,
    state: bool,
    lengths: bool,
    tokens: bool,
) -> None:
    """The file that `Recurrent.to_onnx` describes."""
    writer = Writer("to_onnx", layer.dtype)
    axes = ["batch", "steps"] if layer.batch_first else ["steps", "batch"]
    count = layer.num_layers * layer.num_directions
    sizes = [count, "batch", layer.hidden_size]
    x = input_of(writer, layer, "x", axes, tokens=tokens)
    names, state = state_names(layer), boolean("state", state)
    states = [writer.input(f"{n}_0", layer.dtype, sizes) for n in names] if state else []
    ends = lengths_of(writer, lengths=lengths)
    if layer.batch_first:
        x = writer.node("Transpose", x, name="time_first", perm=[1, 0, 2])
    y, last = add_layer(writer, layer, x, states, ends)
    if layer.batch_first:
        y = writer.node("Transpose", y, name="batch_first", perm=[1, 0, 2])
    writer.output(y, "y", [*axes, layer.output_size])
    for name, value in zip(names, last, strict=True):
        writer.output(value, f"{name}_n", sizes)
    writer.write(path)


def write_linear(params: Parameters, dtype: np.dtype[Any], path: str | os.PathLike[str]) -> None:
    """The file that `Linear.to_onnx` describes."""
    writer = Writer("to_onnx", dtype)
    x = writer.input("x", dtype, None)
    writer.output(add_linear(writer, params, x), "y", None)
    writer.write(path)


def lengths_of(writer: Writer, *, lengths: bool) -> str:
    """The rows' lengths as an input of the graph, where they are wanted."""
    return writer.input("lengths", np.int32, ["batch"]) if boolean("lengths", lengths) else ""


def input_of(
    writer: Writer, layer: Configured, name: str, axes: Sequence[str], *, tokens: bool
) -> str:
    """A layer's x as an input of the graph; tokens become one-hot rows."""
    if not boolean("tokens", tokens):
        return writer.input(name, layer.dtype, [*axes, layer.input_size])
    given = writer.input(name, np.int64, axes)
    depth = writer.constant(f"{name}_depth", np.int64(layer.input_size))
    values = writer.constant(f"{name}_values", np.array([0, 1], layer.dtype))
    hot: str = writer.node("OneHot", given, depth, values, name=f"{name}_one_hot")
    return hot


def add_linear(writer: Writer, params: Parameters, x: str, name: str = "linear") -> str:
    """The nodes of a ``Linear`` with these parameters, and their output."""
    weight = writer.constant(f"{name}_weight", to_host(params["weight"]).T)
    y: str = writer.node("MatMul", x, weight, name=f"{name}_product")
    if "bias" in params:
        bias = writer.constant(f"{name}_bias", to_host(params["bias"]))
        y = writer.node("Add", y, bias, name=name)
    return y


def add_layer(
    writer: Writer,
    layer: Configured,
    x: str,
    states: Sequence[str],
    lengths: str,
    name: str = "",
) -> tuple[str, list[str]]:
    """The nodes of a recurrent layer, x and y time first; y and the last states.

    `states` are the initial ones, none where they are zero, and a "" for a zero one among them.
    """
    op, attributes = _operator(layer)
    name = name or op.lower()
    layers, directions = layer.num_layers, layer.num_directions
    direction = "bidirectional" if directions == 2 else "reverse" if layer.reverse else "forward"
    split = [_split(writer, s, layers, directions) for s in states]
    parts, peepholes = _parts(layer), _peepholes(layer)
    kinds = len(state_names(layer))
    last: list[list[str]] = []
    for k in range(layers):
        own = parts[k * directions : (k + 1) * directions]
        arrays = [
            np.stack([p.weight_ih for p in own]),
            np.stack([p.weight_hh for p in own]),
            *_biases(own),
        ]
        weights = [
            writer.constant(f"{name}_{letter}{k}", a)
            for letter, a in zip("WRB", arrays, strict=False)
        ]
        given = [x, *weights, *[""] * (4 - 1 - len(weights)), lengths, *(s[k] for s in split)]
        if peepholes:
            mine = np.stack(peepholes[k * directions : (k + 1) * directions])
            given += [""] * (7 - len(given)) + [writer.constant(f"{name}_P{k}", mine)]
        while not given[-1]:
            given.pop()
        y, *ends = writer.node(
            op,
            *given,
            name=f"{name}_l{k}",
            count=1 + kinds,
            hidden_size=layer.hidden_size,
            direction=direction,
            **attributes,
        )
        last.append(ends)
        if directions == 1:
            one = writer.constant("second_axis", np.array([1]))
            x = writer.node("Squeeze", y, one, name=f"{name}_y{k}")
        elif layer.merge != "concat":
            x = add_merge(writer, layer, y, 1, f"{name}_y{k}")
        else:
            y = writer.node("Transpose", y, name=f"{name}_t{k}", perm=[0, 2, 1, 3])
            shape = writer.constant("two_axes_and_rest", np.array([0, 0, -1]))
            x = writer.node("Reshape", y, shape, name=f"{name}_y{k}")
    if layers == 1:
        return x, last[0]
    return x, [
        writer.node("Concat", *ends, name=f"{name}_last_{k}", axis=0)
        for k, ends in enumerate(zip(*last, strict=True))
    ]


def add_merge(writer: Writer, layer: Configured, both: str, axis: int, name: str) -> str:
    """The node that makes one of two directions along that axis, as the layer merges them."""
    if layer.merge == "sum":  # which has its axes as an input
        axes = writer.constant(f"axis_{axis}_alone", np.array([axis]))
        total: str = writer.node("ReduceSum", both, axes, name=name, keepdims=0)
        return total
    op = {"average": "ReduceMean", "product": "ReduceProd"}[layer.merge]
    merged: str = writer.node(op, both, name=name, axes=[axis], keepdims=0)
    return merged


def _split(writer: Writer, state: str, layers: int, directions: int) -> list[str]:
    """A state (L·D, B, H) by layer."""
    if layers == 1 or not state:
        return [state] * layers
    sizes = writer.constant("layer_sizes", np.full(layers, directions))
    parts: list[str] = writer.node(
        "Split", state, sizes, name=f"{state}_split", count=layers, axis=0
    )
    return parts


def _operator(layer: Configured) -> tuple[str, dict[str, Any]]:
    """ONNX's operator for the layer, and its attributes."""
    kind, config, options = type(layer).__name__, layer.config(), spec_of(layer).options
    if kind not in ORDERS["ONNX"] and kind not in _AS_GRU:
        raise ValueError(f"ONNX has no operator for a {kind}")
    refuse_options(layer, "ONNX", known=ONNX_OPTIONS)
    op = "GRU" if kind in _AS_GRU else kind
    if options is not None and kind in _AS_GRU:
        _check_as_gru(layer, kind, options)
    attributes = {} if options is None else written_functions(op, options)
    if kind == "RNN" and options is None:
        attributes["activations"] = [config["nonlinearity"].capitalize()] * layer.num_directions
    if kind == "GRU":
        attributes["linear_before_reset"] = int(config["reset"] == "after")
    if config.get("coupled"):
        attributes["input_forget"] = 1
    return op, attributes


def _check_as_gru(layer: Configured, kind: str, options: Sequence[CellOptions]) -> None:
    """Whether a GRU computes the same: a gate that is 1 must be, and f(-a) be 1 - f(a)."""
    for own in options:
        name, alpha, beta = own.gate
        symmetric = name == "sigmoid" or (name == "hard_sigmoid" and beta == 0.5 and alpha > 0.02)
        if not symmetric or (kind == "SimplifiedGRU" and own.clip < _OPEN):
            raise ValueError(
                f"ONNX has no operator for a {kind} with recurrent_activation="
                f"{layer.recurrent_activation!r} and clip={layer.clip!r}"
            )


def _parts(layer: Configured) -> list[Theirs]:
    """The layer's parameters as ONNX has them, by layer and direction."""
    places = _AS_GRU.get(type(layer).__name__)
    if places is None:
        parts = parts_of(layer, "ONNX", known=ONNX_OPTIONS)
        return [_with_forget(p) for p in parts] if layer.config().get("coupled") else parts
    order = Order("ONNX", "GRU", cell_facts("gru_before"))
    return [order.to_theirs(_as_gru(w, layer.gates, places)) for w in own_weights(layer)]


def _peepholes(layer: Configured) -> list[Array]:
    """P of each layer and direction, which has i, o, f; none where there are no peepholes."""
    found = []
    for own in own_weights(layer):
        if own.unit_weights is None:
            return []
        u, *f, o = own.unit_weights
        found.append(np.concatenate([u, o, f[0] if f else np.zeros_like(u)]))
    return found


def _with_forget(part: Theirs) -> Theirs:
    """Rows i, o, c with zeros for those of f, which input_forget leaves unread."""
    whole = []
    for rows in part:
        if rows is not None:
            i, o, c = np.split(rows, 3)
            rows = np.concatenate([i, o, np.zeros_like(i), c])
        whole.append(rows)
    return Theirs(*whole)  # type: ignore[arg-type]


def _as_gru(own: Weights, gates: Sequence[str], places: Sequence[str | None]) -> Weights:
    """The rows of a GRU, reset before, from those of another cell; a missing gate is open."""
    units = own.recurrent.shape[1]
    bias = np.zeros(len(own.recurrent), own.recurrent.dtype) if own.bias is None else own.bias

    def rows(array: Array, closed: float) -> Array:
        blocks = array.reshape(len(gates), units, *array.shape[1:])
        missing = np.full(blocks.shape[1:], closed, array.dtype)
        return np.concatenate([missing if g is None else blocks[gates.index(g)] for g in places])

    return Weights(rows(own.weight_ih, 0.0), rows(own.recurrent, 0.0), rows(bias, _OPEN), None)


def _biases(parts: Sequence[Theirs]) -> list[Array]:
    """B (D, 2·G·H), if there is one."""
    rows = [
        np.concatenate([p.bias_ih, p.bias_hh])
        for p in parts
        if p.bias_ih is not None and p.bias_hh is not None
    ]
    return [np.stack(rows)] if rows else []
