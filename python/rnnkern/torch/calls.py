# SPDX-License-Identifier: Apache-2.0
"""A call of a module as a call of a layer that reads the module's weights where they are."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rnnkern._checks import Array
from rnnkern.cells import layer_classes
from rnnkern.devices import Weights
from rnnkern.interop.gates import Order, Theirs
from rnnkern.interop.parts import refuse_options
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import spec_of
from rnnkern.layers.parameters import undrawn
from rnnkern.layers.tape import Tape
from rnnkern.layers.weights import parameter_names

from_numpy = torch.from_numpy
_MOST_TWINS = 64  # layers that are kept for modules; a module in use has one
_DTYPES: dict[Any, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
# The option that tells cells of one class apart.
_OPTIONS = {"RNN": "nonlinearity", "GRU": "reset"}


class Spec(NamedTuple):
    """What a module is.

    Attributes:
        kind: the name of our layers' class.
        option: what tells cells of that class apart, or "".
        inputs: I.
        units: H.
        layers: L.
        bidirectional: whether there are two directions.
        bias: whether there are biases.
        dropout: between layers.
        compute: as of our layers.
        theirs: whether weights are PyTorch's, with two biases, or named and signed as ours.
        projection: P, or 0.

    """

    kind: str
    option: str
    inputs: int
    units: int
    layers: int
    bidirectional: bool
    bias: bool
    dropout: float
    compute: str | None
    theirs: bool
    projection: int = 0

    @classmethod
    def of(cls, layer: Recurrent) -> Spec:
        """What a layer is; ValueError where modules have not its options."""
        refuse_options(layer, "rnnkern.torch", known=("proj_size",))
        kind = type(layer).__name__
        return cls(
            kind,
            getattr(layer, _OPTIONS[kind]) if kind in _OPTIONS else "",
            layer.input_size,
            layer.hidden_size,
            layer.num_layers,
            layer.bidirectional,
            layer.bias,
            layer.dropout,
            layer.compute,
            theirs=False,
            projection=spec_of(layer).projection,
        )

    @property
    def outputs(self) -> int:
        """Numbers of h."""
        return self.projection or self.units

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    def config(self, dtype: str) -> dict[str, Any]:
        """The arguments of our layer's constructor."""
        config: dict[str, Any] = {
            "input_size": self.inputs,
            "hidden_size": self.units,
            "num_layers": self.layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "dropout": self.dropout if self.layers > 1 else 0.0,
            "compute": self.compute,
            "dtype": dtype,
        }
        if self.kind in _OPTIONS:
            config[_OPTIONS[self.kind]] = self.option
        if self.projection:
            config["proj_size"] = self.projection
        return config


def _has_c(kind: type[Any]) -> bool:
    one = undrawn(kind, {"input_size": 1, "hidden_size": 1})
    return "c" in spec_of(one).facts.states


# The classes whose cells have a second state.
TWO_STATES = frozenset(name for name, kind in layer_classes().items() if _has_c(kind))


class Twin:
    """A layer over a module's weights.

    Arrays that both have in common are the module's own memory. A bias that is the sum of two, and
    all of a cell whose rows turn sign, are the layer's, and are made anew for every call.

    Attributes:
        layer: the layer.

    """

    def __init__(self, spec: Spec, weights: Sequence[Any]) -> None:
        """Of weights that have just been found to be contiguous."""
        dtype = _DTYPES[weights[0].dtype]
        self.layer: Recurrent = undrawn(layer_classes()[spec.kind], spec.config(dtype.name))
        facts = spec_of(self.layer)
        self._names = parameter_names(facts)
        self._spec = spec
        self._order = Order("PyTorch", spec.kind, facts.facts) if spec.theirs else None
        raw = [_over(w, dtype) for w in weights]
        each = len(raw) // len(self._names)
        self._given = [raw[k : k + each] for k in range(0, len(raw), each)]
        there = (True, True, spec.bias, spec.bias, spec.projection > 0)
        fields = [field for field, has in zip(Theirs._fields, there, strict=True) if has]
        turned = self._order is not None and min(self._order.signs) < 0
        arrays: dict[str, Array] = {}
        self._todo: list[tuple[np.ufunc, tuple[Array, ...]]] = []
        for names, own in zip(self._names, self._given, strict=True):
            if self._order is None:
                ours_there = [name for name in names if name is not None]
                arrays |= dict(zip(ours_there, own, strict=True))
                continue
            theirs = Theirs(**dict(zip(fields, own, strict=True)))
            ours = self._order.to_ours(theirs)
            if not turned:
                ours = ours._replace(
                    weight_ih=theirs.weight_ih,
                    weight_hh=theirs.weight_hh,
                    weight_hr=theirs.weight_hr,
                )
                if ours.bias is not None:
                    self._todo.append((np.add, (*own[2:4], ours.bias)))
            else:
                self._todo += self._order.refreshing(theirs, ours)
            arrays |= {n: a for n, a in zip(names, ours, strict=True) if n and a is not None}
        self.layer.params.adopt(arrays)

    def refresh(self) -> None:
        """Have the layer's own arrays follow from the module's as they are now."""
        for function, arrays in self._todo:
            function(*arrays)

    def theirs(self, grads: dict[str, Array]) -> list[Array]:
        """Gradients by our names as those of the module's weights, in its order."""
        found: list[Array] = []
        for names in self._names:
            own = [None if name is None else grads[name] for name in names]
            if self._order is None:
                found += [a for a in own if a is not None]
            else:
                found += [a for a in self._order.gradients(Weights.of(own)) if a is not None]
        return found


