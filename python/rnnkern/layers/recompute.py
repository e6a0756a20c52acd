# SPDX-License-Identifier: Apache-2.0
"""Forward passes that keep every k-th state alone, and compute the steps between anew to go back.

Checkpoints in time: Gruslys et al. 2016, "Memory-efficient backpropagation through time",
arXiv:1606.03401, with one level of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from rnnkern._checks import Array
from rnnkern.devices import Gradient, Kept
from rnnkern.layers.arguments import Input
from rnnkern.layers.network import Network, dropout_masks, forward, zeros_like

_SUMMED_ROWS = 1 << 14  # of a gradient, by themselves: long sums of float32 lose digits


class Pieces:
    """A call cut into pieces of so many steps, in the order in which they run.

    Args:
        given: the call's arguments.
        every: k, steps of a piece; the last in time may have fewer.
        dropout: share of what one layer hands to the next.
        key: of its masks.

    """

    def __init__(self, given: Input, every: int, dropout: float, key: int | None) -> None:
        self._given = given
        self._dropout, self._key = dropout, key
        steps = given.steps
        self.spans = [slice(t, min(t + every, steps)) for t in range(0, steps, every)]

    def input(self, span: slice) -> Input:
        """The arguments of a piece."""
        x, lengths, unbatched = self._given
        if lengths is not None:
            lengths = (lengths - span.start).clip(0, span.stop - span.start)
        return Input(x[span], lengths, unbatched)

    def masks(self, network: Network, span: slice) -> list[Array]:
        """The dropout masks of a piece: those that the whole call would have there."""
        if self._key is None or self._dropout == 0.0:
            return []
        return dropout_masks(network, self.input(span), self._dropout, self._key, span.start)


class Recomputed(Kept):
    """What such a pass keeps: the state before each piece, and the weights.

    It goes back piece by piece: a piece is run again, to the same bits, and then back.
    """

    def __init__(self, network: Network, pieces: Pieces, h: Array, c: Array | None) -> None:
        """Room for the states; h and c are shaped as each of them."""
        # As the tape of a plain pass, it must not see what is later written to the weights.
        self._network = network.snapshot(network.layout).packed()
        self._pieces = pieces
        count, empty = len(pieces.spans), network.device.xp.empty
        self._h = empty((count, *h.shape), h.dtype)
        self._c = None if c is None else empty((count, *c.shape), c.dtype)

    def run(self, h: Array, c: Array | None, y: Array) -> None:
        """Forward: h and c change in place, y is written."""
        for k, span in enumerate(self._pieces.spans):
            self._h[k] = h
            if self._c is not None:
                self._c[k] = c
            masks = self._pieces.masks(self._network, span)
            forward(self._network, self._pieces.input(span), h, c, y[span], masks)

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
        """See `Kept`; the pieces' gradients are added to each other."""
        if state_gradients is not None:
            _refuse("state_gradients")
        recent, rows = [zeros_like(self._network, w) for w in self._network.weights], 0
        for k in reversed(range(len(self._pieces.spans))):
            span = self._pieces.spans[k]
            given = self._pieces.input(span)
            h, c = self._h[k].copy(), None if self._c is None else self._c[k].copy()
            own = self._network.device.xp.empty(y[span].shape, y.dtype)
            masks = self._pieces.masks(self._network, span)
            kept = forward(self._network, given, h, c, own, masks, keep=True)
            assert kept is not None
            part = None if dx is None else dx[span]
            kept.backward(given.x, own, None if dy is None else dy[span], dh, dc, part, recent)
            rows += given.steps * given.batch
            if rows > _SUMMED_ROWS or k == 0:
                _move(recent, gradients)
                rows = 0

    def direct(self, x: Array, y: Array, dy: Any, dstate: Any, unbatched: bool) -> None:
        """Nothing: the arguments are looked at first."""
        return

    @property
    def saved(self) -> NoReturn:
        """There is nothing of the kind."""
        _refuse("gates()")

    @property
    def between(self) -> NoReturn:
        """Likewise."""
        _refuse("gates()")

    @property
    def masks(self) -> NoReturn:
        """Likewise."""
        _refuse("masks")


def _move(recent: Sequence[Gradient], totals: Sequence[Gradient]) -> None:
    """Add the recent sums to the totals, and begin new ones."""
    for parts, sums in zip(recent, totals, strict=True):
        for part, total in zip(parts, sums, strict=True):
            if part is not None and total is not None:
                total += part
                part[...] = 0


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"{what} needs a tape that kept every step, got that of forward(recompute=...), which "
        "keeps some states alone: leave recompute out"
    )
