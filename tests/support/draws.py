# SPDX-License-Identifier: Apache-2.0
"""References of what training draws, around those of reference.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from support.reference import CELLS, Array, Cell, Direction, State, Weights


def drops_of(cell: str) -> list[dict[str, Any]]:
    """Options that drop something, each alone and all together."""
    each: list[dict[str, Any]] = [{"recurrent_dropout": 0.4}, {"zoneout": 0.3}]
    if CELLS[cell].states > 1:
        each.append({"cell_zoneout": 0.4})
    together = {name: share for own in each for name, share in own.items()}
    return [*each, together]


class ByRow:
    """A `Direction` in which h, where matrices multiply it, counts ``factors`` (B, H) times.

    Row by row, for the factors of a row may as well be of the columns of its W_hh.
    """

    def __init__(
        self, w: Weights, factors: Array, of_row: Callable[[slice, Weights], Direction]
    ) -> None:
        self.factors = factors
        self.rows = [
            of_row(slice(b, b + 1), replace(w, w_hh=w.w_hh * own)) for b, own in enumerate(factors)
        ]

    def forward(self, x: Array, state: State) -> tuple[Array, State]:
        """As there."""
        each = [
            row.forward(x[:, b : b + 1], tuple(s[b : b + 1] for s in state))
            for b, row in enumerate(self.rows)
        ]
        ys, lasts = zip(*each, strict=True)
        return np.concatenate(ys, axis=1), tuple(map(np.concatenate, zip(*lasts, strict=True)))

    def backward(self, dy: Array, dstate: State) -> tuple[Array, State, Weights]:
        """As there."""
        each = [
            row.backward(dy[:, b : b + 1], tuple(d[b : b + 1] for d in dstate))
            for b, row in enumerate(self.rows)
        ]
        dxs, firsts, grads = zip(*each, strict=True)
        for own, factors in zip(grads, self.factors, strict=True):
            own.w_hh[...] *= factors
        by_kind = zip(*(vars(own).values() for own in grads), strict=True)
        first = tuple(map(np.concatenate, zip(*firsts, strict=True)))
        whole = Weights(*(np.sum(parts, axis=0) for parts in by_kind))
        return np.concatenate(dxs, axis=1), first, whole


class Zoned(Cell):
    """A cell with zoneout: of what is drawn, or of shares."""

    def __init__(self, cell: Cell, zones: list[Any], steps: int, ways: int) -> None:
        self.cell, self.zones, self.steps, self.ways = cell, zones, steps, ways
        self.gates, self.states, self.own_bias = cell.gates, cell.states, cell.own_bias
        self.recurrent, self.count = cell.recurrent, 0
        self.told: dict[tuple[int, int], State] = {}

    def forward(self, a: Array, state: State, w: Weights) -> tuple[State, State]:
        k, s = divmod(self.count, self.steps)
        t = self.steps - 1 - s if self.ways == 2 and k % 2 else s
        self.count += 1
        fresh, saved = self.cell.forward(a, state, w)
        keeps: list[Any] = [
            zone if isinstance(zone, float) else zone[k, t].astype(float) for zone in self.zones
        ]
        new = tuple((1 - z) * f + z * old for z, f, old in zip(keeps, fresh, state, strict=True))
        return new, ((k, t), keeps, saved)  # type: ignore[return-value]

    def backward(self, dstate: State, saved: Any, w: Weights) -> tuple[Array, State, Array, Array]:
        place, keeps, inner = saved
        self.told[place] = dstate
        own = tuple((1 - z) * d for z, d in zip(keeps, dstate, strict=True))
        da, dold, dw, dbias_hn = self.cell.backward(own, inner, w)
        return (
            da,
            tuple(o + z * d for o, z, d in zip(dold, keeps, dstate, strict=True)),
            dw,
            dbias_hn,
        )
