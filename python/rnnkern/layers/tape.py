# SPDX-License-Identifier: Apache-2.0
"""What a forward pass keeps, and the backward pass over it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, overload

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Arguments

if TYPE_CHECKING:
    from rnnkern.layers.base import Recurrent

State = Union[Array, "tuple[Array, Array]"]

_KINDS = ("weight_ih", "weight_hh", "bias", "bias_hn")  # of a layer's parameters


@dataclass(frozen=True)
class Weights:
    """One layer's parameters in one direction."""

    weight_ih: Array
    weight_hh: Array
    bias: Array | None
    bias_hn: Array | None


@dataclass(frozen=True)
class Pass:
    """What backward needs of one layer in one direction."""

    weights: Any  # as ``Device.forward`` kept them
    x: Array
    h_0: Array
    c_0: Array | None
    y: Array
    saved: Array | None
    cells: Array | None


@dataclass(frozen=True)
class Input:
    """A call's checked arguments, time first and batched."""

    x: Array
    h_0: Array
    c_0: Array | None
    lengths: Array | None
    unbatched: bool

    @property
    def steps(self) -> int:
        """T."""
        return int(self.x.shape[0])

    @property
    def batch(self) -> int:
        """B."""
        return int(self.x.shape[1])

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return self.x.size == 0


def masked(array: Array, mask: Array) -> Array:
    """Their product, whatever ``np.seterr`` says of numbers that vanish or overflow in it."""
    with np.errstate(all="ignore"):
        product: Array = array * mask
    return product


@dataclass(frozen=True)
class StateGradients:
    """∂L/∂(what a layer computes at each step); every array is shaped as y and 0 past a length.

    Attributes:
        h: ∂L/∂h_t by every path, through y_t and through all later steps.
        c: ∂L/∂c_t likewise; None for a cell without c.
        gates: for each gate by name, ∂L/∂a_t, where a_t is what its σ or tanh is applied to.

    """

    h: Array
    c: Array | None
    gates: dict[str, Array]


