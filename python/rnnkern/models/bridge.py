# SPDX-License-Identifier: Apache-2.0
"""An encoder's last state as a decoder's first, and the way back of its gradient.

The last states of an encoder's two directions stand side by side, so that the decoder is twice as
wide. Where the cells differ in kind a missing part of the state is 0, and one too many is dropped.
"""

from __future__ import annotations

from typing import Any

from rnnkern._checks import Array
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import state_names


def handed_over(encoder: Recurrent, decoder: Recurrent, state: Any, width: int = 1) -> Any:
    """The encoder's last state as the decoder's first, each row ``width`` times in turn."""
    layers, directions = decoder.num_layers, encoder.num_directions

    def side_by_side(s: Array) -> Array:
        _, rows, size = s.shape
        split = s.reshape(layers, directions, rows, size).transpose(0, 2, 1, 3)
        merged: Array = split.reshape(layers, rows, directions * size)
        return merged if width == 1 else merged.repeat(width, axis=1)

    states = tuple(side_by_side(s) for s in _as_tuple(state))
    return _as_the_other_has_it(encoder, states, decoder)


def handed_back(encoder: Recurrent, decoder: Recurrent, dstate: Any) -> Any:
    """The gradient of ``handed_over`` with a width of 1."""
    directions = encoder.num_directions

    def apart(d: Array) -> Array:
        layers, rows, size = d.shape
        split = d.reshape(layers, rows, directions, size // directions).transpose(0, 2, 1, 3)
        merged: Array = split.reshape(layers * directions, rows, size // directions)
        return merged

    states = tuple(apart(d) for d in _as_tuple(dstate))
    return _as_the_other_has_it(decoder, states, encoder)


def _as_the_other_has_it(giver: Recurrent, states: tuple[Array, ...], taker: Recurrent) -> Any:
    given = dict(zip(state_names(giver), states, strict=True))
    zero = states[0].copy()
    zero[...] = 0
    taken = tuple(given.get(name, zero) for name in state_names(taker))
    return taken if len(taken) > 1 else taken[0]


def _as_tuple(state: Any) -> tuple[Array, ...]:
    """A layer's state, ``h`` or ``(h, c)``, as a tuple."""
    return state if isinstance(state, tuple) else (state,)
