# SPDX-License-Identifier: Apache-2.0
"""A call that is run in pieces of so many steps, the state of one handed on to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Gradient
from rnnkern.layers.arguments import Input
from rnnkern.layers.drops import Drops, draw
from rnnkern.layers.network import Masks, Network, zeros_like

_SUMMED_ROWS = 1 << 14  # of a gradient, by themselves: long sums of float32 lose digits


class Pieces:
    """A call of layers in one direction, cut into pieces.

    Args:
        network: the layers.
        given: the call's arguments.
        every: k, steps of a piece; the last in time may have fewer.
        drops: what of it is dropped.

    Attributes:
        spans: the pieces' steps, in the order in which the pieces run.

    """

    def __init__(self, network: Network, given: Input, every: int, drops: Drops) -> None:
        self._network, self._given = network, given
        self._drops = drops
        steps = given.steps
        self.spans = [slice(t, min(t + every, steps)) for t in range(0, steps, every)]
        if network.spec.reverse:
            self.spans.reverse()

    def input(self, span: slice) -> Input:
        """The arguments of those steps."""
        x, lengths, unbatched, marks = self._given
        if lengths is not None:
            lengths = (lengths - span.start).clip(0, span.stop - span.start)
        return Input(x[span], lengths, unbatched, None if marks is None else marks.part(span))

    def begin_anew(self, k: int, *states: Array | None) -> None:
        """What rows hand to piece k, (L·D, B, ·), is made 0 where they begin anew before it.

        A reset lies before its step, so that on the way back it is none of that step's piece but
        lies between it and the next one. Going forward it is the piece's own.
        """
        marks = self._given.marks
        if k == 0 or not self._network.spec.reverse or marks is None or marks.resets is None:
            return
        edge = self.spans[k].stop
        anew = marks.resets[edge]
        if self._given.lengths is not None:
            anew = anew & (edge < self._given.lengths)
        rows = self._network.device.put(np.flatnonzero(anew))
        for state in states:
            if state is not None:
                state[:, rows] = 0

    def masks(self, span: slice) -> Masks:
        """Those that the whole call has there."""
        steps, batch = span.stop - span.start, self._given.batch
        return draw(self._network, steps, batch, self._drops, span.start)


class Sums:
    """Gradients of the parameters, summed over pieces: those of the latest by themselves.

    Attributes:
        recent: what the pieces' gradients are added to.

    """

    def __init__(self, network: Network, totals: Sequence[Gradient]) -> None:
        """Which come to be added to the totals."""
        self.recent = [zeros_like(network, w) for w in network.weights]
        self._totals = totals
        self._rows = 0

    def added(self, piece: Input, *, last: bool) -> None:
        """To be called when a piece's have been added; the last one's too."""
        self._rows += piece.steps * piece.batch
        if self._rows <= _SUMMED_ROWS and not last:
            return
        self._rows = 0
        for parts, totals in zip(self.recent, self._totals, strict=True):
            for part, total in zip(parts, totals, strict=True):
                if part is not None and total is not None:
                    with np.errstate(all="ignore"):
                        total += part
                    part[...] = 0