_twins: dict[Any, Twin] = {}


def twin_of(spec: Spec, weights: Sequence[Any]) -> Twin:
    """The layer that reads these weights as they are now."""
    key = (spec, weights[0].dtype, *(w.data_ptr() for w in weights))
    twin = _twins.get(key)
    if twin is None:
        if weights[0].dtype not in _DTYPES:
            raise TypeError(f"parameters must be float32 or float64, got {weights[0].dtype}")
        twin = _twins[key] = Twin(spec, weights)
        while len(_twins) > _MOST_TWINS:  # it has no claim on the modules' memory, and may go
            _twins.pop(next(iter(_twins)), None)
    else:
        twin.refresh()
    return twin


class Result(NamedTuple):
    """What a call gives: tensors, and the tape if it was to be kept."""

    y: Any
    h: Any
    c: Any
    tape: Tape | None
    twin: Twin


def call(
    spec: Spec,
    x: Any,
    h: Any,
    c: Any,
    weights: Sequence[Any],
    lengths: Any,
    key: int | None,
    *,
    keep: bool,
) -> Result:
    """Run x (T, B, I), or tokens (T, B), from states (L·D, B, H); one that is None is zero."""
    weights = [w if w.is_contiguous() else w.contiguous() for w in weights]
    twin = twin_of(spec, weights)
    layer = twin.layer
    state: Any = None if h is None else _array(h)
    if c is not None:
        state = (state, _array(c))
    ends = None if lengths is None else _array(lengths)
    if keep:
        y, last, tape = layer.forward(_array(x), state, ends, dropout_key=key)
    else:
        y, last = layer(_array(x), state, ends)
        tape = None
    first, second = last if isinstance(last, tuple) else (last, None)
    return Result(
        from_numpy(y),
        from_numpy(first),
        second if second is None else from_numpy(second),
        tape,
        twin,
    )


def back(
    tape: Tape,
    twin: Twin,
    dy: Any,
    dh: Any,
    dc: Any,
    *,
    of_x: bool = True,
    of_state: bool = True,
) -> tuple[Any, Any, Any, list[Any]]:
    """Gradients of x (None for tokens), of the first states and of the weights.

    Those of x and of the states are None where they are not asked for.
    """
    dstate: Any = None if dh is None else _array(dh)
    if type(twin.layer).__name__ in TWO_STATES:
        dstate = (dstate, None if dc is None else _array(dc))
    found = tape.backward(None if dy is None else _array(dy), dstate, x_gradient=of_x)
    dh_0: Any = None
    dc_0: Any = None
    if of_state:
        dh_0, dc_0 = found.state if isinstance(found.state, tuple) else (found.state, None)
    return (
        None if found.x is None else from_numpy(found.x),
        None if dh_0 is None else from_numpy(dh_0),
        None if dc_0 is None else from_numpy(dc_0),
        [from_numpy(a) for a in twin.theirs(found.params)],
    )


def _array(tensor: Any) -> Array:
    """A tensor's own memory as an array."""
    try:
        array: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    except TypeError as error:
        raise TypeError(
            f"tensors must be on the CPU and of a dtype that NumPy has, got {tensor.dtype} on "
            f"{tensor.device}: layers of rnnkern with device='cuda' take tensors of a GPU"
        ) from error
    return array


def _over(tensor: Any, dtype: np.dtype[Any]) -> Array:
    """A tensor's memory, which the array does not keep: who reads it must hold the tensor."""
    if tensor.device.type != "cpu":
        raise TypeError(f"parameters must be on the CPU, got one on {tensor.device}")
    if _DTYPES.get(tensor.dtype) != dtype:
        raise TypeError(f"parameters must be of one dtype, got {tensor.dtype} and {dtype}")
    size = tensor.numel() * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(tensor.data_ptr())
    return np.frombuffer(memory, dtype).reshape(tuple(tensor.shape))
