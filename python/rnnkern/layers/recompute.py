# SPDX-License-Identifier: Apache-2.0
"""Forward passes that keep every k-th state alone, and compute the steps between anew to go back.

Checkpoints in time: Gruslys et al. 2016, "Memory-efficient backpropagation through time",
arXiv:1606.03401, with one level of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from rnnkern._checks import Array
from rnnkern.devices import Gradient, Kept, masked
from rnnkern.devices.merging import merged, split_gradient
from rnnkern.layers.arguments import Input
from rnnkern.layers.drops import Drops, draw
from rnnkern.layers.network import Network, forward
from rnnkern.layers.pieces import Pieces, Sums


def run_sparsely(
    network: Network,
    given: Input,
    h: Array,
    c: Array | None,
    y: Array,
    every: int,
    drops: Drops,
) -> Kept:
    """As ``forward`` with `keep`, but of every k-th step: h and c change in place, y is written."""
    # As the tape of a plain pass, what is kept must not see what is later written to the weights.
    network = network.snapshot(network.layout)
    if network.spec.directions == 1:
        return _OneWay(network, given, h, c, y, every, drops)
    return _BothWays(network, given, h, c, y, every, drops)


class _Sparse(Kept):
    """What both kinds are asked for, and refuse."""

    @property
    def saved(self) -> NoReturn:
        """There is nothing of the kind."""
        _refuse("gates()")

    @property
    def places(self) -> NoReturn:
        """Likewise."""
        _refuse("state_gradients")

    @property
    def between(self) -> NoReturn:
        """Likewise."""
        _refuse("gates()")


class _OneWay(_Sparse):
    """Of layers in one direction: the state before each piece of so many steps.

    All layers go through a piece before the next piece. Back, a piece is run once more, to the same
    bits, and then back.
    """

    def __init__(
        self,
        network: Network,
        given: Input,
        h: Array,
        c: Array | None,
        y: Array,
        every: int,
        drops: Drops,
    ) -> None:
        """Forward; the weights are the pass's own."""
        self._network = network.packed(by_token=given.by_token, with_backward=True)
        self._pieces = Pieces(network, given, every, drops)
        spans = self._pieces.spans
        count, empty = len(spans), network.device.xp.empty
        self._h = empty((count, *h.shape), h.dtype)
        self._c = None if c is None else empty((count, *c.shape), c.dtype)
        for k, span in enumerate(spans):
            self._pieces.begin_anew(k, h, c)
            self._h[k] = h
            if self._c is not None:
                self._c[k] = c
            masks = self._pieces.masks(span)
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
        """See `Kept`. The y of each piece is computed anew too."""
        if state_gradients is not None:
            _refuse("state_gradients")
        network, sums = self._network, Sums(self._network, gradients)
        for k in reversed(range(len(self._pieces.spans))):
            span = self._pieces.spans[k]
            piece, masks = self._pieces.input(span), self._pieces.masks(span)
            h, c = self._h[k].copy(), None if self._c is None else self._c[k].copy()
            shape = (piece.steps, piece.batch, network.spec.features)
            own = network.device.xp.empty(shape, network.spec.dtype)
            kept = forward(network, piece, h, c, own, masks, keep=True)
            assert kept is not None
            of_x = None if dx is None else dx[span]
            of_y = None if dy is None else dy[span]
            kept.backward(piece.x, own, of_y, dh, dc, of_x, sums.recent)
            self._pieces.begin_anew(k, dh, dc)
            sums.added(piece, last=k == 0)


class _BothWays(_Sparse):
    """Of layers in both directions: each of them by itself, and what a layer hands to the next."""

    def __init__(
        self,
        network: Network,
        given: Input,
        h: Array,
        c: Array | None,
        y: Array,
        every: int,
        drops: Drops,
    ) -> None:
        """As `_OneWay`."""
        self._network = network
        between = Drops(drops.dropout, key=drops.key)
        self._masked = draw(network, given.steps, given.batch, between).between
        self._given: list[Array] = []  # x of each layer
        self._gave: list[list[Array]] = []  # what its directions gave, where they are multiplied
        self._ways: list[list[_OneWay]] = []
        spec, xp = network.spec, network.device.xp
        x = given.x
        for k in range(spec.layers):
            self._given.append(x)
            self._ways.append([])
            gave = []
            for d in range(2):
                i = 2 * k + d
                of_way = drops._replace(dropout=0.0, first=i)
                part = xp.empty((given.steps, given.batch, spec.outputs), spec.dtype)
                own_c = None if c is None else c[i : i + 1]
                of_layer, own = given._replace(x=x), self._one_way(k, d)
                way = _OneWay(own, of_layer, h[i : i + 1], own_c, part, every, of_way)
                self._ways[k].append(way)
                gave.append(part)
            x = merged(xp, spec, gave)
            self._gave.append(gave if spec.merge == "product" else [])
            if self._masked and k + 1 < spec.layers:
                x = masked(x, self._masked[k])
        y[...] = x

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
        if state_gradients is not None:
            _refuse("state_gradients")
        spec, zeros = self._network.spec, self._network.device.xp.zeros
        for k in reversed(range(spec.layers)):
            parts: list[Array | None] = [None, None]
            if dy is not None:
                parts = [*split_gradient(spec, dy, self._gave[k] or [dy, dy])]
            below = dx if k == 0 else zeros(self._given[k].shape, spec.dtype)
            for d, way in enumerate(self._ways[k]):
                i = 2 * k + d
                own_dc = None if dc is None else dc[i : i + 1]
                own = gradients[i : i + 1]
                way.backward(x, y, parts[d], dh[i : i + 1], own_dc, below, own)
            if self._masked and k > 0:
                assert below is not None
                below = masked(below, self._masked[k - 1])
            dy = below

    def _one_way(self, k: int, d: int) -> Network:
        """Layer k in direction d as a network of its own."""
        network = self._network
        layout = network.layout._replace(spec=network.spec.alone(k, d))
        return Network(layout, [network.weights[2 * k + d]])


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"{what} needs a tape that kept every step, got that of forward(recompute=...), which "
        "keeps some states alone: leave recompute out"
    )
