# SPDX-License-Identifier: Apache-2.0
"""ONNX models as programs of layers and NumPy's functions."""

from __future__ import annotations

import functools
import inspect
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkern._checks import Array, host_array
from rnnkern.interop.building import linear
from rnnkern.interop.onnx.functions import FUNCTIONS
from rnnkern.interop.onnx.graph import Graph, Input, Node, read
from rnnkern.interop.onnx.operators import Operator, operators
from rnnkern.interop.onnx.recurrent import Recurrence
from rnnkern.layers.base import Recurrent
from rnnkern.layers.linear import Linear

# What a function of NumPy, or a layer, raises of arrays that do not fit.
_UNFIT = (ValueError, TypeError, IndexError, AttributeError, OverflowError, ZeroDivisionError)


class _Step(NamedTuple):
    """A node made ready: what it gives of the values so far."""

    node: Node
    run: Callable[[Mapping[str, Array]], Any]


class OnnxModel:
    """An ONNX model whose recurrent and linear nodes are layers; see `from_onnx`.

    Attributes:
        layers: the layers by their nodes' names, in the graph's order: train them, save them, take
            them out. A call runs them with the parameters that they have then. A recurrent node is
            one layer, but two where its directions have different functions.
        inputs: the names that a call must be given.
        outputs: the names that it gives.

    Example:
        >>> import onnx
        >>> rk.LSTM(3, 4, seed=0).to_onnx("lstm.onnx")
        >>> model = rk.from_onnx("lstm.onnx")
        >>> list(model.inputs), list(model.outputs)
        (['x'], ['y', 'h_n', 'c_n'])

    """

    layers: dict[str, Recurrent | Linear]

    def __init__(self, graph: Graph) -> None:
        """Of a graph that was read; `from_onnx` is the way to it."""
        self._graph = graph
        self.inputs = tuple(graph.inputs)
        self.outputs = graph.outputs
        self.layers = {}
        self._constants = dict(graph.constants)
        self._steps: list[_Step] = []
        table = operators(graph.opset)
        biases = _biases(graph)
        for node in graph.nodes:
            if node.name in biases.values():
                continue  # a layer's own
            if node.op in FUNCTIONS:
                recurrence = Recurrence(node, self._constants)
                self._name(node, recurrence.layer)
                self._steps.append(_Step(node, recurrence))
                continue
            if node.op not in table:
                raise ValueError(f"{node} is of an operator that is not supported")
            step = self._linear(node, biases.get(node.name)) or _plain(node, table[node.op])
            if all(name in self._constants for name in filter(None, node.inputs)) and node.inputs:
                self._constants |= _results(step, self._constants)
            else:
                self._steps.append(step)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The outputs by name, of a dict of the inputs by name.

        Raises:
            KeyError: an input is missing, or has no place.
            TypeError, ValueError: one is of another dtype or shape than the file says; or nodes do
                not fit each other, and the message names the one that failed.

        """
        if strange := inputs.keys() - self._graph.inputs.keys():
            raise KeyError(f"inputs has {min(strange)!r}, but the model takes {self.inputs}")
        values = dict(self._constants)
        for name, wanted in self._graph.inputs.items():
            if name not in inputs:
                raise KeyError(f"inputs lacks {name!r}: the model takes {self.inputs}")
            values[name] = _checked(name, inputs[name], wanted)
        for step in self._steps:
            values |= _results(step, values)
        return {name: np.array(values[name]) for name in self.outputs}

    def __repr__(self) -> str:
        return f"OnnxModel(inputs={self.inputs}, outputs={self.outputs}, layers={self.layers})"

    def _name(self, node: Node, layer: Recurrent | Linear) -> None:
        name = node.name.replace(".", "_")  # as files and optimizers take them
        while name in self.layers:
            name += "_"
        self.layers[name] = layer

    def _linear(self, node: Node, bias: str | None) -> _Step | None:
        """A product with a matrix of the file, and what is added to it, as a layer."""
        found = _weights(node, self._constants, bias, self._graph)
        if found is None:
            return None
        weight, vector, last = found
        layer = linear(weight, vector, dtype=weight.dtype.name)
        self._name(last, layer)
        return _Step(last, lambda values: layer(values[node.inputs[0]]))


def from_onnx(source: bytes | str | os.PathLike[str]) -> OnnxModel:
    """An ONNX model to be called, whose recurrent and linear nodes are layers of ours.

    RNN, GRU (with either ``linear_before_reset``) and LSTM in all directions and both layouts, with
    initial states and ``sequence_lens``; MatMul, Add and Gemm with weights of the file; and what
    usually stands between: shapes, arithmetic, activations, convolutions. Everything else is
    refused by name when the file is read: peepholes, ``clip``, ``input_forget``, other activations,
    control flow, operators of others. The ``onnx`` package reads the file: extra ``interop``.

    Args:
        source: a file's path, or its bytes.

    Returns:
        The model: called with a dict of inputs by the graph's names it gives a dict of outputs by
        name, and ``.layers`` has the layers by name, to train, save or take out.

    Raises:
        ImportError: the ``onnx`` package is not installed.
        TypeError: the source is neither a path nor bytes.
        ValueError: it is no ONNX model, or has what is not supported; the message names it.
        OSError: the file cannot be read.

    Example:
        >>> import onnx
        >>> rk.GRU(3, 4, seed=0).to_onnx("gru.onnx")
        >>> model = rk.from_onnx("gru.onnx")
        >>> model({"x": np.ones((5, 2, 3), np.float32)})["y"].shape
        (5, 2, 4)
        >>> adam = rk.Adam(model.layers)

    """
    return OnnxModel(read(source))


def _results(step: _Step, values: Mapping[str, Array]) -> dict[str, Array]:
    """What the node gives, by name."""
    node = step.node
    try:
        with np.errstate(all="ignore"):
            given = step.run(values)
    except _UNFIT as error:
        raise ValueError(f"{node} cannot be run: {error}") from error
    found = given if isinstance(given, tuple) else (given,)
    if len(node.outputs) > len(found):
        raise ValueError(f"{node} has {len(node.outputs)} outputs, expected {len(found)}")
    return {
        name: np.asarray(array) for name, array in zip(node.outputs, found, strict=False) if name
    }


def _plain(node: Node, function: Operator) -> _Step:
    """A node that one of NumPy's functions runs, if that knows its attributes."""
    attributes = node.attributes
    if not isinstance(function, np.ufunc):
        known = inspect.signature(function).parameters
        for name in attributes:
            if name not in known or known[name].kind is not inspect.Parameter.KEYWORD_ONLY:
                raise ValueError(f"{node} has the attribute {name!r}, which is not supported")
    elif attributes:
        raise ValueError(f"{node} has the attribute {min(attributes)!r}, which is not supported")
    call = functools.partial(function, **attributes)
    names = list(node.inputs)
    while names and not names[-1]:
        names.pop()
    return _Step(node, lambda values: call(*(values[n] if n else None for n in names)))


