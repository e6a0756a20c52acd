# SPDX-License-Identifier: Apache-2.0
"""The minimal LSTM."""

from __future__ import annotations

from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell


class MinLSTM(Recurrent):
    """The minimal LSTM (Feng et al. 2024, arXiv:2410.01201): no gate sees h.

    u_t, f_t = σ(W_x x_t + b), n_t = W_xn x_t + b_n, h_t = (u_t·n_t + f_t·h_{t-1}) / (u_t + f_t):
    the shares of what is new and what was there sum to 1. There is one state, h, and no
    ``weight_hh``: all that takes a product is x, of many steps at once. Parameters' rows stack u,
    f, n. Args as in `Recurrent`.

    Example:
        >>> layer = rk.MinLSTM(3, 4, seed=0)
        >>> layer.gates, sorted(layer.params)
        (('u', 'f', 'n'), ['bias_l0', 'weight_ih_l0'])
        >>> y, h = layer(np.ones((5, 2, 3), np.float32))
        >>> y.shape
        (5, 2, 4)

    """

    gates = cell_facts("min_lstm").gates

    @property
    def _cell(self) -> str:
        return "min_lstm"


class MinLSTMCell(RecurrentCell):
    """One step of a `MinLSTM`: ``h = cell(x, h)``. Args as in `RecurrentCell`.

    Example:
        >>> cell = rk.MinLSTMCell(3, 4)
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = MinLSTM


CELLS = (Cell("minlstm", "minLSTM", MinLSTM, MinLSTMCell),)
