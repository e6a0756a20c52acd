# SPDX-License-Identifier: Apache-2.0
"""ONNX's RNN, GRU and LSTM as layers.

https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours say what the operators are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.interop.building import recurrent
from rnnkern.interop.gates import Theirs
from rnnkern.interop.onnx.graph import Node
from rnnkern.layers.base import Recurrent

# Of each operator, the functions of its gates as it has them when nobody asks for others.
FUNCTIONS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_ATTRIBUTES = {"direction", "hidden_size", "layout", "activations", "clip"}
_ATTRIBUTES |= {"activation_alpha", "activation_beta"}
_OWN_ATTRIBUTES = {"RNN": set(), "GRU": {"linear_before_reset"}, "LSTM": {"input_forget"}}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


class Recurrence:
    """One node, run by one layer, or by one for each direction where their functions differ.

    Attributes:
        layers: those layers.

    """

    def __init__(self, node: Node, constants: Mapping[str, Array]) -> None:
        op, attributes = node.op, node.attributes
        unknown = attributes.keys() - _ATTRIBUTES - _OWN_ATTRIBUTES[op]
        if unknown:
            raise ValueError(f"{node} has the attribute {min(unknown)!r}, which is not supported")
        if len(node.inputs) > (8 if op == "LSTM" else 6):
            raise ValueError(f"{node} has {len(node.inputs)} inputs, more than the operator")
        named = dict(zip(_INPUTS, node.inputs, strict=False))
        self._node = node
        self._given = {k: name for k, name in named.items() if name and k not in "WRBP"}
        if "X" not in self._given:
            raise ValueError(f"{node} has no X")
        self._layout = _one_of(node, "layout", 0, (0, 1))
        direction = _one_of(node, "direction", "forward", tuple(_DIRECTIONS))
        count = _DIRECTIONS[direction]
        for name in ("clip", "input_forget"):
            if attributes.get(name, 0):
                raise ValueError(f"{node} has {name}={attributes[name]}, which is not supported")
        if named.get("P") and np.any(_constant(node, constants, named, "P")):
            raise ValueError(f"{node} has peepholes (P), which are not supported")
        after = _one_of(node, "linear_before_reset", 0, (0, 1))
        weights = [_constant(node, constants, named, key) for key in "WR"]
        bias = _constant(node, constants, named, "B") if named.get("B") else None
        for key, array, axes in zip("WRB", (*weights, bias), (3, 3, 2), strict=True):
            if array is not None and (array.ndim != axes or array.shape[0] != count):
                raise ValueError(
                    f"{key} of {node} must have {axes} axes, the first of {count} for "
                    f"direction={direction!r}, got shape {array.shape}"
                )
        units = weights[1].shape[2]
        if attributes.get("hidden_size", units) != units:
            raise ValueError(
                f"{node} has hidden_size={attributes['hidden_size']}, but R {weights[1].shape}"
            )
        functions = _functions(node, count)
        parts = [_part(op, [*weights, bias], d) for d in range(count)]
        dtype = "float64" if weights[0].dtype == np.float64 else "float32"
        options: list[dict[str, Any]] = [{"dtype": dtype} for _ in range(count)]
        for own, function in zip(options, functions, strict=True):
            if op == "RNN":
                own["nonlinearity"] = function[0]
            if op == "GRU":
                own["reset"] = "after" if after else "before"
        # Both directions in one layer, or, where their functions differ, one after the other.
        apart = count == 2 and options[0] != options[1]
        groups = [parts] if not apart else [parts[:1], parts[1:]]
        if apart or direction == "reverse":
            options[-1]["reverse"] = True
        try:
            self.layers: list[Recurrent] = [
                recurrent("ONNX", op, group, bidirectional=len(group) == 2, options=own)
                for group, own in zip(groups, options, strict=False)
            ]
        except ValueError as error:
            raise ValueError(f"{node}: {error}") from error

    def __call__(self, values: Mapping[str, Array]) -> tuple[Array, ...]:
        """Y, Y_h and for an LSTM Y_c, as ONNX lays them out, of the values by name."""
        given = {key: values[name] for key, name in self._given.items()}
        x = given["X"]
        if x.ndim != 3:
            raise ValueError(f"X must have 3 axes, got shape {x.shape}")
        batch_first = bool(self._layout)
        if batch_first:
            x = x.swapaxes(0, 1)
        lengths = given.get("sequence_lens")
        dtype = self.layers[0].dtype
        x_own = x.astype(dtype, copy=False)
        has_c = self._node.op == "LSTM"
        states = [
            self._state(given.get(key), dtype)
            for key in (("initial_h", "initial_c") if has_c else ("initial_h",))
        ]
        results = [_run(layer, x_own, states, k, lengths) for k, layer in enumerate(self.layers)]
        y = np.concatenate([r[0] for r in results], axis=1)  # (T, D, B, H)
        last = [np.concatenate(parts) for parts in zip(*(r[1] for r in results), strict=True)]
        if batch_first:
            y = y.transpose(2, 0, 1, 3)
            last = [s.swapaxes(0, 1) for s in last]
        return tuple(a.astype(x.dtype, copy=False) for a in (y, *last))

    def _state(self, given: Array | None, dtype: np.dtype[Any]) -> Array | None:
        """An initial state (D, B, H)."""
        if given is None:
            return None
        if given.ndim != 3:
            raise ValueError(f"an initial state must have 3 axes, got shape {given.shape}")
        state: Array = given.swapaxes(0, 1) if self._layout else given
        return state.astype(dtype, copy=False)


def _run(
    layer: Recurrent,
    x: Array,
    states: Sequence[Array | None],
    place: int,
    lengths: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Run the layer that begins at that direction: y (T, D, B, H), last states (D, B, H)."""
    count = layer.num_directions
    own = [None if s is None else s[place : place + count] for s in states]
    state: Any = None if all(s is None for s in own) else own[0] if len(own) == 1 else tuple(own)
    y, last = layer(x, state, lengths)
    steps, batch, _ = y.shape
    y = y.reshape(steps, batch, count, layer.hidden_size).transpose(0, 2, 1, 3)
    return y, last if isinstance(last, tuple) else (last,)


