# SPDX-License-Identifier: Apache-2.0
"""What is measured of the layers: the grid of problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.cells import CELLS

# (B, T, H), from one row of a small network to a batch that fills any core; I = H.
SIZES = (
    (1, 100, 64),
    (1, 100, 128),
    (1, 100, 256),
    (1, 25, 1024),
    (16, 50, 128),
    (16, 50, 256),
    (32, 50, 256),
    (64, 50, 512),
    (64, 12, 1024),
)
SHORT_SIZES = ((1, 100, 128), (16, 50, 128), (32, 50, 256))


@dataclass(frozen=True)
class Problem:
    """A network of one cell, inference or training, I = H."""

    cell: str
    batch: int
    steps: int
    hidden: int
    training: bool
    ragged: bool = False
    dtype: str = "float32"
    compute: str | None = None
    layers: int = 1
    bidirectional: bool = False

    @property
    def gates(self) -> int:
        """G."""
        return len(CELLS[self.cell].layer.gates)

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def item_bytes(self) -> int:
        """Bytes of a number that the products read."""
        return 2 if self.compute == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def recurrent_bytes(self) -> int:
        """Bytes of the weights that every step of one layer and direction reads."""
        return self.gates * self.hidden * self.recurrent_columns * self.item_bytes

    @property
    def recurrent_columns(self) -> int:
        """Of the recurrent matrix: H, or 0 for a cell that has none."""
        return self.hidden if CELLS[self.cell].facts.recurrent_product else 0

    def lengths(self) -> Array | None:
        """Of a ragged batch: uniform in 1..T, always the same."""
        if not self.ragged:
            return None
        return np.random.default_rng(0).integers(1, self.steps + 1, self.batch)

    @property
    def flops(self) -> float:
        """Useful ones of the products: those forward, and twice as many backward when training."""
        lengths = self.lengths()
        live = self.batch * self.steps if lengths is None else int(lengths.sum())
        inputs = self.hidden * (1 + self.directions * (self.layers - 1))
        columns = inputs + self.recurrent_columns * self.layers
        forward = 2.0 * self.gates * self.hidden * columns * self.directions * live
        return 3.0 * forward if self.training else forward

    @property
    def work(self) -> str:
        """In words, what is not its cell and size."""
        parts = ["train" if self.training else "infer"]
        parts += ["ragged"] if self.ragged else []
        parts += [f"{self.layers} layers"] if self.layers > 1 else []
        parts += ["bidirectional"] if self.bidirectional else []
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [self.compute] if self.compute is not None else []
        return ", ".join(parts)

    def describe(self) -> dict[str, Any]:
        """The fields, for a report."""
        return asdict(self)


def grid(cells: Sequence[str] | None = None, *, full: bool = False) -> Iterator[Problem]:
    """Cells at some sizes, inference then training; ``full`` has all sizes and kinds.

    ``None`` takes every cell.
    """
    for cell in tuple(CELLS) if cells is None else cells:
        for size in SIZES if full else SHORT_SIZES:
            for training in (False, True):
                yield Problem(cell, *size, training)
        if full:
            for training in (False, True):
                yield Problem(cell, 32, 200, 256, training, ragged=True)
                yield from _variants(cell, training)


def _variants(cell: str, training: bool) -> Iterator[Problem]:
    """Those kinds of problem that some cells are enough for."""
    if cell in ("rnn", "gru-after", "lstm"):
        for batch, steps, hidden in SIZES:
            if batch > 1:
                yield Problem(cell, batch, steps, hidden, training, compute="bfloat16")
    if cell in ("gru-after", "lstm"):
        yield Problem(cell, 32, 50, 256, training, dtype="float64")
        yield Problem(cell, 32, 50, 256, training, layers=2)
        yield Problem(cell, 32, 50, 256, training, bidirectional=True)
