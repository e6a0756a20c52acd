# SPDX-License-Identifier: Apache-2.0
"""Keras' recurrent layers, their weights and its files as layers of ours.

Keras has inputs in columns, so that kernels are turned; which gate stands where is in `gates`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnkern._checks import Array, DType, boolean, host_array
from rnnkern.interop.building import dtype_for, linear, recurrent
from rnnkern.interop.gates import Theirs
from rnnkern.interop.keras_files import read_layer
from rnnkern.interop.probing import check_near
from rnnkern.layers.base import Recurrent
from rnnkern.layers.linear import Linear

_KINDS = {"SimpleRNN": "RNN", "GRU": "GRU", "LSTM": "LSTM"}
_MERGES = {"concat": "concat", "sum": "sum", "ave": "average", "mul": "product"}
_GATES = {1: "SimpleRNN", 3: "GRU", 4: "LSTM"}
# Keras' activations as layers are given them; hard_sigmoid was another function before Keras 3.
_FUNCTIONS = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "hard_sigmoid": "hard_sigmoid",
    "softsign": "softsign",
    "softplus": "softplus",
    "elu": "elu",
    "leaky_relu": "leaky_relu(0.2)",
    "linear": "identity",
}
_OLD_HARD_SIGMOID = "hard_sigmoid(0.2, 0.5)"
# Where a configuration is told the version of Keras that it is of.
_VERSION = "keras_version"


class _Found(NamedTuple):
    """A layer of Keras': its class, in one or both directions, and its weights in Keras' order."""

    kind: str
    config: Mapping[str, Any]
    both: bool
    weights: list[Array]
    merge: str = "concat"


def from_keras(
    source: Any,
    name: str | None = None,
    *,
    reset_after: bool | None = None,
    activation: str = "tanh",
    batch_first: bool = True,
    dtype: DType | None = None,
    device: str = "cpu",
) -> Any:
    """A layer with the weights of Keras' ``SimpleRNN``, ``GRU``, ``LSTM`` or ``Dense``.

    One direction or both, as ``Bidirectional`` has them; one, or several on one another.
    Options that change what is computed are looked at, and refused by name where we have no like:
    activations that `Recurrent` does not know (``hard_sigmoid`` is x/5 + 1/2 of a layer or file
    from before Keras 3, and else x/6 + 1/2), directions that are not merged
    (``merge_mode=None``), ``go_backwards`` of layers on one another. A layer with ``go_backwards``
    gives its steps in the order of x here, and not as it ran. What only matters in Keras' training,
    as dropout, is left out.

    Args:
        source: a layer that has been built; a list of them, stacked on one another, which become
            one layer; a list of weights as ``layer.get_weights()`` gives; or the path of a file
            that Keras wrote: ``.keras``, ``.weights.h5`` or ``.h5``, also of Keras 2. Files need
            h5py (extra ``interop``), and no Keras.
        name: of the layer in a file or model; of a ``.weights.h5`` file the name of its group.
        reset_after: of a GRU's weights, which only say so by their biases; None takes it from
            there.
        activation: of a SimpleRNN's weights: "tanh", "relu" or another of Keras'.
        batch_first: of the layer; Keras has the batch first.
        dtype: "float32" or "float64"; None for that of the source.
        device: of the layer.

    Returns:
        A layer or `Linear` whose parameters are its own. One from a layer of Keras has been held
        against it: both have run a small random input.

    Raises:
        ImportError: a file is to be read, and h5py is not installed.
        TypeError: the source is none of these.
        ValueError: it has what we have not, or its weights do not fit; the message names it.
        OSError: the file cannot be read.

    Example:
        >>> kernel, of_h = np.ones((4, 9), np.float32), np.ones((3, 9), np.float32)
        >>> rk.from_keras([kernel, of_h, np.zeros((2, 9), np.float32)])
        GRU(4, 3, reset='after', batch_first=True)

    """
    if reset_after is not None:
        boolean("reset_after", reset_after)
    options = {"batch_first": batch_first, "device": device}
    if isinstance(source, (str, os.PathLike)):
        kind, config, weights = read_layer(source, name)
        if kind:
            return _made([_described(name, [kind], config, weights)], options, dtype)
        return _made([_guess(weights, reset_after, activation)], options, dtype)
    if hasattr(source, "get_layer"):
        if name is None:
            names = [layer.name for layer in source.layers]
            raise ValueError(f"name must say which layer of the model it is, one of {names}")
        source = source.get_layer(name)
    if hasattr(source, "get_weights"):
        layer = _made([_of_layer(source)], options, dtype)
        _probe(source, layer)
        return layer
    if not isinstance(source, (list, tuple)) or not source:
        raise TypeError(
            "source must be a layer of Keras, a list of layers or of weights, or a file's path, "
            f"got {type(source)!r}"
        )
    if all(hasattr(part, "get_weights") for part in source):
        for part in source:
            _probe(part, _made([_of_layer(part)], {**options, "batch_first": True}, dtype))
        return _made([_of_layer(part) for part in source], options, dtype)
    arrays = [host_array(f"source[{k}]", a) for k, a in enumerate(source)]
    return _made([_guess(arrays, reset_after, activation)], options, dtype)


def _made(found: Sequence[_Found], options: dict[str, Any], dtype: DType | None) -> Any:
    """One layer of what was found, stacked."""
    first = found[0]
    chosen = dtype_for(dtype, [w for one in found for w in one.weights])
    for one in found:
        for k, w in enumerate(one.weights):
            if w.dtype.kind != "f":
                raise TypeError(f"weight {k} of the {one.kind} must be of floats, got {w.dtype}")
    if first.kind == "Dense":
        if len(found) > 1:
            raise ValueError("source must be recurrent layers to be stacked, got a Dense")
        _refuse(first.kind, first.config, {"activation": ("linear", None)})
        if len(first.weights) not in (1, 2) or first.weights[0].ndim != 2:
            raise ValueError(f"a Dense has a kernel and a bias, got {_shapes(first.weights)}")
        return linear(
            first.weights[0].T, (*first.weights, None)[1], dtype=chosen, device=options["device"]
        )
    parts: list[Theirs] = []
    own: list[dict[str, Any]] = []
    for one in found:
        if (one.kind, one.both) != (first.kind, first.both):
            raise ValueError(f"layers to be stacked must be of one kind, got {one.kind} on others")
        made, fixed = _parts(one)
        parts += made
        own.append(fixed)
        if fixed.get("reverse") and len(found) > 1:
            raise ValueError(
                "layers to be stacked must not have go_backwards, which turns what the next one is "
                "given: take them one by one"
            )
        if fixed != own[0]:
            raise ValueError(f"layers to be stacked must be alike, got {fixed} on {own[0]}")
    return recurrent(
        "Keras",
        _KINDS[first.kind],
        parts,
        bidirectional=first.both,
        options={**options, **own[0], "dtype": chosen},
    )


def _parts(one: _Found) -> tuple[list[Theirs], dict[str, Any]]:
    """A layer's directions, and what our constructor is to be told."""
    kind, config = one.kind, one.config
    fixed: dict[str, Any] = {}
    _refuse(kind, config, {"go_backwards": (False,) if one.both else (False, True)})
    if one.both:
        fixed["merge"] = one.merge
    elif config.get("go_backwards"):
        fixed["reverse"] = True
    if kind == "SimpleRNN":
        fixed["nonlinearity"] = _function(kind, config, "activation", "tanh")
    else:
        fixed["activation"] = _function(kind, config, "activation", "tanh")
        gates = _function(kind, config, "recurrent_activation", "sigmoid")
        fixed["recurrent_activation"] = gates
    count = 2 if one.both else 1
    each = len(one.weights) // count
    if each not in (2, 3) or each * count != len(one.weights):
        raise ValueError(
            f"a {kind}{' in both directions' if one.both else ''} has kernels and biases, got "
            f"{_shapes(one.weights)}"
        )
    parts = []
    for k in range(0, len(one.weights), each):
        kernel, recurrent_kernel, *biases = one.weights[k : k + each]
        if kernel.ndim != 2 or recurrent_kernel.ndim != 2:
            raise ValueError(f"kernels of a {kind} have two axes, got {_shapes(one.weights)}")
        bias = biases[0] if biases else None
        after = bool(bias is not None and bias.ndim == 2)
        if kind == "GRU":
            said = config.get("reset_after")
            if said is None and bias is None:
                raise ValueError(
                    "reset_after must be given for a GRU without biases, whose weights do not say"
                )
            if said is not None and bias is not None and after != said:
                raise ValueError(f"reset_after={said} of a GRU does not fit a bias {bias.shape}")
            fixed["reset"] = "after" if (after if bias is not None else said) else "before"
        elif after:
            raise ValueError(f"the bias of a {kind} has one axis, got shape {bias.shape}")  # type: ignore[union-attr]
        pair = (None, None) if bias is None else (bias[0], bias[1]) if after else (bias, None)
        parts.append(Theirs(kernel.T, recurrent_kernel.T, *pair))
    return parts, fixed


