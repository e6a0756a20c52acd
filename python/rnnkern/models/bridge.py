# SPDX-License-Identifier: Apache-2.0
"""An encoder's last state as a decoder's first, and the way back of its gradient.

The last states of an encoder's two directions stand side by side, so that the decoder is twice as
wide. Where the cells differ in kind a missing part of the state is 0, and one too many is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import spec_of, state_names

Options = Mapping[str, Any]
# What a model gives its layers itself.
_FIXED = {"input_size", "hidden_size", "num_layers", "bidirectional", "batch_first", "dropout"}
_FIXED |= {"dtype", "compute", "seed", "device"}


def check_options(cell: Options | None, decoder: Options | None, *, one_cell: bool) -> None:
    """Refuse what no decoder can be; with `one_cell` the encoder's options are the decoder's."""
    for name, options in (("cell_options", cell), ("decoder_options", decoder)):
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"{name} must be arguments by name, got {type(options)!r}")
        fixed = sorted(_FIXED & (options or {}).keys())
        if fixed:
            raise TypeError(f"{name} must not have {fixed[0]!r}, which the model gives its layers")
    name, options, remedy = "decoder_options", decoder, ""
    if one_cell:
        name, options = "cell_options", cell
        remedy = "; decoder_cell and decoder_options give it others than the encoder's"
    plain = {"reverse": False, "merge": "concat"}
    for option, value in (options or {}).items():
        # What is of no type for the option is for the layer to refuse.
        known = option in plain and isinstance(value, (bool, np.bool_, str))
        if isinstance(value, (tuple, list)) or (known and value != plain[option]):
            raise ValueError(
                f"{name} must have no {option}={value!r}, for they are the decoder's, which has "
                f"one direction, from the first step on{remedy}"
            )


def check_bridge(encoder: Recurrent, decoder: Recurrent, *, attends: bool) -> None:
    """Refuse layers of which the second cannot go on from the first."""
    if any(spec_of(layer).projection for layer in (encoder, decoder)):
        raise ValueError(
            "cell_options and decoder_options must have no proj_size: the decoder begins with "
            "the encoder's h and c, which must be as wide as its own"
        )
    if attends and spec_of(encoder).merges:
        raise ValueError(
            f"attention needs an encoder with merge='concat', got {encoder.merge!r}: the decoder, "
            f"{decoder.hidden_size} wide, looks at what both directions give side by side"
        )


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
