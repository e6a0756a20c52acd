# SPDX-License-Identifier: Apache-2.0
"""The cells as programs name them: each a layer's class with options of its own.

A new cell has one entry here, and one in csrc/core/cells.h; everything else reads these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rnnkern.layers import GRU, LSTM, MGU, RNN, Recurrent, SimplifiedGRU


@dataclass(frozen=True)
class Cell:
    """A cell by its name on the command line.

    Attributes:
        name: as a command takes it.
        label: as figures and tables show it.
        layer: the class of its layers.
        options: of that class's constructor, fixed by the name.

    """

    name: str
    label: str
    layer: type[Recurrent]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *sizes: int, **options: Any) -> Recurrent:
        """A layer of this cell: the constructor's sizes and further options."""
        make: Callable[..., Recurrent] = self.layer
        return make(*sizes, **self.options, **options)


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn", "simple RNN", RNN),
        Cell("simplified-gru", "simplified GRU", SimplifiedGRU),
        Cell("gru", "GRU", GRU, {"reset": "before"}),
        Cell("gru-after", "GRU, reset after", GRU, {"reset": "after"}),
        Cell("mgu", "minimal gated unit", MGU),
        Cell("lstm", "LSTM", LSTM),
    )
}


def layer_classes() -> dict[str, type[Any]]:
    """The layers' classes by their own names."""
    return {cell.layer.__name__: cell.layer for cell in CELLS.values()}
