# SPDX-License-Identifier: Apache-2.0
"""The cells as programs name them: each a layer's class with options of its own.

A new cell has one entry here, and one in csrc/core/cells.h; everything else reads these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rnnkern.layers import (
    GRU,
    LSTM,
    MGU,
    RNN,
    GRUCell,
    LSTMCell,
    MGUCell,
    Recurrent,
    RecurrentCell,
    RNNCell,
    SimplifiedGRU,
    SimplifiedGRUCell,
)


@dataclass(frozen=True)
class Cell:
    """A cell by its name on the command line.

    Attributes:
        name: as a command takes it.
        label: as figures and tables show it.
        layer: the class of its layers.
        step: the class of its single steps.
        options: of both constructors, fixed by the name.

    """

    name: str
    label: str
    layer: type[Recurrent]
    step: type[RecurrentCell]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *sizes: int, **options: Any) -> Recurrent:
        """A layer of this cell: the constructor's sizes and further options."""
        make: Callable[..., Recurrent] = self.layer
        return make(*sizes, **self.options, **options)


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn", "simple RNN", RNN, RNNCell),
        Cell("simplified-gru", "simplified GRU", SimplifiedGRU, SimplifiedGRUCell),
        Cell("gru", "GRU", GRU, GRUCell, {"reset": "before"}),
        Cell("gru-after", "GRU, reset after", GRU, GRUCell, {"reset": "after"}),
        Cell("mgu", "minimal gated unit", MGU, MGUCell),
        Cell("lstm", "LSTM", LSTM, LSTMCell),
    )
}


def layer_classes() -> dict[str, type[Any]]:
    """The layers' classes by their own names."""
    return {cell.layer.__name__: cell.layer for cell in CELLS.values()}


def step_classes() -> dict[str, type[Any]]:
    """The classes of single steps by their own names."""
    return {cell.step.__name__: cell.step for cell in CELLS.values()}
