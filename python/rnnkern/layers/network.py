# SPDX-License-Identifier: Apache-2.0
"""The way of the data: forward and backward through layers and directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Device, Gradient, LayerSpec, Weights
from rnnkern.layers.arguments import Input, Layout, State
from rnnkern.layers.weights import parameter_names


@dataclass(frozen=True)
class Network:
    """Stacked layers as they run: what layers, snapshots, streams and tapes have in common.

    Attributes:
        layout: what the layers are, where, and how callers see them.
        weights: by layer and direction, arrays that are fixed for life.
        layers: the kernels' hold of them, by layer.

    """

    layout: Layout
    weights: tuple[Weights, ...]
    layers: list[Any]

    @classmethod
    def of(cls, layout: Layout, weights: Sequence[Weights]) -> Network:
        """A network of these weights; what is written to them later counts."""
        return cls(layout, tuple(weights), layout.device.layers(layout.spec, weights))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the kernels take hold of the copied weights."""
        return type(self).of, (self.layout, self.weights)

    @property
    def spec(self) -> LayerSpec:
        """What the layers are."""
        return self.layout.spec

    @property
    def device(self) -> Device:
        """Where they are."""
        return self.layout.device

    def snapshot(self, layout: Layout) -> Network:
        """A twin with a copy of the weights."""
        copies = [Weights.of(None if a is None else a.copy() for a in w) for w in self.weights]
        return self.of(layout, copies)

    def packed(self, *, by_token: bool = False) -> Network:
        """The same for many calls, while the weights stay as they are."""
        layers = self.device.packed(self.layers, by_token=by_token)
        return Network(self.layout, self.weights, layers)

    def named_weights(self) -> list[tuple[str, Array | None]]:
        """The weights by the names that errors use."""
        names = (f"params[{name!r}]" for name in chain(*parameter_names(self.spec)))
        return list(zip(names, chain(*self.weights), strict=True))


class Pass(NamedTuple):
    """One layer's run over a sequence: what backward needs of it."""

    x: Array
    y: Array
    kept: Any  # as ``Device.forward`` gave it; None where there was nothing to compute


def run(
    network: Network, x: Any, state: State | None, lengths: Any, out: Array | None
) -> tuple[Array, State]:
    """A plain call: y and the last state as the caller wants them."""
    layout = network.layout
    given = layout.input(x, state, lengths)
    y = layout.output(out, given, () if out is None else network.named_weights())
    h, c = given.h_0, given.c_0
    if state is not None:  # the kernels work in place, and these are the caller's
        h, c = h.copy(), None if c is None else c.copy()
    forward(network, given, h, c, y)
    return layout.as_given(y, given) if out is None else out, layout.state_as_given(h, c, given)


def forward(
    network: Network,
    given: Input,
    h: Array,
    c: Array | None,
    y: Array,
    masks: Sequence[Array] = (),
    *,
    keep: bool = False,
) -> list[Pass]:
    """The input through all layers: h and c change in place, from the initial states; y is written.

    `masks` are factors of what one layer hands to the next, or none. Gives one `Pass` a layer if
    `keep`, else nothing.
    """
    spec, device = network.spec, network.device
    empty = given.is_empty
    schedule = None if empty else device.schedule(given.x, given.lengths)
    passes: list[Pass] = []
    first, source = 0, given.x
    for count in _layers_per_call(network, given, backward=False):
        end = first + count
        inner = count - (end == spec.layers)
        ys = [device.xp.empty(y.shape, spec.dtype) for _ in range(inner)]
        if end == spec.layers:
            ys.append(y)
        kept: Sequence[Any] = (None,) * count
        if not empty:
            kept = device.forward(
                spec if first == 0 else spec.above,
                network.layers[first:end],
                schedule,
                source,
                _states(h, first, end, spec),
                None if c is None else _states(c, first, end, spec),
                ys,
                masks[first : end - 1],
                keep=keep,
            )
        for layer in range(first, end):
            own = ys[layer - first]
            if keep:
                passes.append(Pass(source, own, kept[layer - first]))
            source = masked(own, masks[layer]) if layer < len(masks) else own
        first = end
    return passes