def _biases(graph: Graph) -> dict[str, str]:
    """MatMul -> the Add that alone takes what it gives, and adds a vector of the file: names."""
    uses = Counter(name for node in graph.nodes for name in node.inputs)
    uses.update(graph.outputs)
    products = {n.outputs[0]: n for n in graph.nodes if n.op == "MatMul" and len(n.inputs) == 2}
    found = {}
    for node in graph.nodes:
        if node.op != "Add" or len(node.inputs) != 2:
            continue
        for of, vector in (node.inputs, node.inputs[::-1]):
            matmul = products.get(of)
            array = graph.constants.get(vector)
            if matmul is None or array is None or uses[of] != 1:
                continue
            weight = graph.constants.get(matmul.inputs[1])
            if weight is not None and weight.ndim == 2 and array.shape == weight.shape[1:]:
                found[matmul.name] = node.name
    return found


def _weights(
    node: Node, constants: Mapping[str, Array], bias: str | None, graph: Graph
) -> tuple[Array, Array | None, Node] | None:
    """Of a linear node weight (out, in), bias, and the node whose output that gives."""
    if node.op not in ("MatMul", "Gemm") or len(node.inputs) < 2 or node.attributes.get("transA"):
        return None
    b = constants.get(node.inputs[1])
    if b is None or b.ndim != 2 or 0 in b.shape or b.dtype not in (np.float32, np.float64):
        return None
    if not node.inputs[0] or node.inputs[0] in constants:
        return None
    if node.op == "MatMul":
        if bias is None:
            return b.T, None, node
        last = next(n for n in graph.nodes if n.name == bias)
        vector = next(constants[n] for n in last.inputs if n in constants)
        return b.T, vector.astype(b.dtype), last
    if node.attributes.keys() - {"alpha", "beta", "transA", "transB"}:
        return None
    weight = (b if node.attributes.get("transB") else b.T) * b.dtype.type(
        node.attributes.get("alpha", 1.0)
    )
    if len(node.inputs) < 3 or not node.inputs[2]:
        return weight, None, node
    c = constants.get(node.inputs[2])
    if c is None or c.size not in (1, len(weight)) or c.shape[-1:] not in ((), (1,), (c.size,)):
        return None
    c = np.broadcast_to(c.reshape(-1), weight.shape[:1])
    return weight, c * b.dtype.type(node.attributes.get("beta", 1.0)), node


def _checked(name: str, value: Any, wanted: Input) -> Array:
    """An input as the file says it must be."""
    array = host_array(f"inputs[{name!r}]", value)
    if array.dtype != wanted.dtype:
        raise TypeError(f"inputs[{name!r}] must be {wanted.dtype}, got {array.dtype}")
    if wanted.shape is not None and (
        array.ndim != len(wanted.shape)
        or any(n is not None and n != m for n, m in zip(wanted.shape, array.shape, strict=True))
    ):
        shape = ", ".join("any" if n is None else str(n) for n in wanted.shape)
        raise ValueError(f"inputs[{name!r}] must have shape ({shape}), got {array.shape}")
    return array
