# SPDX-License-Identifier: Apache-2.0
"""The GRU without a reset gate."""

from __future__ import annotations

from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell


class SimplifiedGRU(Recurrent):
    """The GRU without a reset gate.

    u_t = σ(W_hu h_{t-1} + W_xu x_t + b_u), n_t = tanh(W_hn h_{t-1} + W_xn x_t + b_n),
    h_t = u_t·n_t + (1 - u_t)·h_{t-1}. Parameters' rows stack u, n. Args as in `Recurrent`; for
    ``recurrent_activation`` see `GRU`.

    Example:
        >>> layer = rk.SimplifiedGRU(3, 4, seed=0)
        >>> layer.gates, layer.params["weight_hh_l0"].shape
        (('u', 'n'), (8, 4))

    """

    gates = cell_facts("simplified_gru").gates

    @property
    def _cell(self) -> str:
        return "simplified_gru"


class SimplifiedGRUCell(RecurrentCell):
    """One step of a `SimplifiedGRU`: ``h = cell(x, h)``. Args as in `RecurrentCell`.

    Example:
        >>> cell = rk.SimplifiedGRUCell(3, 4)
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = SimplifiedGRU


CELLS = (Cell("simplified-gru", "simplified GRU", SimplifiedGRU, SimplifiedGRUCell),)
