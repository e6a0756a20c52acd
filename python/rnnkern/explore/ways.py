# SPDX-License-Identifier: Apache-2.0
"""Which ways lead through a cell, as far as programs look at them."""

from __future__ import annotations

from typing import NamedTuple

from rnnkern.cells import GRU, LSTM, MGU, RNN, SimplifiedGRU
from rnnkern.layers.base import Recurrent


class Way(NamedTuple):
    """How h_{t-1} and the candidate get into a cell, beside the plain product of every gate.

    Attributes:
        writes: The gate that weighs the candidate; None where the state is written anew.
        keeps: Whether h_t has (1 - that gate)·h_{t-1} too.
        reset: The gate that the candidate's recurrent product is reset by.
        after: Whether it multiplies the product, instead of h_{t-1} before.

    """

    writes: str | None = None
    keeps: bool = False
    reset: str | None = None
    after: bool = False


def way_of(layer: Recurrent) -> Way | None:
    """That of a layer's cell, where it is known here."""
    if isinstance(layer, GRU):
        return Way("u", keeps=True, reset="r", after=layer.reset == "after")
    if isinstance(layer, SimplifiedGRU):
        return Way("u", keeps=True)
    if isinstance(layer, MGU):
        return Way("f", keeps=True, reset="f")
    if isinstance(layer, LSTM):
        return Way("u")
    return Way() if isinstance(layer, RNN) else None
