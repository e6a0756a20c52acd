# SPDX-License-Identifier: Apache-2.0
"""A layer's parameters as others have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rnnkern.devices import Weights, to_host
from rnnkern.interop.gates import ORDERS, Order, Theirs
from rnnkern.layers.configured import Configured, spec_of
from rnnkern.layers.weights import parameter_names


def own_weights(layer: Configured) -> list[Weights]:
    """As ours, in host memory, by layer and direction in the order of the states."""
    return [
        Weights.of(None if name is None else to_host(layer.params[name]) for name in names)
        for names in parameter_names(spec_of(layer))
    ]


# What a layer drops in training beside `dropout`, which matters to no other call.
DROPPED = ("recurrent_dropout", "weight_drop")

# What a layer may be beyond its cell, and when it is not; the others mostly lack it.
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "reverse": (False,),
    "merge": ("concat",),
    "proj_size": (0,),
    "nonlinearity": ("tanh", "relu"),
    "activation": ("tanh",),
    "recurrent_activation": ("sigmoid",),
    "output_activation": (None, "tanh"),
    "clip": (None,),
    "cell_clip": (None,),
    "peepholes": (False,),
    "coupled": (False,),
    "layer_norm": (False,),
    "zoneout": (0.0,),
    "cell_zoneout": (0.0,),
    **dict.fromkeys(DROPPED, (0.0,)),
}
# Those that a file of ONNX's has, in its operators or by nodes behind them, or has no need of.
ONNX_OPTIONS = (
    "reverse",
    "merge",
    "nonlinearity",
    "activation",
    "recurrent_activation",
    "output_activation",
    "clip",
    "peepholes",
    "coupled",
    *DROPPED,
)


def refuse_options(layer: Configured, whose: str, known: Collection[str] = ()) -> None:
    """Refuse options of a layer that change what it computes, but for those that they know too."""
    for name, plain in _OPTIONS.items():
        if name == "activation" and hasattr(layer, "nonlinearity"):
            continue  # an RNN's, by its other name
        # Not of its config(), of which a subclass with fewer arguments has its own.
        value = getattr(layer, name, plain[0])
        if value not in plain and name not in known:
            raise ValueError(f"{whose} has no layer with {name}={value!r}")


def parts_of(layer: Configured, whose: str, known: Collection[str] = ()) -> list[Theirs]:
    """As theirs, likewise; copies.

    Args:
        layer: ours.
        whose: a key of `ORDERS`.
        known: options beyond the cell that their layer is given apart.

    Raises:
        ValueError: they have no such cell, or no such option.

    """
    refuse_options(layer, whose, known)
    kind = type(layer).__name__
    if kind not in ORDERS[whose]:
        raise ValueError(f"{whose} has no cell like {kind}")
    order = Order(whose, kind, spec_of(layer).facts)
    return [order.to_theirs(own) for own in own_weights(layer)]
