# SPDX-License-Identifier: Apache-2.0
"""ONNX's operators between recurrent ones, in NumPy: a function each, its attributes by keyword.

What an operator of the file has that its function lacks is refused when the file is read.
https://onnx.ai/onnx/operators says what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.interop.onnx.graph import dtype_of
from rnnkern.interop.onnx.windows import conv, pad

Operator = Callable[..., Any]
_MOST = 1 << 28  # elements of an array that grows out of nothing


def sized(shape: Any) -> tuple[int, ...]:
    """A shape that an operator is to fill, if it is no mistake."""
    lengths = tuple(int(n) for n in shape)
    size = 1
    for n in lengths:
        size *= n
        if n < 0 or size > _MOST:
            raise ValueError(f"an array of shape {lengths} is more than the {_MOST} elements kept")
    return lengths


def _axes(x: Array, axes: Any, given: Array | None) -> tuple[int, ...]:
    """Axes from the attribute or, in later versions, from an input."""
    found = axes if given is None else tuple(int(a) for a in given)
    if found is None:
        return tuple(range(x.ndim))
    return tuple(_axis(x.ndim, a) for a in found)


def _axis(ndim: int, axis: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is not one of {ndim} axes")
    return axis % ndim


def _squeeze(x: Array, given: Array | None = None, *, axes: Any = None) -> Any:
    if axes is None and given is None:
        return x.squeeze()
    return x.squeeze(_axes(x, axes, given))


def _unsqueeze(x: Array, given: Array | None = None, *, axes: Any = None) -> Array:
    places = tuple(axes) if given is None else tuple(int(a) for a in given)
    return np.expand_dims(x, places)


def _reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Any:
    lengths = [int(n) for n in shape]
    if not allowzero:
        lengths = [x.shape[k] if n == 0 else n for k, n in enumerate(lengths)]
    return x.reshape(lengths)


def _flatten(x: Array, *, axis: int = 1) -> Array:
    split = axis if axis >= 0 else axis + x.ndim
    if not 0 <= split <= x.ndim:
        raise ValueError(f"axis {axis} is not one of {x.ndim} axes")
    return x.reshape(int(np.prod(x.shape[:split], dtype=np.int64)), -1)


def _transpose(x: Array, *, perm: Any = None) -> Any:
    return x.transpose(perm)


def _concat(*arrays: Array, axis: int) -> Array:
    return np.concatenate(arrays, axis=axis)


def _split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, split: Any = None, num_outputs: int = 0
) -> tuple[Array, ...]:
    axis = _axis(x.ndim, axis)
    lengths = split if sizes is None else [int(n) for n in sizes]
    if lengths is None:
        if num_outputs < 1:
            raise ValueError("Split must say into what")
        each = -(-x.shape[axis] // num_outputs)
        lengths = [each] * (num_outputs - 1) + [x.shape[axis] - each * (num_outputs - 1)]
    if sum(lengths) != x.shape[axis] or min(lengths, default=0) < 0:
        raise ValueError(f"an axis of {x.shape[axis]} cannot be split into {list(lengths)}")
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis))


def _slice(
    x: Array,
    begin: Array | None = None,
    end: Array | None = None,
    along: Array | None = None,
    step: Array | None = None,
    *,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
) -> Array:
    first = [int(n) for n in (starts if begin is None else begin)]
    last = [int(n) for n in (ends if end is None else end)]
    places = axes if along is None else along
    places = range(len(first)) if places is None else [int(a) for a in places]
    steps = [1] * len(first) if step is None else [int(n) for n in step]
    index = [slice(None)] * x.ndim
    for axis, a, b, s in zip(places, first, last, steps, strict=True):
        if s == 0:
            raise ValueError("a step of Slice must not be 0")
        length = x.shape[_axis(x.ndim, axis)]
        # Past the ends of an axis is at its end, and an end below every index is before the first.
        low, high = (0, length) if s > 0 else (-1, length - 1)
        a = min(max(a + length if a < 0 else a, max(low, 0)), high)
        b = min(max(b + length if b < 0 else b, low), high if s > 0 else length)
        index[_axis(x.ndim, axis)] = slice(a, None if b < 0 else b, s)
    return x[tuple(index)]


def _gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    return np.take(x, indices, axis=axis)


def _expand(x: Array, shape: Array) -> Array:
    wanted = np.broadcast_shapes(x.shape, sized(shape))
    return np.broadcast_to(x, sized(wanted))


def _constant_of_shape(shape: Array, *, value: Array | None = None) -> Any:
    filled = np.zeros(1, np.float32) if value is None else value.reshape(1)
    made: Any = np.full(sized(shape), filled[0])
    return made


def _tile(x: Array, repeats: Array) -> Array:
    times = [int(n) for n in repeats]
    sized([n * m for n, m in zip(x.shape, times, strict=True)])
    return np.tile(x, times)


def _range(start: Array, limit: Array, delta: Array) -> Any:
    first, last, step = (a.reshape(()).item() for a in (start, limit, delta))
    sized([max(0, int(np.ceil((last - first) / step)))] if step else [-1])
    return np.arange(first, last, step).astype(start.dtype)


def _one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Any:
    count = int(depth.reshape(()))
    sized((*indices.shape, count))
    index = np.asarray(indices, np.int64)
    index = np.where(index < 0, index + count, index)
    place = axis if axis >= 0 else axis + indices.ndim + 1
    places = np.arange(count).reshape([-1] + [1] * (indices.ndim - place))
    hot = np.expand_dims(index, place)
    return np.where(hot == places, values[1], values[0])


def _cast(x: Array, *, to: int, saturate: int = 1) -> Array:
    return x.astype(dtype_of(to))


def _shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    return np.asarray(x.shape[start:end], np.int64)


def _softmax(x: Array, *, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    result: Array = e / e.sum(axis=axis, keepdims=True)
    return result


def _log_softmax(x: Array, *, axis: int = -1) -> Array:
    down = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
    result: Array = down - np.log(np.exp(down).sum(axis=axis, keepdims=True))
    return result


def _over_rest(function: Operator) -> Operator:
    """Softmax before version 13: over all axes from `axis` on, taken for one."""

    def softmax(x: Array, *, axis: int = 1) -> Array:
        result: Array = function(_flatten(x, axis=axis), axis=1).reshape(x.shape)
        return result

    return softmax


def _reduce(function: Operator) -> Operator:
    def reduced(
        x: Array,
        given: Array | None = None,
        *,
        axes: Any = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Array:
        if noop_with_empty_axes and (given is None or given.size == 0):
            return x
        if given is not None and given.size == 0:
            given = None
        result: Array = function(x, axis=_axes(x, axes, given), keepdims=bool(keepdims))
        return np.asarray(result, x.dtype)

    return reduced


def _arg_max(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
    if select_last_index:
        raise ValueError("select_last_index of ArgMax is not supported")
    return np.argmax(x, axis=axis, keepdims=bool(keepdims))


def _gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    y = a.dtype.type(alpha) * ((a.T if transA else a) @ (b.T if transB else b))
    return y if c is None else y + a.dtype.type(beta) * c


def _layer_norm(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Any:
    axes = tuple(range(_axis(x.ndim, axis), x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + x.dtype.type(epsilon))
    y = centred / spread * scale
    return y if bias is None else y + bias


def _sigmoid(x: Array) -> Any:
    return (x.dtype.type(0.5) * (1 + np.tanh(x.dtype.type(0.5) * x))).astype(x.dtype)


def _leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    return np.where(x < 0, x.dtype.type(alpha) * x, x)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.abs(a) // np.abs(b)  # integers are cut, not floored
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient), a.dtype)


def _pow(a: Array, b: Array) -> Any:
    return np.power(a, b).astype(a.dtype)


def _dropout(x: Array, *rest: Array, ratio: float = 0.5, seed: int = 0) -> Array:
    if len(rest) > 1 and np.any(rest[1]):
        raise ValueError("Dropout in training mode is not supported")
    return x


def _fold(function: Operator) -> Operator:
    def folded(first: Array, *rest: Array) -> Array:
        for other in rest:
            first = function(first, other)
        return first

    return folded


def operators(opset: int) -> dict[str, Operator]:
    """By name, as that version has them."""
    plain = opset >= 13
    return {
        "Abs": np.absolute,
        "Add": np.add,
        "And": np.logical_and,
        "ArgMax": _arg_max,
        "Cast": _cast,
        "Concat": _concat,
        "ConstantOfShape": _constant_of_shape,
        "Conv": conv,
        "Div": _divide,
        "Dropout": _dropout,
        "Equal": np.equal,
        "Exp": np.exp,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "Gemm": _gemm,
        "Greater": np.greater,
        "Identity": lambda x: x,
        "LayerNormalization": _layer_norm,
        "LeakyRelu": _leaky_relu,
        "Less": np.less,
        "Log": np.log,
        "LogSoftmax": _log_softmax if plain else _over_rest(_log_softmax),
        "MatMul": np.matmul,
        "Max": _fold(np.maximum),
        "Min": _fold(np.minimum),
        "Mul": np.multiply,
        "Neg": np.negative,
        "Not": np.logical_not,
        "OneHot": _one_hot,
        "Or": np.logical_or,
        "Pad": pad,
        "Pow": _pow,
        "Range": _range,
        "ReduceMax": _reduce(np.max),
        "ReduceMean": _reduce(np.mean),
        "ReduceMin": _reduce(np.min),
        "ReduceProd": _reduce(np.prod),
        "ReduceSum": _reduce(np.sum),
        "Relu": lambda x: np.maximum(x, 0),
        "Reshape": _reshape,
        "Shape": _shape,
        "Sigmoid": _sigmoid,
        "Size": lambda x: np.asarray(x.size, np.int64),
        "Slice": _slice,
        "Softmax": _softmax if plain else _over_rest(_softmax),
        "Split": _split,
        "Sqrt": np.sqrt,
        "Squeeze": _squeeze,
        "Sub": np.subtract,
        "Tanh": np.tanh,
        "Tile": _tile,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
        "Where": np.where,
    }
