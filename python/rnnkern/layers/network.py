# SPDX-License-Identifier: Apache-2.0
"""The way of the data through a network: what a call, a snapshot, a stream and a tape share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Device, Kept, NetworkKernels, Weights
from rnnkern.layers.arguments import Input, Layout, State
from rnnkern.layers.marks import NO_MARKS, Anew, Asked, Repeated
from rnnkern.layers.weights import parameter_names

States: TypeAlias = "tuple[Array, Array | None]"  # h, and c where the cell has one


class Masks(NamedTuple):
    """What a call in training is given of random numbers.

    Attributes:
        between: factors (T, B, D·H) of what each layer but the last hands to the next, or none.
        h_factors: (L·D, B, P) of h as recurrent products take it, at all steps; or None.
        zoneout_h: by layer and direction (T, B, P) bool, whether h keeps its value there; or none.
        zoneout_c: likewise (T, B, H), of c.

    """

    between: Sequence[Array] = ()
    h_factors: Array | None = None
    zoneout_h: Sequence[Array] = ()
    zoneout_c: Sequence[Array] = ()


NO_MASKS = Masks()


class Network:
    """Stacked layers as they run: what layers, snapshots, streams and tapes have in common.

    Attributes:
        layout: what the layers are, where, and how callers see them.
        spec: the layout's, as is the device.
        weights: by layer and direction, arrays that are fixed for life.
        kernels: the device's hold of them.
        names: of the parameters, as the weights' fields in turn; None where there is none.
        present: those that there are.

    """

    __slots__ = ("device", "kernels", "layout", "names", "present", "spec", "weights")

    def __init__(
        self, layout: Layout, weights: Sequence[Weights], kernels: NetworkKernels | None = None
    ) -> None:
        """Of these weights; what is written to them later counts."""
        self.layout = layout
        self.spec = layout.spec
        self.device = layout.device
        self.weights = tuple(weights)
        if kernels is None:
            kernels = self.device.network(self.spec, self.weights, batch_first=layout.batch_first)
        self.kernels = kernels
        self.names = tuple(chain(*parameter_names(self.spec)))
        self.present = tuple(name for name in self.names if name is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the kernels take hold of the copied weights."""
        return type(self), (self.layout, self.weights)

    def snapshot(self, layout: Layout) -> Network:
        """A twin with a copy of the weights."""
        copies = [Weights.of(None if a is None else a.copy() for a in w) for w in self.weights]
        return Network(layout, copies)

    def packed(self, *, by_token: bool = False, with_backward: bool = False) -> Network:
        """The same for many calls, while the weights stay as they are; see `NetworkKernels`."""
        kernels = self.kernels.packed(with_input=not by_token, with_backward=with_backward)
        return Network(self.layout, self.weights, kernels)

    def named_weights(self) -> list[tuple[str, Array | None]]:
        """The weights by the names that errors use."""
        labels = (f"params[{name!r}]" for name in self.names)
        return list(zip(labels, chain(*self.weights), strict=True))


def run(
    network: Network,
    x: Any,
    state: State | None,
    lengths: Any,
    out: Array | None,
    asked: Asked | None = None,
) -> tuple[Array, State]:
    """A plain call: y and the last state as the caller wants them."""
    if out is None and asked is None:
        done: tuple[Array, State] | None = network.kernels.direct(x, state, lengths, False)
        if done is not None:  # else something has to be converted, or is wrong
            return done
    layout = network.layout
    given, h, c = layout.input(x, state, lengths, asked)
    y = layout.output(out, given, h, c, () if out is None else network.named_weights())
    if state is not None:  # the kernels work in place, and these are the caller's
        h, c = h.copy(), None if c is None else c.copy()
    forward(network, given, h, c, y)
    repeat_outputs(network, given, y)
    return layout.as_given(y, given) if out is None else out, layout.state_as_given(h, c, given)


