# SPDX-License-Identifier: Apache-2.0
"""A network on a GPU: launches one after the other, each of as many layers as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices.base import masked
from rnnkern.devices.kernels import Gradient, Kept
from rnnkern.devices.merging import merged, split_gradient
from rnnkern.devices.spec import LayerSpec, Weights
from rnnkern.devices.stretches import Copier, StretchedKept, Stretches


class Schedule(NamedTuple):
    """The sizes of a call, and the lengths of its rows."""

    steps: int
    batch: int
    lengths: Array | None


@dataclass(frozen=True)
class KeptLayer:
    """What backward needs of one layer, beside its x and y; lists are by direction."""

    schedule: Schedule
    h_0: Array
    c_0: Array | None
    saved: tuple[Array | None, ...]
    cells: tuple[Array | None, ...]
    fresh_c: tuple[Array | None, ...]
    # A snapshot, so that a later step of training does not change them, unless they are fixed.
    weights: list[tuple[Array, Array, Array | None]]  # weight_ih, weight_hh, unit_weights


class Pass(NamedTuple):
    """One layer's run over a sequence: what backward needs of it."""

    x: Array
    y: Array  # (T, B, D·H), of its directions side by side, also where they are merged
    kept: KeptLayer


class Draws(NamedTuple):
    """What a pass in training is given of random numbers, but for the masks between layers.

    Attributes:
        h_factors: by layer and direction (B, H), of h as recurrent products take it; or none.
        zone_h: likewise (T, B, H) bool, which units of h keep their value.
        zone_c: likewise of c.

    """

    h_factors: Sequence[Array] = ()
    zone_h: Sequence[Array] = ()
    zone_c: Sequence[Array] = ()

    def of(self, first: int, end: int) -> Draws:
        """Those of some layers and directions."""
        return Draws(*(each[first:end] for each in self))

    def strand(self, index: int) -> dict[str, Array | None]:
        """Those of one, by the kernels' names."""
        return {
            name: each[index] if each else None
            for name, each in zip(self._fields, self, strict=True)
        }

    def taken(self, stretches: Stretches) -> Draws:
        """Those of stretches."""
        return Draws(
            [stretches.by_row(own) for own in self.h_factors],
            [stretches.taken(own) for own in self.zone_h],
            [stretches.taken(own) for own in self.zone_c],
        )


class Launcher(Copier, Protocol):
    """Of a device, what launches some layers at once: see `Cuda`."""

    def layers_per_launch(
        self, spec: LayerSpec, schedule: Schedule, *, backward: bool
    ) -> list[int]:
        """How many of the layers each launch takes, from the first up."""

    def forward(
        self,
        spec: LayerSpec,
        layers: Sequence[Sequence[Weights]],
        schedule: Schedule,
        x: Array,
        h: Array,
        c: Array | None,
        ys: list[Array],
        masks: Sequence[Array],
        draws: Draws,
        *,
        keep: bool,
        fixed: bool,
    ) -> list[KeptLayer]:
        """One launch.

        Args:
            spec: of the network; its inputs are those of the first layer of the launch.
            layers: weights of each layer, by direction.
            schedule: of the call.
            x: (T, B, I), or tokens (T, B).
            h: (layers·D, B, H), in place: the initial states in, the last ones out.
            c: likewise; None for a cell without c.
            ys: (T, B, D·H), written, of each layer. Of stacked ones it is the x of the next.
            masks: factors, (T, B, D·H), of the y's on the way to the next layer, or none.
            draws: of the layers.
            keep: whether a backward pass follows: then what it needs is given for each layer.
            fixed: whether nobody writes to the weights, so that no copies need be kept.

        """

    def backward(
        self,
        spec: LayerSpec,
        passes: list[Pass],
        dys: Sequence[Array] | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
        gradients: Sequence[Gradient],
        masks: Sequence[Array],
        draws: Draws,
    ) -> None:
        """The gradients of one launch, of as many layers.

        Args:
            spec: as in ``forward``.
            passes: of each layer, forward.
            dys: (T, B, H), of what each direction of the last of the layers gave; None is zero.
            dh: (layers·D, B, H), in place: of the last states in, of the initial ones out.
            dc: likewise; None for a cell without c.
            dx: of the first of the layers, added to; None for tokens.
            gradients: by layer and direction, added to.
            masks: as in ``forward``.
            draws: likewise.

        """


