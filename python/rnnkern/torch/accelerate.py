# SPDX-License-Identifier: Apache-2.0
"""Existing models on our kernels, and layers as modules."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch

from rnnkern._checks import boolean, warn
from rnnkern.devices import to_host
from rnnkern.interop.parts import refuse_options
from rnnkern.interop.state_dict import state_dict_of
from rnnkern.layers.base import Recurrent
from rnnkern.torch import cells, modules, own
from rnnkern.torch.modules import Layered, check_compute

_Module = TypeVar("_Module")

# PyTorch's classes and ours, which have the same attributes.
_OURS: dict[type[Any], type[Any]] = {
    getattr(torch.nn, cls.__name__): cls
    for cls in (
        modules.RNN,
        modules.GRU,
        modules.LSTM,
        cells.RNNCell,
        cells.GRUCell,
        cells.LSTMCell,
    )
}


def accelerate(model: _Module, *, frozen: bool = False, compute: str | None = None) -> _Module:
    """Have a model's recurrent layers run on our kernels, for training and for inference.

    Its ``RNN``, ``GRU`` and ``LSTM`` and their cells become those of this package, in place: the
    parameters are the same objects, so that optimizers, hooks and state dicts go on as they are.

    Args:
        model: any `torch.nn.Module`, or a recurrent one itself.
        frozen: whether to pack the layers' weights now, for inference alone: each call is faster,
            has no gradients, and knows nothing of what is written to the weights afterwards.
        compute: "bfloat16" for products of rounded operands, as our layers have it.

    Returns:
        The model.

    Raises:
        TypeError: it is no module.

    A layer that cannot be exchanged, as one on a GPU, is left as it is, and a warning names it.
    Subclasses with code of their own are left alone.

    Example:
        >>> model = rnnkern.torch.accelerate(model)

    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model)!r}")
    boolean("frozen", frozen)
    check_compute(compute)
    left = []
    for name, module in cast("Any", model).named_modules():
        kind = _OURS.get(type(module))
        if kind is not None:
            reason = _unfit(module)
            if reason:
                left.append(f"{name or type(module).__name__} ({reason})")
                continue
            module.__class__ = kind
        if isinstance(module, Layered):
            if compute is not None:
                module.compute = compute
            if frozen:
                module.freeze()
    if left:
        warn(f"left as they are: {', '.join(left)}")
    return model


def _unfit(module: Any) -> str:
    """Why a module of PyTorch's cannot be exchanged, or nothing."""
    weight = next(module.parameters())
    if weight.device.type not in ("cpu", "meta"):
        return f"it is on {weight.device}"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"it is of {weight.dtype}"
    return ""


def from_layer(layer: Recurrent) -> Any:
    """One of our layers as a module of this package, with a copy of its parameters.

    `rnnkern.from_torch` goes the other way.

    Example:
        >>> module = rnnkern.torch.from_layer(rk.GRU(4, 8))

    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer must be a recurrent layer, got {type(layer)!r}")
    refuse_options(layer, "rnnkern.torch", known=("proj_size",))
    config = layer.config()
    kind = type(layer).__name__
    options = {
        name: config[name]
        for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "compute")
    }
    options |= {
        name: config[name] for name in ("nonlinearity", "reset", "proj_size") if name in config
    }
    cls = getattr(modules, kind, None) or getattr(own, kind)
    module = cls(
        layer.input_size, layer.hidden_size, **options, dtype=getattr(torch, layer.dtype.name)
    )
    ours = isinstance(module, own.Own)
    state = layer.params if ours else state_dict_of(layer)
    module.load_state_dict({name: torch.tensor(to_host(a)) for name, a in state.items()})
    return module
