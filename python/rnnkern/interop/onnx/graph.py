# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as plain Python: nodes, constants and inputs, each checked before it is believed.

The ``onnx`` package reads the protobuf, and nothing else of it is used: whatever the file holds, it
has nothing to check or infer.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from rnnkern._checks import Array
from rnnkern._files import open_regular

OLDEST, NEWEST = 7, 26  # versions of the operators that are understood
# https://onnx.ai/onnx/api/helper.html has the numbers.
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
_DTYPES |= {9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}


class Node(NamedTuple):
    """One operator's use.

    Attributes:
        op: the operator.
        name: as errors call it, unique in its graph.
        inputs: names of values, "" where an optional one is left out.
        outputs: likewise.
        attributes: by name: numbers, strings, arrays, or tuples of numbers or strings.

    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.op})"


class Input(NamedTuple):
    """What the model is to be given: a None is a length that the file leaves open."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


class Graph(NamedTuple):
    """A model.

    Attributes:
        inputs: by name.
        outputs: names.
        constants: by name.
        nodes: each after those whose outputs it takes.
        opset: the version of its operators.

    """

    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    constants: dict[str, Array]
    nodes: list[Node]
    opset: int


def read(source: bytes | str | os.PathLike[str]) -> Graph:
    """The graph of a file, or of its bytes.

    Raises:
        ImportError: the ``onnx`` package is not installed.
        ValueError: it is no ONNX model, or has what is not understood, which is named.
        OSError: the file cannot be read.

    """
    onnx = load_onnx("from_onnx")
    if isinstance(source, (str, os.PathLike)):
        with open_regular(source) as file:
            content = file.read()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
    else:
        raise TypeError(f"source must be a path or bytes, got {type(source)!r}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own, which is no ValueError
        raise ValueError(f"source is not an ONNX model: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise ValueError("source is not an ONNX model: it has no graph")
    return _graph(onnx, model)


def load_onnx(who: str) -> Any:
    """The ``onnx`` package, which is no part of what rnnkern installs."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            f"{who} needs the onnx package: pip install 'rnnkern[interop]'"
        ) from error
    return onnx


def _graph(onnx: Any, model: Any) -> Graph:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is None or not OLDEST <= opset <= NEWEST:
        raise ValueError(f"source must be of operators {OLDEST} to {NEWEST}, got version {opset}")
    graph = model.graph
    if graph.sparse_initializer:
        raise ValueError("source has sparse initializers, which are not supported")
    constants = {t.name: _array(onnx, f"initializer {t.name!r}", t) for t in graph.initializer}
    inputs = {i.name: _input(onnx, i) for i in graph.input if i.name not in constants}
    known = {"", *constants, *inputs}
    nodes: list[Node] = []
    names: set[str] = set()
    for proto in graph.node:
        node = _node(onnx, proto, names)
        names.add(node.name)
        for name in node.inputs:
            if name not in known:
                raise ValueError(f"{node} takes {name!r}, which nothing before it gives")
        for name in node.outputs:
            if name and name in known:
                raise ValueError(f"{node} gives {name!r}, which is there already")
        known.update(node.outputs)
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    outputs = tuple(o.name for o in graph.output)
    for name in outputs:
        if not name or name not in known:
            raise ValueError(f"source has the output {name!r}, which nothing gives")
    return Graph(inputs, outputs, constants, nodes, opset)


def _node(onnx: Any, proto: Any, taken: set[str]) -> Node:
    texts = [proto.op_type, proto.name, proto.domain, *proto.input, *proto.output]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a node has names that are no text: {texts}")
    outputs = tuple(proto.output)
    if not any(outputs):
        raise ValueError(f"a node of {proto.op_type!r} has no output")
    name = proto.name or next(filter(None, outputs))
    while name in taken:
        name += "_"
    if proto.domain not in ("", "ai.onnx"):
        raise ValueError(
            f"node {name!r} is a {proto.op_type!r} of {proto.domain!r}: only ONNX's own operators "
            "are supported"
        )
    attributes = {}
    for attribute in proto.attribute:
        what = f"attribute {attribute.name!r} of node {name!r} ({proto.op_type})"
        if attribute.name in attributes or attribute.ref_attr_name:
            raise ValueError(f"{what} cannot be told")
        attributes[attribute.name] = _attribute(onnx, what, attribute)
    return Node(proto.op_type, name, tuple(proto.input), outputs, attributes)


def _attribute(onnx: Any, what: str, proto: Any) -> Any:
    kinds = onnx.AttributeProto
    if proto.type == kinds.TENSOR:
        return _array(onnx, what, proto.t)
    if proto.type in (kinds.FLOAT, kinds.INT):
        return proto.f if proto.type == kinds.FLOAT else proto.i
    if proto.type in (kinds.FLOATS, kinds.INTS):
        return tuple(proto.floats if proto.type == kinds.FLOATS else proto.ints)
    try:
        if proto.type == kinds.STRING:
            return proto.s.decode()
        if proto.type == kinds.STRINGS:
            return tuple(s.decode() for s in proto.strings)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is no text") from error
    names = {number: name for name, number in kinds.AttributeType.items()}
    raise ValueError(f"{what} is a {names.get(proto.type, proto.type)}, which is not supported")


def _constant(node: Node) -> Array:
    if len(node.attributes) == 1 and len(node.outputs) == 1:
        ((name, value),) = node.attributes.items()
        if name == "value" and isinstance(value, np.ndarray):
            return value
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise ValueError(f"{node} must have one value of numbers, got {sorted(node.attributes)}")


def _array(onnx: Any, what: str, tensor: Any) -> Array:
    """A tensor of the file."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ValueError(
            f"{what} is in a file of its own, which is not supported: "
            "onnx.save(onnx.load(path), one_file) puts all into one"
        )
    dtype = _dtype(what, tensor.data_type)
    size = 1
    for length in tensor.dims:
        if length < 0:
            raise ValueError(f"{what} has the shape {tuple(tensor.dims)}")
        size *= length
    try:
        if tensor.HasField("raw_data"):
            array = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).astype(dtype)
        else:
            array = onnx.numpy_helper.to_array(tensor) if size < 1 << 40 else np.zeros(0)
        if array.size != size:
            raise ValueError(f"it has {array.size} numbers")
        return np.asarray(array.reshape(tuple(tensor.dims)), dtype, order="C")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{what} cannot have the shape {tuple(tensor.dims)}: {error}") from error


def dtype_of(number: int) -> np.dtype[Any]:
    """The dtype that has that number in ONNX, if NumPy has it."""
    name = _DTYPES.get(number)
    if name is None:
        listed = ", ".join(_DTYPES.values())
        raise ValueError(f"ONNX's type number {number} is not one of {listed}")
    return np.dtype(name)


def _dtype(what: str, number: int) -> np.dtype[Any]:
    try:
        return dtype_of(number)
    except ValueError as error:
        raise ValueError(f"{what} is of a type that is not supported: {error}") from None


def _input(onnx: Any, proto: Any) -> Input:
    what = f"input {proto.name!r}"
    if proto.type.WhichOneof("value") != "tensor_type":
        raise ValueError(f"{what} is no tensor, and nothing else is supported")
    tensor = proto.type.tensor_type
    dtype = _dtype(what, tensor.elem_type)
    if not tensor.HasField("shape"):
        return Input(dtype, None)
    shape = [
        d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in tensor.shape.dim
    ]
    return Input(dtype, tuple(shape))
