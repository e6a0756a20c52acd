# SPDX-License-Identifier: Apache-2.0
"""PyTorch's modules and state dicts as layers; of these, modules alone need PyTorch itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union, cast

import numpy as np

from rnnkern._checks import Array, DType, choice, host_array
from rnnkern.interop.building import dtype_for, linear, recurrent
from rnnkern.interop.gates import Theirs
from rnnkern.interop.probing import check_near
from rnnkern.interop.tensors import SafeTensors
from rnnkern.layers.base import Recurrent
from rnnkern.layers.embedding import Embedding
from rnnkern.layers.layer_norm import LayerNorm
from rnnkern.layers.linear import Linear
from rnnkern.layers.parameters import undrawn

_OF_LAYER = re.compile(
    r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)(?:_l(\d{1,5})(_reverse)?)?"
)
_KINDS = {1: "RNN", 3: "GRU", 4: "LSTM"}  # by the number of gates

StateDict = Mapping[str, Any]
Source = Union[StateDict, str, "os.PathLike[str]", Any]


def from_torch(
    source: Source,
    prefix: str = "",
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    dtype: DType | None = None,
    device: str = "cpu",
) -> Any:
    """A layer with the weights of PyTorch's ``RNN``, ``GRU``, ``LSTM``, their cells or ``Linear``.

    Also of its modules ``Embedding`` and ``LayerNorm``, whose state dicts do not say what they are.

    A GRU of PyTorch's is a ``GRU(reset="after")``, its update rows negated; its two biases are one
    here, but for the candidate's recurrent one, which is ``bias_hn``. A cell of one step is a layer
    of one. float16 and bfloat16 become float32.

    Args:
        source: a module, on any of its devices; or a state dict, of tensors or arrays; or the path
            of a safetensors file of one, for which PyTorch need not be there.
        prefix: of the layer's names, as ``"encoder.rnn"``, where the source holds more than it.
        nonlinearity: of an RNN from a state dict, which does not say: "tanh" or "relu".
        batch_first: of a layer from a state dict. A module says so itself, and its dropout.
        dropout: likewise.
        dtype: "float32" or "float64"; None for that of the source.
        device: of the layer.

    Returns:
        A layer, or a `Linear`, whose parameters are its own. One from a module on the CPU has been
        held against it: both have run a small random input.

    Raises:
        TypeError: the source is none of these.
        ValueError: it has no layer at that prefix, has one that has no like here, or lacks arrays;
            the message names what it has.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.LSTM(3, 4, batch_first=True))
        >>> lstm = rk.from_torch(module[0])
        >>> again = rk.from_torch(module.state_dict(), "0", batch_first=True)
        >>> again.params == lstm.params
        True

    """
    choice("nonlinearity", nonlinearity, ("tanh", "relu"))
    prefix = prefix.rstrip(".")
    options: dict[str, Any] = {
        "nonlinearity": nonlinearity,
        "batch_first": batch_first,
        "dropout": dropout,
        "device": device,
    }
    if isinstance(source, (str, os.PathLike)):
        return _from_arrays(_of_file(source), prefix, options, dtype, None)
    if isinstance(source, Mapping):
        return _from_arrays(source, prefix, options, dtype, None)
    if not hasattr(source, "state_dict"):
        raise TypeError(
            "source must be a module of PyTorch, its state dict or the path of a safetensors file, "
            f"got {type(source)!r}"
        )
    return _from_module(source, prefix, options, dtype)


# -- from modules ---------------------------------------------------------------------------------


def _from_module(module: Any, prefix: str, options: dict[str, Any], dtype: DType | None) -> Any:
    whole = module
    if prefix:
        try:
            module = module.get_submodule(prefix)
        except AttributeError as error:
            places = _places(whole.state_dict())
            raise ValueError(f"source has no module {prefix!r}, {_listed(places)}") from error
    if hasattr(module, "to_layer"):  # of rnnkern.torch
        return cast("Recurrent", module.to_layer(dtype=dtype, device=options["device"]))
    kinds = {*_KINDS.values(), "Linear", "Embedding", "LayerNorm"}
    kind = next((n for n in _names(module) if n in kinds), None)
    if kind in ("Embedding", "LayerNorm"):
        return _small(module, kind, dtype, options["device"])
    if kind is None:
        where = f" at {prefix!r}" if prefix else ""
        raise ValueError(
            f"source has a {type(module).__name__}{where}, which is no layer of these, "
            f"{_listed(_places(whole.state_dict()))}"
        )
    if kind != "Linear":
        options = {**options, "nonlinearity": getattr(module, "nonlinearity", "tanh")}
        if hasattr(module, "batch_first"):
            options |= {"batch_first": module.batch_first, "dropout": module.dropout}
        if getattr(module, "num_layers", 1) == 1:
            options["dropout"] = 0.0
    layer = _from_arrays(module.state_dict(), "", options, dtype, kind, at=prefix)
    _probe(module, layer)
    return layer


def _small(module: Any, kind: str, dtype: DType | None, device: str) -> Embedding | LayerNorm:
    """A layer without time, of a module that has no weights but its own."""
    arrays = {name: _array(name, tensor) for name, tensor in module.state_dict().items()}
    own: dict[str, Any] = {"dtype": dtype_for(dtype, list(arrays.values())), "device": device}
    shape = arrays["weight"].shape if "weight" in arrays else ()
    layer: Embedding | LayerNorm
    if kind == "Embedding":
        if module.max_norm is not None:
            raise ValueError(f"source has an Embedding with max_norm={module.max_norm!r}")
        layer = undrawn(Embedding, {"tokens": shape[0], "features": shape[1], **own})
    else:
        if len(shape) != 1:
            raise ValueError(f"source has a LayerNorm with weights {shape}: one axis is supported")
        own |= {"features": shape[0], "eps": module.eps, "bias": "bias" in arrays}
        layer = undrawn(LayerNorm, own)
    layer.params.fill({name: np.asarray(array, layer.dtype) for name, array in arrays.items()})
    return layer


def _names(module: Any) -> list[str]:
    """Of a module's classes, those of PyTorch's layers: a cell's is its layer's."""
    return [c.__name__.removesuffix("Cell") for c in type(module).__mro__]


def _probe(module: Any, layer: Recurrent | Linear) -> None:
    """Hold a small random input's results against the module's, where the CPU runs it."""
    import torch

    own = next(iter(module.parameters()), None)
    if own is None or own.device.type != "cpu" or own.dtype not in (torch.float32, torch.float64):
        return
    if layer.dtype.name != str(own.dtype).removeprefix("torch.") or layer.device != "cpu":
        return
    is_layer = isinstance(layer, Recurrent)
    features = layer.input_size if isinstance(layer, Recurrent) else layer.in_features
    of_cell = is_layer and not hasattr(module, "num_layers")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, features) if of_cell else (3, 2, features)).astype(layer.dtype)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            theirs = type(module).forward(module, torch.from_numpy(x))
    finally:
        module.train(was_training)
    if of_cell:
        want, got = theirs, layer(x[None])[0][0]
    elif is_layer:
        want, got = theirs[0], layer(x)[0]
    else:
        want, got = theirs, layer(x)
    want = want[0] if isinstance(want, tuple) else want
    check_near(type(module).__name__, layer, want.numpy(), got)


# -- from state dicts -----------------------------------------------------------------------------


def _from_arrays(
    given: StateDict,
    prefix: str,
    options: Mapping[str, Any],
    dtype: DType | None,
    kind: str | None,
    *,
    at: str = "",
) -> Recurrent | Linear:
    """The layer whose arrays begin with the prefix; `at` is where a module's were taken from."""
    begin = f"{prefix}." if prefix else ""
    own = {name.removeprefix(begin) for name in given if name.startswith(begin)}
    is_linear = "weight" in own and own <= {"weight", "bias"} and kind in (None, "Linear")
    found = [_OF_LAYER.fullmatch(name) for name in own]
    strange = sorted(n for n in own if not _OF_LAYER.fullmatch(n) and "." not in n)
    if strange and not is_linear and any(found):
        listed = ", ".join(repr(begin + name) for name in strange)
        raise ValueError(f"source must have the names of PyTorch's layers alone, got {listed}")
    if not is_linear and not (own and all(found)):
        where = f"no layer at {prefix or at!r}" if prefix or at else "no single layer"
        raise ValueError(f"source has {where}, {_listed(_places(given))}")
    arrays = {name: _array(begin + name, given[begin + name]) for name in own}
    chosen = dtype_for(dtype, list(arrays.values()))
    if is_linear:
        return linear(arrays["weight"], arrays.get("bias"), dtype=chosen, device=options["device"])
    shape = _shape_of(found)
    directions = 2 if shape.both else 1
    names = [[f"{field}{ending}" for field in Theirs._fields] for ending in shape.endings()]
    some = [kind for kind in ("bias", "weight_hr") if any(n.startswith(kind) for n in own)]
    wanted = {n for row in names for n in row if n.startswith(("weight_ih", "weight_hh", *some))}
    if missing := sorted(wanted - own):
        raise ValueError(f"source lacks {', '.join(repr(begin + n) for n in missing)}")
    parts = [Theirs(*(arrays.get(n) for n in row)) for row in names]  # type: ignore[arg-type]
    gates = _gates(parts[0])
    if kind is None and gates not in _KINDS:
        raise ValueError(
            f"source must have the rows of 1, 3 or 4 gates, as PyTorch's RNN, GRU and LSTM, got "
            f"weight_ih {parts[0].weight_ih.shape} and weight_hh {parts[0].weight_hh.shape}"
        )
    kind = kind or _KINDS[gates]
    fixed = {"RNN": {"nonlinearity": options["nonlinearity"]}, "GRU": {"reset": "after"}}
    layers = len(parts) // directions
    return recurrent(
        "PyTorch",
        kind,
        parts,
        bidirectional=shape.both,
        options={
            **fixed.get(kind, {}),
            "batch_first": options["batch_first"],
            "dropout": options["dropout"] if layers > 1 else 0.0,
            "device": options["device"],
            "dtype": chosen,
        },
    )