def forward(
    network: Network,
    given: Input,
    h: Array,
    c: Array | None,
    y: Array,
    masks: Masks = NO_MASKS,
    *,
    keep: bool = False,
) -> Kept | None:
    """The input through all layers: h and c change in place, from the initial states; y is written.

    With `keep` it gives what a backward pass needs, or None where there was nothing to compute.
    """
    if given.is_empty:
        return None
    marks, anew = given.marks or NO_MARKS, _anew(given)
    states = (h, c) if anew is None else _joined(network.device, (h, c), (anew.h, anew.c))
    kept = network.kernels.forward(
        given.x,
        given.lengths,
        *states,
        y,
        masks.between,
        keep,
        marks.resets,
        marks.mask,
        anew is not None,
        masks.h_factors,
        masks.zoneout_h,
        masks.zoneout_c,
    )
    if anew is not None:
        for own, both in _pairs((h, c), states):
            own[...] = both[:, : given.batch]
    return kept


def _anew(given: Input) -> Anew | None:
    """What the rows of a call begin anew with, where some do and it is not zero."""
    return None if given.marks is None or given.marks.resets is None else given.marks.anew


def _joined(device: Device, states: States, others: States) -> States:
    """As kernels take them: (L·D, 2·B, ·), the others behind the rows' own."""
    h, *c = (device.xp.concatenate(pair, axis=1) for pair in _pairs(states, others))
    return h, c[0] if c else None


def _pairs(states: States, others: States) -> Iterator[tuple[Array, Array]]:
    """Those of h, and of c where there is one."""
    for own, other in zip(states, others, strict=True):
        if own is not None and other is not None:
            yield own, other


def repeated(network: Network, given: Input) -> Repeated | None:
    """The last outputs at the steps that a call skips, where they are wanted there."""
    marks = given.marks
    if marks is None or marks.mask is None or not marks.repeats or given.is_empty:
        return None
    return Repeated(network.device, marks.mask, given.lengths, network.spec.ways)


def repeat_outputs(network: Network, given: Input, y: Array) -> None:
    """Write them into y."""
    repeats = repeated(network, given)
    if repeats is not None:
        repeats.fill(y)


def backward(
    network: Network,
    given: Input,
    y: Array,
    kept: Kept | None,
    dy: Array | None,
    dh: Array,
    dc: Array | None,
    traces: list[Array] | None = None,
    *,
    with_dx: bool = True,
    danew: States | None = None,
) -> tuple[Array | None, dict[str, Array]]:
    """The gradients of ``forward``: ∂L/∂x, None for tokens, and ∂L/∂parameter by name.

    dh and dc change in place, from those of the last states to those of the initial ones; `traces`,
    by layer and direction, are written. The gradient in what rows begin anew with is added to
    `danew`, or to those of the initial states, which it then is.
    """
    zeros, dtype = network.device.xp.zeros, network.spec.dtype
    gradients = [zeros_like(network, weights) for weights in network.weights]
    dx = None if given.by_token or not with_dx else zeros(given.x.shape, dtype)
    if kept is not None:
        anew, states = _anew(given), (dh, dc)
        if anew is not None:
            fresh = (zeros(dh.shape, dtype), None if dc is None else zeros(dc.shape, dtype))
            states = _joined(network.device, states, fresh)
        kept.backward(given.x, y, dy, *states, dx, gradients, traces)
        if anew is not None:
            for own, both in _pairs((dh, dc), states):
                own[...] = both[:, : given.batch]
            for own, both in _pairs((dh, dc) if danew is None else danew, states):
                own += both[:, given.batch :]
    return dx, by_name(network, (a for a in chain(*gradients) if a is not None))


def by_name(network: Network, arrays: Iterable[Array]) -> dict[str, Array]:
    """One for each parameter, by its name."""
    return dict(zip(network.present, arrays, strict=True))


def zeros_like(network: Network, weights: Weights) -> Weights:
    """Gradients of the parameters of a layer and direction."""
    zeros, dtype = network.device.xp.zeros, network.spec.dtype
    return Weights.of(None if array is None else zeros(array.shape, dtype) for array in weights)


def dropout_mask(
    device: Device,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    share: float,
    key: int,
    stream: int,
    first: int = 0,
) -> Array:
    """For each number 0 or 1/(1 - share): they follow from key and stream alone.

    `first` is the place of the first of them among those that there are.
    """
    kept = device.random(key, stream, shape, first) >= np.float32(share)
    mask: Array = kept.astype(dtype) * dtype.type(1.0 / (1.0 - share))
    return mask
