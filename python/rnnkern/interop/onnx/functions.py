# SPDX-License-Identifier: Apache-2.0
"""The functions of ONNX's RNN, GRU and LSTM, against those that layers are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnnkern.devices import CellOptions, Function
from rnnkern.interop.onnx.graph import Node
from rnnkern.layers.functions import KNOWN

# Of each operator, the functions of its gates as it has them when nobody asks for others.
FUNCTIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}

# Ours by theirs in small letters, and the numbers that it has there unless others are given.
_OURS: dict[str, tuple[str, tuple[float, ...]]] = {
    "sigmoid": ("sigmoid", ()),
    "tanh": ("tanh", ()),
    "relu": ("relu", ()),
    "softsign": ("softsign", ()),
    "softplus": ("softplus", ()),
    "hardsigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "affine": ("affine", (1.0, 0.0)),
    "leakyrelu": ("leaky_relu", (0.01,)),
    "elu": ("elu", (1.0,)),
    "thresholdedrelu": ("thresholded_relu", (1.0,)),
    "scaledtanh": ("scaled_tanh", (1.0, 1.0)),
}
_THEIRS = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "hard_sigmoid": "HardSigmoid",
    "identity": "Affine",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
}


def read_functions(node: Node, directions: int) -> list[list[str]]:
    """Of each direction what its gates apply, as layers are given it.

    The node's alphas and betas go in turn to those functions that take them.
    """
    default = FUNCTIONS[node.op]
    names = _listed(node, "activations", str) or list(default) * directions
    size = len(default)
    unknown = [name for name in names if name.lower() not in _OURS]
    if unknown or len(names) != size * directions:
        raise ValueError(
            f"{node} has activations={names}: a {node.op} here takes {size} in each direction, of "
            f"{', '.join(dict.fromkeys(_THEIRS.values()))}"
        )
    given = [_listed(node, f"activation_{greek}", float) for greek in ("alpha", "beta")]
    found = []
    for name in names:
        ours, numbers = _OURS[name.lower()]
        own = [own.pop(0) if own else n for n, own in zip(numbers, given, strict=False)]
        found.append(f"{ours}({', '.join(map(repr, own))})" if own else ours)
    return [found[d * size : (d + 1) * size] for d in range(directions)]


def _listed(node: Node, name: str, kind: type[Any]) -> list[Any]:
    """An attribute that is a list of such values; none where there is none."""
    values = node.attributes.get(name, ())
    if not isinstance(values, (tuple, list)) or not all(isinstance(v, kind) for v in values):
        raise ValueError(f"{node} must have a list of {kind.__name__} as {name}, got {values!r}")
    return list(values)


def written_functions(op: str, options: Sequence[CellOptions]) -> dict[str, Any]:
    """The attributes that give a node these functions and bounds."""
    functions: list[Function] = []
    for own in options:
        one = (own.candidate,) if op == "RNN" else (own.gate, own.candidate, own.output)
        functions += one[: len(FUNCTIONS[op])]
    attributes: dict[str, Any] = {"activations": [_THEIRS[name] for name, *_ in functions]}
    # Affine takes both numbers, whatever ours does.
    counts = [2 if name == "identity" else KNOWN[name][0] for name, *_ in functions]
    numbers = [(1.0, 0.0) if f[0] == "identity" else f[1:] for f in functions]
    for k, greek in enumerate(("alpha", "beta")):
        own_numbers = [n[k] for n, count in zip(numbers, counts, strict=True) if count > k]
        if own_numbers:
            attributes[f"activation_{greek}"] = own_numbers
    if options[0].clip != float("inf"):
        attributes["clip"] = options[0].clip
    return attributes
