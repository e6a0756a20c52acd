# SPDX-License-Identifier: Apache-2.0
"""What a network of recurrent layers is, apart from its weights: what devices take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array

# What two directions may give together.
MERGES = ("concat", "sum", "average", "product")


class Weights(NamedTuple):
    """One layer's parameters in one direction, in the kernels' order."""

    weight_ih: Array
    weight_hh: Array | None  # of a cell with a recurrent product
    bias: Array | None
    bias_hn: Array | None
    unit_weights: Array | None = None
    weight_hr: Array | None = None
    gain_ih: Array | None = None  # these four where the cell normalises
    gain_hh: Array | None = None
    gain_c: Array | None = None
    shift_c: Array | None = None

    @property
    def matrices(self) -> tuple[Array, ...]:
        """Those that products multiply."""
        all_of_them = (self.weight_ih, self.weight_hh, self.weight_hr)
        return tuple(matrix for matrix in all_of_them if matrix is not None)

    @classmethod
    def of(cls, arrays: Iterable[Array | None]) -> Weights:
        """Of the fields in turn, of which the first is never None."""
        weight_ih, *rest = arrays
        assert weight_ih is not None
        return cls(weight_ih, *rest)

    @property
    def recurrent(self) -> Array:
        """``weight_hh`` of a cell that has it."""
        assert self.weight_hh is not None
        return self.weight_hh


class CellFacts(NamedTuple):
    """What the kernels say of a cell.

    Attributes:
        gates: names, in the order in which they are stacked in the parameters' rows.
        states: ("h",) or ("h", "c").
        saved: values of a unit and step that ``forward`` keeps for ``backward``.
        recurrent_product: whether weights multiply h; without there is no ``weight_hh``.
        recurrent_bias_gate: the gate that ``bias_hn`` belongs to, or -1.
        unit_weights: how many weights of its own a unit has, which no product multiplies.
        unit_weights_name: of the parameter that has these, (unit_weights, H).
        layer_norm: whether sums, and c, are normalised.

    """

    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: int
    recurrent_product: bool
    recurrent_bias_gate: int
    unit_weights: int
    unit_weights_name: str
    layer_norm: bool


# A name out of ``_core.functions()``, alpha and beta; a function that takes none ignores them.
Function = tuple[str, float, float]


class CellOptions(NamedTuple):
    """What a layer's equations apply in one direction.

    Attributes:
        gate: in place of the sigmoid.
        candidate: in place of the new value's tanh.
        output: in place of the tanh of c.
        clip: pre-activations are held within ±clip; inf for no bound.
        cell_clip: likewise c.

    """

    gate: Function
    candidate: Function
    output: Function
    clip: float
    cell_clip: float


NORMALISING = "_norm"  # at the end of a cell's name
_FACTS = {name: CellFacts(**facts) for name, facts in _core.cells().items()}


def cell_facts(cell: str) -> CellFacts:
    """Of a cell by the kernels' name."""
    return _FACTS[cell]


def normalising(cell: str) -> str | None:
    """The name of the cell with layer normalisation; None where there is none."""
    name = cell + NORMALISING
    return name if name in _FACTS else None


class LayerSpec(NamedTuple):
    """Stacked layers of one cell.

    Attributes:
        cell: the kernels' name.
        inputs: I, of the first layer.
        units: H, of each layer and direction.
        layers: L.
        directions: D.
        bias: whether there are bias parameters.
        dtype: of parameters, input and output.
        compute: how products are done; None is exactly the dtype.
        reverse: of one direction, whether it is that from the last step to the first.
        merge: what two directions give together: one of `MERGES`.
        projection: P, the width of h where it is a projection W_hr h' of what the cell gives, less
            than H; or 0.
        options: by direction; None where the cell's own functions run, without bounds.
        recurrent_dropout: share of h that training drops before recurrent products.
        zoneout: share of h_{t-1} in h_t of a plain call.
        cell_zoneout: likewise of c.

    """

    cell: str
    inputs: int
    units: int
    layers: int = 1
    directions: int = 1
    bias: bool = True
    dtype: np.dtype[Any] = np.dtype(np.float32)
    compute: str | None = None
    reverse: bool = False
    merge: str = "concat"
    projection: int = 0
    options: tuple[CellOptions, ...] | None = None
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    cell_zoneout: float = 0.0

    @property
    def facts(self) -> CellFacts:
        """Of the cell."""
        return cell_facts(self.cell)

    @property
    def outputs(self) -> int:
        """Numbers of h: P where there is a projection, else H."""
        return self.projection or self.units

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of each part of the state, as the cell names them."""
        return (self.outputs, self.units)[: len(self.facts.states)]

    @property
    def merges(self) -> bool:
        """Whether y is another array than what the directions give, side by side."""
        return self.directions > 1 and self.merge != "concat"

    @property
    def unmerged(self) -> int:
        """D·P, what the directions give, side by side."""
        return self.directions * self.outputs

    @property
    def features(self) -> int:
        """Of y: D·P, or P where the directions are merged into one."""
        return self.outputs if self.merges else self.unmerged

    def by_direction(self, array: Array) -> list[Array]:
        """The parts (..., P) of what the directions gave, side by side (..., D·P)."""
        width = self.outputs
        return [array[..., d * width : (d + 1) * width] for d in range(self.directions)]

    def backwards(self, direction: int) -> bool:
        """Whether a direction is that from the last step to the first."""
        return self.reverse or direction == 1

    @property
    def ways(self) -> tuple[bool, ...]:
        """Of each direction whether it is that from the last step to the first."""
        return tuple(self.backwards(d) for d in range(self.directions))

    @property
    def states(self) -> int:
        """L·D, arrays (B, H) of each kind of state."""
        return self.layers * self.directions

    @property
    def above(self) -> LayerSpec:
        """The same with the inputs of every layer but the first."""
        return self._replace(inputs=self.features)

    def alone(self, layer: int, direction: int) -> LayerSpec:
        """Of one of the layers in one of its directions, as a network of its own."""
        own = self if layer == 0 else self.above
        return own._replace(
            layers=1,
            directions=1,
            reverse=self.backwards(direction),
            merge="concat",
            options=None if self.options is None else (self.options[direction],),
        )