class _Shape(NamedTuple):
    """How many layers a state dict's names are of, and whether of two directions."""

    layers: int | None  # None for a cell, whose names have no numbers
    both: bool

    def endings(self) -> list[str]:
        if self.layers is None:
            return [""]
        ways = ("", "_reverse")[: 2 if self.both else 1]
        return [f"_l{k}{way}" for k in range(self.layers) for way in ways]


def _shape_of(found: Any) -> _Shape:
    numbers = {match[2] for match in found}
    if None in numbers:
        return _Shape(None, False)
    layers = max(map(int, numbers)) + 1
    if layers > len(numbers):
        raise ValueError(f"source has arrays of layer {layers - 1}, and lacks those of one below")
    return _Shape(layers, any(match[3] for match in found))


def _gates(part: Theirs) -> int:
    """How many gates' rows there are; 0 where the arrays' shapes make no sense."""
    of_units = part.weight_hh if part.weight_hr is None else part.weight_hr  # its columns
    if part.weight_hh.ndim != 2 or of_units.ndim != 2 or of_units.shape[1] == 0:
        return 0
    gates, rest = divmod(part.weight_hh.shape[0], of_units.shape[1])
    return 0 if rest else gates


def _places(given: StateDict) -> list[str]:
    """Where a state dict has layers: the prefixes."""
    places = []
    for name in given:
        begin, _, last = name.rpartition(".")
        if _OF_LAYER.fullmatch(last) and begin not in places:
            places.append(begin)
    return places


def _listed(places: Sequence[str]) -> str:
    if not places:
        return "and none anywhere"
    return "but at " + ", ".join(repr(place) for place in places) + ": prefix picks one"


def _array(name: str, value: Any) -> Array:
    """A tensor or an array in host memory, float32 or float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) in ("torch.float16", "torch.bfloat16"):
            value = value.float()
        value = value.numpy()
    array = host_array(name, value)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be of floating numbers, got {array.dtype}")
    return array


def _of_file(path: str | os.PathLike[str]) -> StateDict:
    if Path(path).suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(
            f"source must be a safetensors file, got {os.fspath(path)!r}, which is pickled: "
            "torch.load(path, weights_only=True) gives its state dict"
        )
    return SafeTensors(path)
