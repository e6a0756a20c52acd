# SPDX-License-Identifier: Apache-2.0
"""The cells: each has a module with its layers, its single steps and its names in programs.

A new cell has a module, is named below, and has an entry in csrc/core/cells.h. All else, what users
can import too, reads these.
"""

from __future__ import annotations

from typing import Any

from rnnkern.cells import gru, ind_rnn, lstm, mgu, min_gru, min_lstm, rnn, simplified_gru
from rnnkern.cells.entry import Cell
from rnnkern.cells.gru import GRU, GRUCell
from rnnkern.cells.ind_rnn import IndRNN, IndRNNCell
from rnnkern.cells.lstm import LSTM, LSTMCell
from rnnkern.cells.mgu import MGU, MGUCell
from rnnkern.cells.min_gru import MinGRU, MinGRUCell
from rnnkern.cells.min_lstm import MinLSTM, MinLSTMCell
from rnnkern.cells.rnn import RNN, RNNCell
from rnnkern.cells.simplified_gru import SimplifiedGRU, SimplifiedGRUCell

# What users see of it, from the package itself.
__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "GRUCell",
    "IndRNN",
    "IndRNNCell",
    "LSTMCell",
    "MGUCell",
    "MinGRU",
    "MinGRUCell",
    "MinLSTM",
    "MinLSTMCell",
    "RNNCell",
    "SimplifiedGRU",
    "SimplifiedGRUCell",
]

# By their names on the command line, in the order in which programs list them.
CELLS: dict[str, Cell] = {
    cell.name: cell
    for module in (rnn, simplified_gru, gru, mgu, lstm, min_gru, min_lstm, ind_rnn)
    for cell in module.CELLS
}


def layer_classes() -> dict[str, type[Any]]:
    """The layers' classes by their own names."""
    return {cell.layer.__name__: cell.layer for cell in CELLS.values()}


def step_classes() -> dict[str, type[Any]]:
    """The classes of single steps by their own names."""
    return {cell.step.__name__: cell.step for cell in CELLS.values()}