def backward(
    network: Network,
    given: Input,
    passes: list[Pass],
    masks: Sequence[Array],
    dy: Array | None,
    dh: Array,
    dc: Array | None,
    traces: list[list[Array]] | None = None,
) -> tuple[Array | None, dict[str, Array]]:
    """The gradients of ``forward``: ∂L/∂x, None for tokens, and ∂L/∂parameter by name.

    dh and dc change in place, from those of the last states to those of the initial ones; `traces`,
    by layer and direction, are written.
    """
    spec, device = network.spec, network.device
    gradients = [_zeros_like(network, layer) for layer in range(spec.layers)]
    dx: Array | None = None
    end = spec.layers
    for count in reversed(_layers_per_call(network, given, backward=True)):
        first = end - count
        x = passes[first].x
        dx = None if x.ndim == 2 else device.xp.zeros(x.shape, spec.dtype)
        if not given.is_empty:
            of_call = passes[first:end]
            device.backward(
                spec if first == 0 else spec.above,
                [p.kept for p in of_call],
                [p.x for p in of_call],
                [p.y for p in of_call],
                dy,
                _states(dh, first, end, spec),
                None if dc is None else _states(dc, first, end, spec),
                dx,
                gradients[first:end],
                masks[first : end - 1],
                None if traces is None else traces[first:end],
            )
        if first > 0:
            assert dx is not None
            dy = masked(dx, masks[first - 1]) if masks else dx
        end = first
    named = zip(chain(*parameter_names(spec)), chain(*chain(*gradients)), strict=True)
    return dx, {name: a for name, a in named if name is not None and a is not None}


def _states(states: Array, first: int, end: int, spec: LayerSpec) -> Array:
    """Those (L·D, B, H) of some layers."""
    if end - first == spec.layers:
        return states
    return states[first * spec.directions : end * spec.directions]


def _zeros_like(network: Network, layer: int) -> list[Gradient]:
    """Gradients of a layer's parameters, by direction."""
    zeros, n = network.device.xp.zeros, network.spec.directions
    return [
        (
            zeros(w.weight_ih.shape, w.weight_ih.dtype),
            zeros(w.weight_hh.shape, w.weight_hh.dtype),
            None if w.bias is None else zeros(w.bias.shape, w.bias.dtype),
            None if w.bias_hn is None else zeros(w.bias_hn.shape, w.bias_hn.dtype),
        )
        for w in network.weights[layer * n : (layer + 1) * n]
    ]


def _layers_per_call(network: Network, given: Input, *, backward: bool) -> list[int]:
    """How many layers each call of the device's takes, from the first up."""
    spec = network.spec
    if spec.layers == 1 or given.is_empty:
        return [1] * spec.layers
    return network.device.layers_per_call(spec, given.steps, given.batch, backward=backward)


def dropout_masks(network: Network, given: Input, dropout: float, key: int) -> list[Array]:
    """For each layer but the last 0 or 1/(1-p) for each element of its y.

    They are counter-based, so that threads have no part in them.
    """
    spec, device = network.spec, network.device
    shape = (*given.x.shape[:2], spec.features)
    factor = spec.dtype.type(1.0 / (1.0 - dropout))
    masks = []
    for layer in range(spec.layers - 1):
        kept = device.random(key, layer, shape) >= np.float32(dropout)
        mask: Array = kept.astype(spec.dtype) * factor
        masks.append(mask)
    return masks


def masked(array: Array, mask: Array) -> Array:
    """Their product, whatever ``np.seterr`` says of numbers that vanish or overflow in it."""
    with np.errstate(all="ignore"):
        product: Array = array * mask
    return product
