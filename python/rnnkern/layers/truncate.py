# SPDX-License-Identifier: Apache-2.0
"""Truncated back-propagation through time: the state is carried on, its gradient cut every k steps.

Source: Williams and Peng 1990, "An efficient gradient-based algorithm for on-line training of
recurrent network trajectories": BPTT(k; k), whose pieces do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array
from rnnkern.devices import Gradient, Kept
from rnnkern.layers.arguments import Input
from rnnkern.layers.marks import live_of
from rnnkern.layers.network import Network, forward
from rnnkern.layers.pieces import Pieces, Sums


class Truncated(Kept):
    """A forward pass piece by piece, and what each of them kept.

    The gradient of a state ends where a piece begins that the row has a live step in; a state that
    a row holds, since it skips a piece or has ended, hands its gradient on.
    """

    def __init__(
        self, network: Network, pieces: Pieces, h: Array, c: Array | None, y: Array
    ) -> None:
        """Run it: h and c change in place, y is written."""
        by_token = pieces.input(pieces.spans[0]).by_token
        self._network = network = network.snapshot(network.layout).packed(
            by_token=by_token, with_backward=True
        )
        self._pieces = pieces
        self._kept: list[Kept] = []
        for k, span in enumerate(pieces.spans):
            pieces.begin_anew(k, h, c)
            masks = pieces.masks(span)
            kept = forward(network, pieces.input(span), h, c, y[span], masks, keep=True)
            assert kept is not None
            self._kept.append(kept)

    def backward(
        self,
        x: Array,
        y: Array,
        dy: Array | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
        gradients: Sequence[Gradient],
        state_gradients: Sequence[Array] | None = None,
    ) -> None:
        """See `Kept`."""
        sums = Sums(self._network, gradients)
        counts = [len(kept.places) for kept in self._kept] if state_gradients is not None else []
        for k in reversed(range(len(self._kept))):
            span = self._pieces.spans[k]
            given = self._pieces.input(span)
            told = None
            if state_gradients is not None:
                first = sum(counts[:k])
                told = [trace[first : first + counts[k]] for trace in state_gradients]
            self._kept[k].backward(
                given.x,
                y[span],
                None if dy is None else dy[span],
                dh,
                dc,
                None if dx is None else dx[span],
                sums.recent,
                told,
            )
            sums.added(given, last=k == 0)
            self._pieces.begin_anew(k, dh, dc)
            if k > 0:
                cut = self._network.device.put(_live_rows(given))
                dh[:, cut] = 0
                if dc is not None:
                    dc[:, cut] = 0

    @property
    def places(self) -> Array:
        """See `Kept`, as the others: of the pieces in turn."""
        spans = self._pieces.spans
        batch = self._pieces.input(spans[0]).batch
        parts = zip(self._kept, spans, strict=True)
        return np.concatenate([kept.places + span.start * batch for kept, span in parts])

    @property
    def saved(self) -> list[Array | None]:
        """Likewise."""
        each = zip(*(kept.saved for kept in self._kept), strict=True)
        own = [[part for part in parts if part is not None] for parts in each]
        return [self._joined(parts) if parts else None for parts in own]

    @property
    def between(self) -> list[Array]:
        """Likewise."""
        return self._in_time([kept.between for kept in self._kept])

    def _in_time(self, of_pieces: Sequence[Sequence[Array]]) -> list[Array]:
        """Arrays (T, B, ·) of those of the pieces."""
        order = sorted(range(len(of_pieces)), key=lambda k: self._pieces.spans[k].start)
        parts = zip(*(of_pieces[k] for k in order), strict=True)
        return [self._joined(each) for each in parts]

    def _joined(self, parts: Sequence[Array]) -> Array:
        joined: Array = self._network.device.xp.concatenate(parts)
        return joined


def _live_rows(given: Input) -> NDArray[np.int64]:
    """The rows that have a live step."""
    mask = None if given.marks is None else given.marks.mask
    return np.flatnonzero(live_of(given.steps, given.batch, given.lengths, mask).any(axis=0))
