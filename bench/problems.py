"""What is measured: one grid of recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

GATES = {"rnn": 1, "simplified_gru": 2, "gru_before": 3, "gru_after": 3, "lstm": 4}
CELLS = tuple(GATES)

# (B, T, H), from one row of a small network to a batch that fills any core; I = H.
SIZES = (
    (1, 100, 64),
    (1, 100, 256),
    (1, 50, 1024),
    (16, 50, 128),
    (32, 50, 256),
    (64, 50, 512),
    (64, 25, 1024),
)


@dataclass(frozen=True)
class Problem:
    """One layer, one direction, float32, inference or training."""

    cell: str
    batch: int
    steps: int
    hidden: int
    training: bool
    ragged: bool = False

    @property
    def flops(self) -> float:
        """Useful ones of the products: a pass forward, and two more backward when training."""
        forward = 2.0 * GATES[self.cell] * self.hidden * 2 * self.hidden * self.batch * self.steps
        return 3.0 * forward if self.training else forward

    def describe(self) -> dict[str, Any]:
        """The fields, for a report."""
        return asdict(self)


def grid(cells: tuple[str, ...], *, quick: bool) -> Iterator[Problem]:
    """Every cell at every size, inference then training; ``quick`` leaves the large ones out."""
    for cell in cells:
        for batch, steps, hidden in SIZES:
            if quick and hidden * batch > 256 * 32:
                continue
            for training in (False, True):
                yield Problem(cell, batch, steps, hidden, training)
        yield Problem(cell, 32, 200, 256, training=True, ragged=True)