def _function(kind: str, config: Mapping[str, Any], option: str, default: str) -> str:
    """An activation as layers are given it."""
    value = config.get(option, default)
    if isinstance(value, Mapping):  # an object, written down
        value = value.get("config", value)
    if value is None:
        return "identity"
    if not isinstance(value, str) or value not in _FUNCTIONS:
        listed = ", ".join(map(repr, _FUNCTIONS))
        raise ValueError(f"the {kind} has {option}={value!r:.99}: only {listed} are supported")
    if value == "hard_sigmoid" and str(config.get(_VERSION, 3)).partition(".")[0] in ("1", "2"):
        return _OLD_HARD_SIGMOID
    return _FUNCTIONS[value]


def _refuse(kind: str, config: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    """Options that would have another layer than ours."""
    for option, values in known.items():
        value = config.get(option, values[0])
        if isinstance(value, Mapping):  # an object, written down
            value = value.get("config", value)
        if value not in values:
            listed = " or ".join(repr(v) for v in values if v is not None)
            raise ValueError(f"the {kind} has {option}={value!r:.99}: only {listed} is supported")


def _guess(weights: list[Array], reset_after: bool | None, activation: str) -> _Found:
    """What a list of weights is of, by their shapes."""
    if len(weights) in (1, 2) and weights[0].ndim == 2 and all(w.ndim == 1 for w in weights[1:]):
        return _Found("Dense", {}, False, weights)
    both = len(weights) in (4, 6)
    if len(weights) not in (2, 3, 4, 6) or any(w.ndim not in (1, 2) for w in weights):
        raise ValueError(f"source has no layer's weights, got {_shapes(weights)}")
    square = weights[1].shape
    gates = square[1] // square[0] if len(square) == 2 and square[0] else 0
    if gates not in _GATES or gates * square[0] != square[1]:
        raise ValueError(f"source has no layer's weights, got {_shapes(weights)}")
    kind = _GATES[gates]
    config = {"activation": activation} if kind == "SimpleRNN" else {}
    return _Found(kind, {**config, "reset_after": reset_after}, both, weights)


def _of_layer(layer: Any) -> _Found:
    """A layer of Keras', which has been built."""
    weights = [np.asarray(w) for w in layer.get_weights()]
    weights = [w.astype(np.float32) if w.dtype.name == "bfloat16" else w for w in weights]
    if not weights:
        raise ValueError(f"{layer.name!r} has no weights: build it first, by a call")
    kinds = [c.__name__ for c in type(layer).__mro__]
    config = {**layer.get_config(), _VERSION: _version_of(type(layer))}
    return _described(layer.name, kinds, config, weights)


def _version_of(kind: type[Any]) -> str:
    """Of the Keras that a layer's class is of, or is derived from.

    The last of its classes with the name of a layer is Keras' own, whatever the user's are called
    and wherever they are; the innermost of the packages around that which tells a version is Keras.
    """
    for base in reversed(kind.__mro__):
        if base.__name__ in {*_KINDS, "Bidirectional", "Dense"}:
            package = base.__module__
            while package:
                version = getattr(sys.modules.get(package), "__version__", None)
                if isinstance(version, str):
                    return version
                package = package.rpartition(".")[0]
    return "3"


def _described(
    name: str | None, kinds: Sequence[str], config: Mapping[str, Any], weights: list[Array]
) -> _Found:
    """A layer of these classes, from its own up, and of that configuration."""
    if "Bidirectional" not in kinds:
        kind = next((k for k in kinds if k in {*_KINDS, "Dense"}), None)
        if kind is None:
            raise ValueError(f"{name!r} is a {kinds[0]}, which has no like here")
        return _Found(kind, config, False, weights)
    merge: Any = config.get("merge_mode", "concat")
    merge = merge if isinstance(merge, (str, type(None))) else repr(merge)
    _refuse("Bidirectional", {"merge_mode": merge}, {"merge_mode": tuple(_MERGES)})
    kind, inner = _inside(config.get("layer"))
    told = config.get("backward_layer")
    back, other = (kind, {**inner, "go_backwards": True}) if told is None else _inside(told)
    if kind not in _KINDS or back != kind:
        raise ValueError(f"{name!r} is a Bidirectional of a {kind}, which has no like here")
    _refuse(f"{kind} backwards", other, {"go_backwards": (True,)})
    for option in ("activation", "recurrent_activation", "reset_after"):
        if other.get(option) != inner.get(option):
            raise ValueError(
                f"{name!r} must have the same {option} in both directions, got "
                f"{inner.get(option)!r:.99} and {other.get(option)!r:.99}"
            )
    version = {_VERSION: config.get(_VERSION, "3")}
    return _Found(kind, {**inner, **version}, True, weights, _MERGES[merge])


def _inside(described: Any) -> tuple[str, Mapping[str, Any]]:
    """The class and configuration of a layer that another one's configuration has."""
    if isinstance(described, Mapping) and isinstance(described.get("config"), Mapping):
        kind = described.get("class_name")
        named = kind if isinstance(kind, str) and kind in _KINDS else f"{kind!r:.99}"
        return named, described["config"]
    return "layer without a configuration", {}


def _shapes(weights: Sequence[Array]) -> str:
    return "arrays of shapes " + ", ".join(str(w.shape) for w in weights)


def _probe(source: Any, layer: Recurrent | Linear) -> None:
    """Hold a small random input's results against the layer's of Keras."""
    if getattr(source, "stateful", False) or layer.device != "cpu":
        return
    features = layer.input_size if isinstance(layer, Recurrent) else layer.in_features
    x = np.random.default_rng(0).standard_normal((2, 3, features)).astype(layer.dtype)
    theirs = source(x, training=False) if isinstance(layer, Recurrent) else source(x)
    theirs = theirs[0] if isinstance(theirs, (list, tuple)) else theirs
    want = _outputs(theirs)
    if isinstance(layer, Recurrent):
        y, last = layer(x if layer.batch_first else x.swapaxes(0, 1))
        y = y if layer.batch_first else y.swapaxes(0, 1)
        in_order = y[:, ::-1] if layer.reverse else y
        got = in_order if want.ndim == 3 else layer.last_output(y, last)
    else:
        got = layer(x)
    # On the way to float64 Keras rounds to float32 here and there.
    check_near(repr(source.name), layer, want, got, least=1e-6)


def _outputs(tensor: Any) -> Array:
    """As NumPy has them, those in bfloat16 as float16."""
    narrow = "bfloat16" in str(tensor.dtype)
    if hasattr(tensor, "detach"):
        array: Array = (tensor.detach().half() if narrow else tensor.detach()).cpu().numpy()
        return array
    return np.asarray(tensor, np.float16 if narrow else None)