def _part(op: str, arrays: Sequence[Array | None], d: int) -> Theirs:
    """One direction's arrays of W, R and B."""
    w, r, b = (None if a is None else a[d] for a in arrays)
    assert w is not None
    assert r is not None
    if b is None:
        return Theirs(w, r)
    half = b.shape[0] // 2
    return Theirs(w, r, b[:half], b[half:])


def _functions(node: Node, count: int) -> list[tuple[str, ...]]:
    """Of each direction, the functions of its gates, if the cells here have them."""
    default = FUNCTIONS[node.op]
    given = tuple(str(name).lower() for name in node.attributes.get("activations", default * count))
    size = len(default)
    split = [given[d * size : (d + 1) * size] for d in range(count)]
    known: Callable[[tuple[str, ...]], bool] = lambda f: f == default  # noqa: E731
    if node.op == "RNN":
        known = {("tanh",), ("relu",)}.__contains__
    if len(given) != size * count or not all(map(known, split)):
        raise ValueError(
            f"{node} has activations={list(node.attributes['activations'])}, which are not "
            f"supported: a {node.op} has {', '.join(default)}"
            f"{' or relu' if node.op == 'RNN' else ''} in each direction"
        )
    return split


def _one_of(node: Node, name: str, default: Any, options: tuple[Any, ...]) -> Any:
    value = node.attributes.get(name, default)
    if value not in options:
        raise ValueError(f"{node} must have {name} as one of {options}, got {value!r}")
    return value


def _constant(
    node: Node, constants: Mapping[str, Array], named: Mapping[str, str], key: str
) -> Array:
    """One of the node's arrays of weights, which the file must hold."""
    name = named.get(key, "")
    if name not in constants:
        raise ValueError(f"{key} of {node} must be an initializer or a constant, got {name!r}")
    array = constants[name]
    if array.dtype.kind != "f":
        raise ValueError(f"{key} of {node} must be of floating numbers, got {array.dtype}")
    return array
