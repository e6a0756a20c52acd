# SPDX-License-Identifier: Apache-2.0
"""Layers as state dicts of PyTorch's modules; PyTorch itself is needed for tensors alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern._checks import Array, boolean
from rnnkern.devices import to_host
from rnnkern.interop.gates import ORDERS, Theirs
from rnnkern.interop.parts import DROPPED, parts_of
from rnnkern.layers.configured import Configured
from rnnkern.layers.parameters import Parameters


def layer_to_torch(layer: Configured, *, arrays: bool) -> dict[str, Any]:
    """The state dict that `Recurrent.to_torch` describes."""
    _check_known(layer)
    return _wanted(state_dict_of(layer), arrays=arrays)


def linear_to_torch(params: Parameters, *, arrays: bool) -> dict[str, Any]:
    """The state dict that `Linear.to_torch` describes."""
    return _wanted({name: np.array(to_host(a)) for name, a in params.items()}, arrays=arrays)


def state_dict_of(layer: Configured) -> dict[str, Array]:
    """A layer's parameters by PyTorch's names."""
    directions = layer.num_directions
    return {
        f"{name}_l{k // directions}{'_reverse' if k % directions else ''}": array
        for k, part in enumerate(parts_of(layer, "PyTorch", known=("proj_size", *DROPPED)))
        for name, array in zip(Theirs._fields, part, strict=True)
        if array is not None
    }


def _wanted(made: dict[str, Array], *, arrays: bool) -> dict[str, Any]:
    if boolean("arrays", arrays):
        return made
    import torch

    return {name: torch.from_numpy(array) for name, array in made.items()}


def _check_known(layer: Configured) -> None:
    """Refuse a cell that PyTorch's own modules would take for another."""
    kind = type(layer).__name__
    lacks = None if kind in ORDERS["PyTorch"] else f"no cell like {kind}"
    if layer.config().get("reset") == "before":
        lacks = "no GRU with reset='before': its own resets after the product"
    if lacks:
        raise ValueError(f"PyTorch has {lacks}; rnnkern.torch.from_layer(layer) gives a module")