class LaunchedNetwork:
    """Weights by layer and direction: what `_core.Network` is on a CPU."""

    def __init__(
        self,
        device: Launcher,
        spec: LayerSpec,
        weights: Sequence[Weights],
        *,
        fixed: bool = False,
    ) -> None:
        """Of weights that nobody will write to, where they are `fixed`."""
        n = spec.directions
        self._device = device
        self._spec = spec
        self._layers = [weights[i : i + n] for i in range(0, len(weights), n)]
        self._fixed = fixed

    def packed(self, *, with_input: bool = True, with_backward: bool = False) -> LaunchedNetwork:
        """The same of fixed weights: there is nothing to pack, but no call need copy them."""
        return LaunchedNetwork(self._device, self._spec, [*chain(*self._layers)], fixed=True)

    def direct(self, x: Any, state: Any, lengths: Any, keep: bool) -> None:
        """Nothing: a launch takes longer than to look at the arguments."""
        return

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        h: Array,
        c: Array | None,
        y: Array,
        masks: Sequence[Array],
        keep: bool,
        resets: Array | None = None,
        mask: Array | None = None,
        states_anew: bool = False,
        h_factors: Array | None = None,
        zoneout_h: Sequence[Array] = (),
        zoneout_c: Sequence[Array] = (),
    ) -> Kept | None:
        """See `NetworkKernels`."""
        spec, device = self._spec, self._device
        draws = Draws(() if h_factors is None else list(h_factors), zoneout_h, zoneout_c)
        if resets is not None or mask is not None:
            shape = x.shape[:2]
            stretches = Stretches(device, shape, spec.ways, lengths, resets, mask, states_anew)
            return self._forward_stretches(stretches, x, h, c, y, masks, draws, keep=keep)
        return self._forward(x, lengths, h, c, y, masks, draws, keep=keep)

    def _forward(
        self,
        x: Array,
        lengths: Array | None,
        h: Array,
        c: Array | None,
        y: Array,
        masks: Sequence[Array],
        draws: Draws,
        *,
        keep: bool,
    ) -> LaunchedKept | None:
        """The same for rows that have no more than lengths."""
        spec, device = self._spec, self._device
        steps, batch = x.shape[:2]
        schedule = Schedule(steps, batch, lengths)
        passes: list[Pass] = []
        first = 0
        for count in device.layers_per_launch(spec, schedule, backward=False):
            end = first + count
            into_y = end == spec.layers and not spec.merges
            shape = (steps, batch, spec.unmerged)
            ys = [device.xp.empty(shape, spec.dtype) for _ in range(count - into_y)]
            if into_y:
                ys.append(y)
            kept = device.forward(
                spec if first == 0 else spec.above,
                self._layers[first:end],
                schedule,
                x,
                _states(h, first, end, spec),
                None if c is None else _states(c, first, end, spec),
                ys,
                masks[first : end - 1],
                draws.of(first * spec.directions, end * spec.directions),
                keep=keep,
                fixed=self._fixed,
            )
            for layer, own in enumerate(ys, first):
                if keep:
                    passes.append(Pass(x, own, kept[layer - first]))
                x = own
                if spec.merges:
                    x = merged(device.xp, spec, spec.by_direction(own))
                if layer < len(masks):
                    x = masked(x, masks[layer])
            first = end
        if spec.merges:
            y[...] = x
        return LaunchedKept(device, spec, passes, masks, draws) if keep else None

    def _forward_stretches(
        self,
        stretches: Stretches,
        x: Array,
        h: Array,
        c: Array | None,
        y: Array,
        masks: Sequence[Array],
        draws: Draws,
        *,
        keep: bool,
    ) -> Kept | None:
        """The same for rows that are copied: see `Stretches`."""
        own_x, own_h = stretches.taken(x), stretches.begin(h)
        own_c = None if c is None else stretches.begin(c)
        own_y = self._device.xp.empty((*own_x.shape[:2], y.shape[2]), y.dtype)
        own_masks = [stretches.taken(mask) for mask in masks]
        own = draws.taken(stretches)
        kept = self._forward(
            own_x, stretches.lengths, own_h, own_c, own_y, own_masks, own, keep=keep
        )
        stretches.give(own_y, y)
        stretches.end(own_h, h)
        if c is not None and own_c is not None:
            stretches.end(own_c, c)
        if kept is None:
            return None
        return StretchedKept(self._device, stretches, kept, own_x, own_y)


class LaunchedKept(Kept):
    """What a forward pass kept, layer by layer."""

    def __init__(
        self,
        device: Launcher,
        spec: LayerSpec,
        passes: list[Pass],
        masks: Sequence[Array],
        draws: Draws,
    ) -> None:
        self._device = device
        self._spec = spec
        self._passes = passes
        self._masks = masks
        self._draws = draws

    @property
    def saved(self) -> list[Array | None]:
        """By layer and direction."""
        return [saved for p in self._passes for saved in p.kept.saved]

    @property
    def places(self) -> Array:
        """T·B + b of each live step, rows by falling length."""
        steps, batch, lengths = self._passes[0].kept.schedule
        if lengths is None:
            return np.arange(steps * batch)
        order = np.argsort(-lengths, kind="stable")
        t, place = np.nonzero(np.arange(steps)[:, None] < lengths[order])
        return t * batch + order[place]

    @property
    def between(self) -> list[Array]:
        """See `Kept`."""
        ys = [p.y for p in self._passes]
        return ys if self._spec.merges else ys[:-1]

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
            raise ValueError(
                "state_gradients needs device='cpu', got a layer with device='cuda': rnnkern.save "
                "it and load it with device='cpu'"
            )
        spec, device, masks = self._spec, self._device, self._masks
        passes = list(self._passes)
        passes[0] = passes[0]._replace(x=x)
        if not spec.merges:
            passes[-1] = passes[-1]._replace(y=y)
        n, end = spec.directions, spec.layers
        schedule = passes[0].kept.schedule
        for count in reversed(device.layers_per_launch(spec, schedule, backward=True)):
            first = end - count
            below = dx if first == 0 else device.xp.zeros(passes[first].x.shape, spec.dtype)
            dys = None
            if dy is not None:
                dys = split_gradient(spec, dy, spec.by_direction(passes[end - 1].y))
            device.backward(
                spec if first == 0 else spec.above,
                passes[first:end],
                dys,
                _states(dh, first, end, spec),
                None if dc is None else _states(dc, first, end, spec),
                below,
                gradients[first * n : end * n],
                masks[first : end - 1],
                self._draws.of(first * n, end * n),
            )
            if first > 0:
                assert below is not None
                dy = masked(below, masks[first - 1]) if masks else below
            end = first


def _states(states: Array, first: int, end: int, spec: LayerSpec) -> Array:
    """Those (L·D, B, H) of some layers."""
    return states[first * spec.directions : end * spec.directions]
