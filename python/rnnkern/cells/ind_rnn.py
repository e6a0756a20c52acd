# SPDX-License-Identifier: Apache-2.0
"""The independently recurrent network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rnnkern._checks import Array
from rnnkern.cells.entry import Cell
from rnnkern.devices import cell_facts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell


class IndRNN(Recurrent):
    """The independently recurrent network (Li et al. 2018, arXiv:1803.04831).

    h_t = relu(W_xh x_t + u·h_{t-1} + b_h): a unit sees its own h alone, by a weight of its own,
    ``weight_u_l{k}`` (1, H), and there is no ``weight_hh``. These begin uniform in 0..1, so that
    units remember for longer and for shorter; of T steps |u| should stay below 2^(1/T) or so,
    beyond which h may grow without bound. Args as in `Recurrent`.

    Example:
        >>> layer = rk.IndRNN(3, 4, seed=0)
        >>> layer.gates, sorted(layer.params)
        (('h',), ['bias_l0', 'weight_ih_l0', 'weight_u_l0'])
        >>> y, h = layer(np.ones((5, 2, 3), np.float32))
        >>> y.shape
        (5, 2, 4)

    """

    gates = cell_facts("ind_rnn").gates

    @property
    def _cell(self) -> str:
        return "ind_rnn"

    def _initial_values(self) -> Iterator[tuple[str, Array]]:
        random = np.random.default_rng(None if self.seed is None else [self.seed, 1])
        for name, array in super()._initial_values():
            own = name.startswith(self._spec.facts.unit_weights_name)
            yield name, random.random(array.shape).astype(array.dtype) if own else array


class IndRNNCell(RecurrentCell):
    """One step of an `IndRNN`: ``h = cell(x, h)``. Args as in `RecurrentCell`.

    Example:
        >>> cell = rk.IndRNNCell(3, 4)
        >>> h = cell(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))

    """

    kind = IndRNN


CELLS = (Cell("indrnn", "IndRNN", IndRNN, IndRNNCell),)
