# SPDX-License-Identifier: Apache-2.0
"""The way of the data: forward and backward through layers and directions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Device, Gradient, LayerSpec, Pass, Weights
from rnnkern.layers.arguments import Input, Layout, State
from rnnkern.layers.weights import parameter_names


class Network:
    """Stacked layers as they run: what layers, snapshots, streams and tapes have in common.

    Attributes:
        layout: what the layers are, where, and how callers see them.
        spec: the layout's, as is the device.
        weights: by layer and direction, arrays that are fixed for life.
        layers: the kernels' hold of them, by layer.
        names: of the parameters, as the weights' fields in turn; None where there is none.

    """

    __slots__ = ("device", "layers", "layout", "names", "spec", "weights")

    def __init__(
        self, layout: Layout, weights: Sequence[Weights], layers: list[Any] | None = None
    ) -> None:
        """Of these weights; what is written to them later counts."""
        self.layout = layout
        self.spec = layout.spec
        self.device = layout.device
        self.weights = tuple(weights)
        self.layers = self.device.layers(self.spec, self.weights) if layers is None else layers
        self.names = tuple(chain(*parameter_names(self.spec)))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the kernels take hold of the copied weights."""
        return type(self), (self.layout, self.weights)

    def snapshot(self, layout: Layout) -> Network:
        """A twin with a copy of the weights."""
        copies = [Weights.of(None if a is None else a.copy() for a in w) for w in self.weights]
        return Network(layout, copies)

    def packed(self, *, by_token: bool = False) -> Network:
        """The same for many calls, while the weights stay as they are."""
        layers = self.device.packed(self.layers, by_token=by_token)
        return Network(self.layout, self.weights, layers)

    def named_weights(self) -> list[tuple[str, Array | None]]:
        """The weights by the names that errors use."""
        labels = (f"params[{name!r}]" for name in self.names)
        return list(zip(labels, chain(*self.weights), strict=True))


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
    spec, device, x = network.spec, network.device, given.x
    if given.is_empty:
        ys = [*(device.xp.empty(y.shape, spec.dtype) for _ in range(spec.layers - 1)), y]
        return [Pass(a, b, None) for a, b in pairwise((x, *ys))] if keep else []
    schedule = device.schedule(x, given.lengths)
    if spec.layers == 1:
        kept = device.forward(spec, network.layers, schedule, x, h, c, [y], (), keep=keep)
        return [Pass(x, y, kept[0])] if keep else []
    passes: list[Pass] = []
    first = 0
    for count in device.layers_per_call(spec, given.steps, given.batch, backward=False):
        end = first + count
        inner = count - (end == spec.layers)
        ys = [device.xp.empty(y.shape, spec.dtype) for _ in range(inner)]
        if end == spec.layers:
            ys.append(y)
        kept = device.forward(
            spec if first == 0 else spec.above,
            network.layers[first:end],
            schedule,
            x,
            _states(h, first, end, spec),
            None if c is None else _states(c, first, end, spec),
            ys,
            masks[first : end - 1],
            keep=keep,
        )
        for layer in range(first, end):
            own = ys[layer - first]
            if keep:
                passes.append(Pass(x, own, kept[layer - first]))
            x = masked(own, masks[layer]) if layer < len(masks) else own
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
    gradients = [_zeros_like(network, layer) for layer in range(network.spec.layers)]
    if network.spec.layers == 1 and not given.is_empty:
        dx = _zero_dx(network, passes[0])
        network.device.backward(network.spec, passes, dy, dh, dc, dx, gradients, (), traces)
    else:
        dx = _back_through_layers(network, given, passes, masks, dy, dh, dc, gradients, traces)
    named = zip(network.names, chain(*chain(*gradients)), strict=True)
    return dx, {name: a for name, a in named if name is not None and a is not None}


def _back_through_layers(
    network: Network,
    given: Input,
    passes: list[Pass],
    masks: Sequence[Array],
    dy: Array | None,
    dh: Array,
    dc: Array | None,
    gradients: list[list[Gradient]],
    traces: list[list[Array]] | None,
) -> Array | None:
    spec, device = network.spec, network.device
    dx: Array | None = None
    end = spec.layers
    counts = [1] * spec.layers
    if not given.is_empty:
        counts = device.layers_per_call(spec, given.steps, given.batch, backward=True)
    for count in reversed(counts):
        first = end - count
        dx = _zero_dx(network, passes[first])
        if not given.is_empty:
            device.backward(
                spec if first == 0 else spec.above,
                passes[first:end],
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
    return dx


def _zero_dx(network: Network, of: Pass) -> Array | None:
    if of.x.ndim == 2:
        return None
    dx: Array = network.device.xp.zeros(of.x.shape, network.spec.dtype)
    return dx


def _states(states: Array, first: int, end: int, spec: LayerSpec) -> Array:
    """Those (L·D, B, H) of some layers."""
    if end - first == spec.layers:
        return states
    return states[first * spec.directions : end * spec.directions]


def _zeros_like(network: Network, layer: int) -> list[Gradient]:
    """Gradients of a layer's parameters, by direction."""
    zeros, dtype, n = network.device.xp.zeros, network.spec.dtype, network.spec.directions
    return [
        (
            zeros(weight_ih.shape, dtype),
            zeros(weight_hh.shape, dtype),
            None if bias is None else zeros(bias.shape, dtype),
            None if bias_hn is None else zeros(bias_hn.shape, dtype),
        )
        for weight_ih, weight_hh, bias, bias_hn in network.weights[layer * n : (layer + 1) * n]
    ]


def dropout_masks(network: Network, given: Input, dropout: float, key: int) -> list[Array]:
    """For each layer but the last 0 or 1/(1-p) for each element of its y.

    They are counter-based, so that threads have no part in them.
    """
    spec = network.spec
    shape = (*given.x.shape[:2], spec.features)
    return [
        dropout_mask(network.device, shape, spec.dtype, dropout, key, layer)
        for layer in range(spec.layers - 1)
    ]


def dropout_mask(
    device: Device,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    share: float,
    key: int,
    stream: int,
) -> Array:
    """For each number 0 or 1/(1 - share): they follow from key and stream alone."""
    kept = device.random(key, stream, shape) >= np.float32(share)
    mask: Array = kept.astype(dtype) * dtype.type(1.0 / (1.0 - share))
    return mask


def masked(array: Array, mask: Array) -> Array:
    """Their product, whatever ``np.seterr`` says of numbers that vanish or overflow in it."""
    with np.errstate(all="ignore"):
        product: Array = array * mask
    return product
