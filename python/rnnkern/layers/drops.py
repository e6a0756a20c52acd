# SPDX-License-Identifier: Apache-2.0
"""What training sets to zero at random, and the masks that say where.

Masks are counter-based: they follow from a call's key, from what they are of and from the layer and
direction, so that they can be drawn again, in parts too, and threads have no part in them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import masked
from rnnkern.layers.network import NO_MASKS, Masks, Network, dropout_mask
from rnnkern.layers.weights import parameter_names

# Streams of random numbers begin here, one a layer and direction; those of what lies between
# layers begin at 0, and `Dropout` has 2**32.
_OF_WEIGHTS, _OF_STATES, _ZONES_OF_H, _ZONES_OF_C = 2**33, 2**34, 2**35, 2**36


class Drops(NamedTuple):
    """What a call of ``forward`` drops.

    Attributes:
        dropout: share of what each layer hands to the next.
        recurrent_dropout: share of h as recurrent products take it.
        weight_drop: share of the recurrent matrices.
        zoneout: share of h that keeps its value at a step.
        cell_zoneout: share of c that does.
        key: of all masks.
        first: of a layer and direction by themselves, which of the whole call they are.

    """

    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    zoneout: float = 0.0
    cell_zoneout: float = 0.0
    key: int = 0
    first: int = 0

    @property
    def by_call(self) -> bool:
        """Whether a call of the kernels is given masks."""
        return max(self.dropout, self.recurrent_dropout, self.zoneout, self.cell_zoneout) > 0.0


NOTHING = Drops()


def draw(network: Network, steps: int, batch: int, drops: Drops, first_step: int = 0) -> Masks:
    """The masks of a call, or of so many of its steps from `first_step` on."""
    if not drops.by_call:
        return NO_MASKS
    spec, device = network.spec, network.device
    ways = range(drops.first, drops.first + spec.states)
    between: list[Array] = []
    if drops.dropout > 0.0:
        shape = (steps, batch, spec.features)
        first = first_step * batch * spec.features
        between = [
            dropout_mask(device, shape, spec.dtype, drops.dropout, drops.key, layer, first)
            for layer in range(spec.layers - 1)
        ]
    h_factors = None
    if drops.recurrent_dropout > 0.0:
        share, shape_of_h = drops.recurrent_dropout, (batch, spec.outputs)
        h_factors = device.xp.stack(
            [
                dropout_mask(device, shape_of_h, spec.dtype, share, drops.key, _OF_STATES + k)
                for k in ways
            ]
        )

    def zones(share: float, begin: int, width: int) -> list[Array]:
        """Of each layer and direction, where units keep their value."""
        if share == 0.0:
            return []
        shape, first = (steps, batch, width), first_step * batch * width
        most = np.float32(share)
        return [device.random(drops.key, begin + k, shape, first) < most for k in ways]

    return Masks(
        between,
        h_factors,
        zones(drops.zoneout, _ZONES_OF_H, spec.outputs),
        zones(drops.cell_zoneout, _ZONES_OF_C, spec.units),
    )


def drop_weights(network: Network, drops: Drops) -> tuple[Network, dict[str, Array]]:
    """A twin whose recurrent matrices have lost some weights, and the factors, by their names.

    DropConnect of W_hh, as in Merity, Keskar and Socher 2018, "Regularizing and optimizing LSTM
    language models", arXiv:1708.02182: one mask for all steps and rows of a call.
    """
    device, dtype = network.device, network.spec.dtype
    weights, factors = [], {}
    for k, (own, names) in enumerate(
        zip(network.weights, parameter_names(network.spec), strict=True)
    ):
        matrix, name = own.recurrent, names[own._fields.index("weight_hh")]
        assert name is not None
        factors[name] = dropout_mask(
            device, matrix.shape, dtype, drops.weight_drop, drops.key, _OF_WEIGHTS + k
        )
        weights.append(own._replace(weight_hh=masked(matrix, factors[name])))
    return Network(network.layout, weights), factors
