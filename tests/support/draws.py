# SPDX-License-Identifier: Apache-2.0
"""References of what training draws, around those of reference.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from support.reference import Array, Direction, State, Weights


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
