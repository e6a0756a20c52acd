# SPDX-License-Identifier: Apache-2.0
"""What a cell's module says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from rnnkern.devices import CellFacts
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell
from rnnkern.layers.configured import spec_of
from rnnkern.layers.fixed import ReadOnly


class Cell(ReadOnly):
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
    options: Mapping[str, Any]

    def __init__(
        self,
        name: str,
        label: str,
        layer: type[Recurrent],
        step: type[RecurrentCell],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        vars(self).update(name=name, label=label, layer=layer, step=step, options=options or {})

    def build(self, *sizes: int, **options: Any) -> Recurrent:
        """A layer of this cell: the constructor's sizes and further options."""
        make: Callable[..., Recurrent] = self.layer
        return make(*sizes, **self.options, **options)

    @cached_property
    def facts(self) -> CellFacts:
        """What the kernels say of it."""
        return spec_of(self.build(1, 1)).facts
