# SPDX-License-Identifier: Apache-2.0
"""The minimal GRU."""

from __future__ import annotations

from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell


class MinGRU(Recurrent):
    """The minimal GRU (Feng et al. 2024, arXiv:2410.01201): no gate sees h.

    u_t = σ(W_xu x_t + b_u), n_t = W_xn x_t + b_n, h_t = u_t·n_t + (1 - u_t)·h_{t-1}. There is no
    ``weight_hh``, and so no product between steps: all that takes one is x, of many steps at once.
    Parameters' rows stack u, n. Args as in `Recurrent`.

    Example:
        >>> layer = rk.MinGRU(3, 4, seed=0)
        >>> layer.gates, sorted(layer.params)
        (('u', 'n'), ['bias_l0', 'weight_ih_l0'])
        >>> y, h = layer(np.ones((5, 2, 3), np.float32))
        >>> y.shape
        (5, 2, 4)

    """

    gates = cell_facts("min_gru").gates

    @property
    def _cell(self) -> str:
        return "min_gru"


class MinGRUCell(RecurrentCell):
    """One step of a `MinGRU`: ``h = cell(x, h)``. Args as in `RecurrentCell`.

    Example:
        >>> cell = rk.MinGRUCell(3, 4)
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = MinGRU


CELLS = (Cell("mingru", "minGRU", MinGRU, MinGRUCell),)
