# SPDX-License-Identifier: Apache-2.0
"""ONNX's RNN, GRU and LSTM as layers.

https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours say what the operators are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.interop.building import recurrent
from rnnkern.interop.gates import ORDERS, Theirs
from rnnkern.interop.onnx.functions import read_functions
from rnnkern.interop.onnx.graph import Node
from rnnkern.layers.base import Recurrent

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_ATTRIBUTES = {"direction", "hidden_size", "layout", "activations", "clip"}
_ATTRIBUTES |= {"activation_alpha", "activation_beta"}
_OWN_ATTRIBUTES = {"RNN": set(), "GRU": {"linear_before_reset"}, "LSTM": {"input_forget"}}
# By operator, the arguments that its functions are, in its order.
_ARGUMENTS = {
    "RNN": ("nonlinearity",),
    "GRU": ("recurrent_activation", "activation"),
    "LSTM": ("recurrent_activation", "activation", "output_activation"),
}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


class Recurrence:
    """One node, run by one layer.

    Attributes:
        layer: that layer.

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
        after = _one_of(node, "linear_before_reset", 0, (0, 1))
        coupled = bool(_one_of(node, "input_forget", 0, (0, 1)))
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
        rows, inputs = len(ORDERS["ONNX"][op].split()) * units, weights[0].shape[2]
        shapes = ((count, rows, inputs), (count, rows, units), (count, 2 * rows))
        for key, array, shape in zip("WRB", (*weights, bias), shapes, strict=True):
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"{key} of {node} must have shape {shape} for hidden_size={units}, got "
                    f"{array.shape}"
                )
        peepholes = _peepholes(node, constants, named, (count, 3 * units), coupled=coupled)
        options: dict[str, Any] = {
            "dtype": "float64" if weights[0].dtype == np.float64 else "float32",
            "reverse": direction == "reverse",
            "clip": _bound(node),
        }
        functions = read_functions(node, count)
        for name, own in zip(_ARGUMENTS[op], zip(*functions, strict=True), strict=True):
            options[name] = own if count == 2 else own[0]
        if options.get("output_activation") == options.get("activation"):
            options.pop("output_activation", None)
        if op == "GRU":
            options["reset"] = "after" if after else "before"
        if op == "LSTM":
            options |= {"coupled": coupled, "peepholes": peepholes is not None}
        parts = [_part([*weights, bias], d, coupled=coupled) for d in range(count)]
        try:
            self.layer: Recurrent = recurrent(
                "ONNX",
                op,
                parts,
                bidirectional=count == 2,
                options=options,
                unit_weights=peepholes,
            )
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
        dtype = self.layer.dtype
        x_own = x.astype(dtype, copy=False)
        has_c = self._node.op == "LSTM"
        states = [
            self._state(given.get(key), dtype)
            for key in (("initial_h", "initial_c") if has_c else ("initial_h",))
        ]
        y, last = _run(self.layer, x_own, states, lengths)
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
    layer: Recurrent, x: Array, states: Sequence[Array | None], lengths: Array | None
) -> tuple[Array, list[Array]]:
    """The layer's y (T, D, B, H) and last states (D, B, H)."""
    none = all(s is None for s in states)
    state: Any = None if none else states[0] if len(states) == 1 else tuple(states)
    y, last = layer(x, state, lengths)
    steps, batch, _ = y.shape
    y = y.reshape(steps, batch, layer.num_directions, layer.hidden_size).transpose(0, 2, 1, 3)
    return y, list(last) if isinstance(last, tuple) else [last]


def _part(arrays: Sequence[Array | None], d: int, *, coupled: bool) -> Theirs:
    """One direction's arrays of W, R and B; without a forget gate where 1 - i takes its place."""
    w, r, b = (None if a is None else a[d] for a in arrays)
    assert w is not None
    assert r is not None
    halves = [] if b is None else np.split(b, 2)
    return Theirs(*(_without_forget(a) if coupled else a for a in (w, r, *halves)))


def _without_forget(rows: Array) -> Array:
    """Rows i, o, f, c without those of f."""
    blocks = np.split(rows, 4)
    return np.concatenate([blocks[0], blocks[1], blocks[3]])


def _peepholes(
    node: Node,
    constants: Mapping[str, Array],
    named: Mapping[str, str],
    shape: tuple[int, int],
    *,
    coupled: bool,
) -> list[Array] | None:
    """P, which has i, o, f, by direction as ours: u, f, o, or u, o. None where it is 0."""
    if not named.get("P"):
        return None
    given = _constant(node, constants, named, "P")
    if given.shape != shape:
        raise ValueError(f"P of {node} must have shape {shape}, got {given.shape}")
    if not np.any(given):
        return None
    ours = (0, 1) if coupled else (0, 2, 1)
    return [np.stack([own[k] for k in ours]) for own in given.reshape(len(given), 3, -1)]


def _bound(node: Node) -> float | None:
    """The node's clip; 0 is none."""
    clip = node.attributes.get("clip", 0.0)
    if not isinstance(clip, (int, float)):
        raise ValueError(f"{node} must have a number as clip, got {clip!r}")
    return clip or None


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
