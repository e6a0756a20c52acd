# SPDX-License-Identifier: Apache-2.0
"""The minimal gated unit."""

from __future__ import annotations

from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell


class MGU(Recurrent):
    """The minimal gated unit (Zhou et al. 2016, arXiv:1603.09420): one gate resets and updates.

    f_t = σ(W_hf h_{t-1} + W_xf x_t + b_f), n_t = tanh(W_hn (f_t·h_{t-1}) + W_xn x_t + b_n),
    h_t = f_t·n_t + (1 - f_t)·h_{t-1}. Parameters' rows stack f, n. Args as in `Recurrent`.

    Example:
        >>> layer = rk.MGU(3, 4, seed=0)
        >>> y, h = layer(np.ones((5, 2, 3), np.float32))
        >>> bool((y[-1] == h[0]).all())
        True

    """

    gates = cell_facts("minimal_gated").gates

    @property
    def _cell(self) -> str:
        return "minimal_gated"


class MGUCell(RecurrentCell):
    """One step of an `MGU`: ``h = cell(x, h)``. Args as in `RecurrentCell`.

    Example:
        >>> cell = rk.MGUCell(3, 4)
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = MGU


CELLS = (Cell("mgu", "minimal gated unit", MGU, MGUCell),)
