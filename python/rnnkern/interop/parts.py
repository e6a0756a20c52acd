# SPDX-License-Identifier: Apache-2.0
"""A layer's parameters as others have them."""

from __future__ import annotations

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


def parts_of(layer: Configured, whose: str) -> list[Theirs]:
    """As theirs, likewise; copies.

    Raises:
        ValueError: they have no such cell.

    """
    kind = type(layer).__name__
    if kind not in ORDERS[whose]:
        raise ValueError(f"{whose} has no cell like {kind}")
    order = Order(whose, kind, spec_of(layer).facts)
    return [order.to_theirs(own) for own in own_weights(layer)]