class Tape:
    """What one ``forward`` kept. ``backward`` may be called any number of times.

    It can be copied, but not pickled: its weights are packed for the processor that it is on.
    """

    def __init__(
        self, layer: Recurrent, given: Input, passes: list[Pass], masks: list[Array]
    ) -> None:
        self._layer = layer
        self._given = given
        self._passes = passes
        self._masks = masks

    def __copy__(self) -> Tape:
        return Tape(self._layer, self._given, self._passes, self._masks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tape:
        # Neither the layer's facts nor the weights that were kept ever change.
        for never_changed in (self._layer, *(kept.weights for kept in self._passes)):
            memo[id(never_changed)] = never_changed
        return Tape(*deepcopy((self._layer, self._given, self._passes, self._masks), memo))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Tape cannot be pickled, since its weights are packed for this processor: pickle the "
            "layer and x, and call forward again"
        )

    def gates(self) -> list[dict[str, Array]]:
        """What each gate gave at each step: for every layer, by the gate's name, shaped as y.

        The values are those after σ or tanh, and 0 past a row's length.
        """
        names = self._layer.gates
        values = [
            kept.y[None] if kept.saved is None else self._unpacked(kept.saved)[: len(names)]
            for kept in self._passes
        ]
        return [dict(zip(names, self._join(v), strict=True)) for v in self._by_layer(values)]

    @overload
    def backward(
        self, dy: Any = ..., dstate: State | None = ..., *, state_gradients: Literal[False] = ...
    ) -> tuple[Array | None, State, dict[str, Array]]: ...

    @overload
    def backward(
        self, dy: Any = ..., dstate: State | None = ..., *, state_gradients: Literal[True]
    ) -> tuple[Array | None, State, dict[str, Array], list[StateGradients]]: ...

    def backward(
        self, dy: Any = None, dstate: State | None = None, *, state_gradients: bool = False
    ) -> tuple[Any, ...]:
        """Gradients of a loss L by back-propagation through time.

        Args:
            dy: ∂L/∂y, shaped as y; None is zero.
            dstate: ∂L/∂(last state), shaped as the state; None, also as one of a pair, is zero.
            state_gradients: whether to return the gradients of every step's state and gates too;
                on ``device="cpu"`` alone.

        Returns:
            ∂L/∂x (None for tokens), ∂L/∂(initial state), and ∂L/∂parameter by name; with
            `state_gradients` a fourth item, a list with the `StateGradients` of each layer.

        Raises:
            TypeError, ValueError: dy or dstate has the wrong dtype or shape.

        """
        layer, given, xp = self._layer, self._given, self._layer._device.xp
        dh, dc = layer._check_state("dstate", dstate, given.batch, given.unbatched)
        if dstate is not None:  # the kernels work in place, and these are the caller's
            dh, dc = dh.copy(), None if dc is None else dc.copy()
        upstream = self._check_dy(dy)
        grads: dict[str, Array] = {}
        traces = [self._new_trace() if state_gradients else None for _ in self._passes]
        dx: Array | None = None
        end = len(self._passes)
        for count in reversed(layer._layers_per_call(given, backward=True)):
            first = end - count * layer.num_directions
            x = self._passes[first].x
            dx = None if x.ndim == 2 else xp.zeros(x.shape, layer.dtype)
            calls = []
            for index in range(first, end):
                lowest = index - first < layer.num_directions
                highest = end - index <= layer.num_directions
                calls.append(self._arguments(index, dh, dc, traces[index]))
                calls[-1]["dx"] = dx if lowest else None
                calls[-1]["dy"] = None
                if highest and upstream is not None:
                    calls[-1]["dy"] = layer._direction(upstream, index % layer.num_directions)
                elif self._masks and not highest:
                    calls[-1]["mask"] = self._masks[index]
                for kind, parameter in zip(_KINDS, layer._parameters[index], strict=True):
                    if parameter is not None:
                        grads[parameter.name] = calls[-1]["d" + kind]
            if not given.is_empty:
                layer._device.backward(
                    layer._cell, calls, given.lengths, layer.compute, stacked=count > 1
                )
            if first > 0:
                assert dx is not None
                below = first // layer.num_directions - 1
                upstream = masked(dx, self._masks[below]) if self._masks else dx
            end = first
        ordered = {name: grads[name] for name in layer.params}
        dstate_0 = (dh, dc) if dc is not None else dh
        result = (
            None if dx is None else layer._as_given(dx, given),
            layer._state_as_given(dstate_0, given),
            ordered,
        )
        if not state_gradients:
            return result
        traced = [self._unpacked(trace) for trace in traces if trace is not None]
        return (*result, [self._as_state_gradients(t) for t in self._by_layer(traced)])

    def _arguments(self, index: int, dh: Array, dc: Array | None, trace: Array | None) -> Arguments:
        """The kernel's, for one layer in one direction; the gradients of parameters start at zero.

        Without dx, dy and mask.
        """
        layer, kept = self._layer, self._passes[index]
        direction = index % layer.num_directions
        gradients = {
            f"d{kind}": parameter and layer._device.xp.zeros(parameter.shape, layer.dtype)
            for kind, parameter in zip(_KINDS, layer._parameters[index], strict=True)
        }
        return {
            "x": kept.x,
            "h_0": kept.h_0,
            "c_0": kept.c_0,
            "weights": kept.weights,
            "reverse": direction == 1,
            "y": kept.y,
            "saved": kept.saved,
            "cells": kept.cells,
            "dh": dh[index],
            "dc": None if dc is None else dc[index],
            **gradients,
            "state_gradients": trace,
        }

    def _new_trace(self) -> Array:
        """Room for what the kernel tells of one pass: (live steps, states + gates, H)."""
        layer, given = self._layer, self._given
        live = given.steps * given.batch if given.lengths is None else int(given.lengths.sum())
        parts = 1 + layer._has_cell_state + len(layer.gates)
        trace: Array = layer._device.xp.empty((live, parts, layer.hidden_size), layer.dtype)
        return trace

    def _as_state_gradients(self, traces: list[Array]) -> StateGradients:
        """From one layer's directions, (states + gates, T, B, H) each."""
        layer, parts = self._layer, self._join(traces)
        states = 1 + layer._has_cell_state
        return StateGradients(
            h=parts[0],
            c=parts[1] if layer._has_cell_state else None,
            gates=dict(zip(layer.gates, parts[states:], strict=True)),
        )

    def _by_layer(self, arrays: list[Array]) -> list[list[Array]]:
        """One array a pass, grouped."""
        n = self._layer.num_directions
        return [arrays[i : i + n] for i in range(0, len(arrays), n)]

    def _join(self, directions: list[Array]) -> list[Array]:
        """(K, T, B, H) of every direction as K arrays in the caller's order of axes."""
        joined = self._layer._device.xp.concatenate(directions, axis=-1)
        return [self._layer._as_given(array, self._given) for array in joined]

    def _unpacked(self, packed: Array) -> Array:
        """(live steps, K, H) in the kernels' order, rows by falling length, as (K, T, B, H)."""
        steps, batch, lengths = self._given.steps, self._given.batch, self._given.lengths
        device = self._layer._device
        if lengths is None:
            lengths = np.full(batch, steps)
        order = np.argsort(-lengths, kind="stable")
        step, place = np.nonzero(np.arange(steps)[:, None] < lengths[order])
        whole = device.xp.zeros((steps * batch, *packed.shape[1:]), packed.dtype)
        whole[device.put(step * batch + order[place])] = packed
        by_step = whole.reshape(steps, batch, *packed.shape[1:])
        unpacked: Array = device.xp.moveaxis(by_step, 2, 0)
        return unpacked

    def _check_dy(self, dy: Any) -> Array | None:
        if dy is None:
            return None
        layer, given = self._layer, self._given
        shape: tuple[int, ...] = (given.steps, given.batch, layer._features)
        if given.unbatched:
            shape = (given.steps, layer._features)
        elif layer.batch_first:
            shape = (given.batch, given.steps, layer._features)
        array = layer._device.shaped("dy", dy, shape, layer.dtype)
        if given.unbatched:
            array = array[:, None]
        elif layer.batch_first:
            array = array.swapaxes(0, 1)
        return layer._device.last_axis_contiguous(array)
