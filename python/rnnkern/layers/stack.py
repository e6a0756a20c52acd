# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers of different kinds on one another, which behave as one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, boolean, explains_options, finite_float, host_array
from rnnkern.devices import get_device, masked
from rnnkern.layers.arguments import State, check_dropout_key, split_key, states_of
from rnnkern.layers.base import Recurrent, layout_of
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.frozen import Frozen
from rnnkern.layers.gradients import Gradients, StateGradients
from rnnkern.layers.network import dropout_mask
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.stack_stream import StackStream
from rnnkern.layers.tape import Tape

StackState: TypeAlias = "Sequence[State | None]"  # one for each layer, from the first up


class Stack(Fixed):
    """Recurrent layers on one another: what one gives is what the next is given.

    The layers may be of different cells, sizes and directions, each perhaps of several stacked
    layers itself. A stack is called, trained, streamed, frozen and saved as one layer is; what
    differs is the state: a tuple of the layers' states, from the first up, each as its layer has
    it.

    Args:
        layers: the layers, from the first up; each takes as many inputs as the one below it has
            outputs (H, or 2·H of a bidirectional one), and all have the same dtype, device and
            ``batch_first``. The stack has the layers themselves, not copies.
        residual: whether a layer's input is added to its output: True for all but the first, whose
            input is x, or a bool for each. Inputs and outputs must then be as many.
        dropout: share of each layer's input, but the first one's, that ``forward`` sets to zero.
            The residual connection goes round it.

    Attributes:
        params: the layers' own arrays, by the layer's place and their name there, as
            ``0.weight_ih_l0`` (see `Parameters`).
        input_size: of the first layer.
        hidden_size: of the last layer, as ``num_directions`` and ``output_size`` are.

    Raises:
        TypeError: something is no recurrent layer, or an argument is of the wrong type.
        ValueError: the layers do not fit on one another; the message says which and why.

    Example:
        >>> stack = rk.Stack([rk.GRU(8, 16, bidirectional=True), rk.LSTM(32, 32)],
        ...                  residual=True, dropout=0.1)
        >>> x = np.ones((5, 3, 8), np.float32)
        >>> y, (h, (h_top, c_top)) = stack(x)
        >>> y, state, tape = stack.forward(x, dropout_key=0)
        >>> dx, dstate, grads = tape.backward(np.ones_like(y))

    """

    @explains_options
    def __init__(
        self,
        layers: Iterable[Recurrent],
        *,
        residual: bool | Sequence[bool] = False,
        dropout: float = 0.0,
    ) -> None:
        self.layers = tuple(layers)
        _check_layers(self.layers)
        bottom, top = self.layers[0], self.layers[-1]
        self.residual = _residual(self.layers, residual)
        self.dropout = finite_float("dropout", dropout, minimum=0.0)
        if self.dropout >= 1.0:
            raise ValueError(f"dropout must be below 1, got {dropout!r}")
        self.input_size, self.hidden_size = bottom.input_size, top.hidden_size
        self.num_directions, self.output_size = top.num_directions, top.output_size
        self.batch_first, self.dtype = bottom.batch_first, bottom.dtype
        self.bidirectional = any(layer.bidirectional for layer in self.layers)
        self.device = bottom.device
        self._device = get_device(self.device)
        named = enumerate(self.layers)
        self.params = Parameters.joined({str(k): layer.params for k, layer in named})
        self._settle()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "layers": list(self.layers),
            "residual": list(self.residual) if any(self.residual) else False,
            "dropout": self.dropout,
        }

    def __call__(
        self,
        x: Any,
        state: StackState | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
    ) -> tuple[Array, tuple[State, ...]]:
        """Run without keeping anything for a backward pass; there is no dropout.

        Args:
            x: as the first layer takes it.
            state: the initial state of each layer, in a list or tuple; None, also as one of them,
                is zero.
            lengths: as a layer takes them.
            out: where y goes, as of a layer.

        Returns:
            y as the last layer gives it, and a tuple of the layers' last states.

        Raises:
            TypeError, ValueError: as the layers raise.

        """
        return self._run(self.layers, x, state, lengths, out)

    def forward(
        self,
        x: Any,
        state: StackState | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
        dropout_key: SupportsIndex | None = None,
    ) -> tuple[Array, tuple[State, ...], StackTape]:
        """Run and keep what a backward pass needs; arguments and results as in a plain call.

        Args:
            dropout_key: an integer in 0..2**64-1 that picks the dropout masks, of the stack and of
                its layers, needed where there are some. Give every step of training its own.

        Returns:
            y, the last states and a tape. x, y and the initial states are kept as they are: leave
            them unchanged until ``tape.backward``.

        """
        key = None if dropout_key is None else check_dropout_key(dropout_key, 64)
        if key is None and self.dropout > 0.0 and len(self.layers) > 1:
            raise ValueError(
                f"dropout_key must be given when dropout is {self.dropout:g}, got None"
            )
        keys = split_key(key, 2 * len(self.layers))
        states, tapes, masks = states_of("state", state, len(self.layers)), [], []
        y = self._device.array("x", x)
        self._check_overlap(out, y, states)
        last: list[State] = []
        for k, layer in enumerate(self.layers):
            given, mask, mask_key = y, None, keys[2 * k]
            if k > 0 and self.dropout > 0.0:
                assert mask_key is not None
                mask = dropout_mask(
                    self._device, given.shape, self.dtype, self.dropout, mask_key, 0
                )
            y, own, tape = layer.forward(
                given if mask is None else masked(given, mask),
                states[k],
                lengths,
                out=self._out_of(k, out),
                dropout_key=keys[2 * k + 1],
            )
            y = self._joined(k, y, given, lengths, out)
            last.append(own)
            tapes.append(tape)
            masks.append(mask)
        return y, tuple(last), StackTape(self, tapes, masks, y, lengths)

    def last_output(self, y: Array, state: Sequence[State], lengths: Any = None) -> Array:
        """The last output of every row, of what a call gave: each direction's where it ends.

        It is what ``dlast`` of a tape's ``backward`` is the gradient in: as `Recurrent` has it.

        Args:
            y: as the call gave it.
            state: the last states, likewise.
            lengths: as the call was given them.

        Returns:
            (B, output_size), or (output_size,) without a batch.

        """
        h = self.layers[-1].last_output(y, state[-1], lengths)
        if not self.residual[-1]:
            return h
        steps = self._steps_axis(y)
        ends = self._ends(y, lengths)
        some = ends.any(axis=steps)  # rows without steps have given nothing
        zero = self.dtype.type(0)
        at_end = self._device.xp.where(self._device.put(ends), y, zero).sum(axis=steps)
        last: Array = self._device.xp.where(self._device.put(some), at_end, h)
        return last

    def freeze(self) -> FrozenStack:
        """A packed snapshot of the parameters as they are now, to be called as the stack is."""
        return FrozenStack(self, [layer.freeze() for layer in self.layers])

    def stream(self, batch: int = 1, *, weights: str | None = None) -> StackStream:
        """A stepper for sequences that arrive piece by piece, as a layer's `Stream`.

        Args:
            batch: rows, each a sequence of its own.
            weights: "bfloat16" or None, as of a layer.

        Raises:
            ValueError: a layer is bidirectional, so that its output needs the whole sequence; or
                bfloat16 is asked of float64 layers.

        """
        streams = [layer.stream(batch, weights=weights) for layer in self.layers]
        return StackStream(streams, self.residual, self._device)

    def plan(self, steps: int, batch: int, *, training: bool = False) -> list[dict[str, Any]]:
        """How each layer's call of that size is computed, and why: as `Recurrent` has it."""
        return [layer.plan(steps, batch, training=training) for layer in self.layers]

    # -- what calls, tapes and snapshots share -------------------------------------------------

    def _run(
        self,
        layers: Sequence[Callable[..., Any]],
        x: Any,
        state: StackState | None,
        lengths: Any,
        out: Array | None,
    ) -> tuple[Array, tuple[State, ...]]:
        """A plain call of the layers, or of their snapshots."""
        states = states_of("state", state, len(layers))
        y = self._device.array("x", x)
        self._check_overlap(out, y, states)
        last = []
        for k, layer in enumerate(layers):
            given = y
            y, own = layer(given, states[k], lengths, out=self._out_of(k, out))
            y = self._joined(k, y, given, lengths, out)
            last.append(own)
        return y, tuple(last)

    def _out_of(self, k: int, out: Array | None) -> Array | None:
        """Where a layer writes its y: to `out`, if what it gives is what the stack gives."""
        return out if k == len(self.layers) - 1 and not self.residual[k] else None

    def _joined(self, k: int, y: Array, given: Array, lengths: Any, out: Array | None) -> Array:
        """A layer's y, and its input added where that is wanted."""
        if not self.residual[k]:
            return y
        if given.dtype != self.dtype:
            raise TypeError(
                f"x must be {self.dtype.name}, since residual adds it to what the first layer "
                f"gives, got tokens of {given.dtype.name}"
            )
        if k == 0 and lengths is not None:  # further up it is 0 past a row's length
            given = self._within(given, lengths)
        with np.errstate(all="ignore"):
            if out is None or k < len(self.layers) - 1:
                total: Array = y + given
                return total
            layout_of(self.layers[k]).check_out(out, y.shape)
            np.add(y, given, out=out)
        return out

    def _check_overlap(self, out: Array | None, x: Array, states: list[State | None]) -> None:
        """Refuse an `out` in memory that the call reads; layers refuse what else is wrong."""
        device = self._device
        if not isinstance(out, device.xp.ndarray):
            return
        of_states = [
            device.array("state", part)
            for state in states
            for part in (state if isinstance(state, (tuple, list)) else (state,))
            if part is not None
        ]
        params = ((f"params[{name!r}]", p) for name, p in self.params.items())
        for name, array in (("x", x), *(("state", s) for s in of_states), *params):
            if device.overlap(out, array):
                raise ValueError(f"out must not share memory with {name}, got arrays that overlap")

    def _steps_axis(self, y: Array) -> int:
        return 1 if self.batch_first and y.ndim == 3 else 0

    def _within(self, array: Array, lengths: Any) -> Array:
        """An array shaped as y that is 0 past each row's length."""
        live = self._laid_out(array, lambda t, ends: (t < ends)[..., None], lengths)
        within: Array = self._device.xp.where(self._device.put(live), array, self.dtype.type(0))
        return within

    def _ends(self, y: Array, lengths: Any) -> NDArray[np.bool_]:
        """Where in y the last outputs are: of the second direction at the first step."""

        def places(t: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
            of_directions = (t == ends - 1, (t == 0) & (ends > 0))[: self.num_directions]
            return np.repeat(np.stack(of_directions, axis=-1), self.hidden_size, axis=-1)

        return self._laid_out(y, places, lengths)

    def _laid_out(
        self, y: Array, of: Callable[..., NDArray[np.bool_]], lengths: Any
    ) -> NDArray[np.bool_]:
        """What `of` says (T, B, ·) of steps (T, 1) and lengths (B,), with the axes of y."""
        steps_axis = self._steps_axis(y)
        steps, batch = y.shape[steps_axis], 1 if y.ndim == 2 else y.shape[1 - steps_axis]
        ends = np.full(batch, steps) if lengths is None else host_array("lengths", lengths)
        mask = of(np.arange(steps)[:, None], ends)
        return mask[:, 0] if y.ndim == 2 else np.moveaxis(mask, 0, steps_axis)


class StackTape:
    """What one ``Stack.forward`` kept. ``backward`` may be called any number of times.

    Example:
        >>> stack = rk.Stack([rk.GRU(3, 4), rk.LSTM(4, 4)])
        >>> y, state, tape = stack.forward(np.ones((5, 2, 3), np.float32))
        >>> dx, (dh, (dh_top, dc_top)), grads = tape.backward(dlast=np.ones((2, 4), np.float32))

    """

    def __init__(
        self,
        stack: Stack,
        tapes: list[Tape],
        masks: list[Array | None],
        y: Array,
        lengths: Any,
    ) -> None:
        self._stack = stack
        self._tapes = tapes
        self._masks = masks
        self._y = y
        self._lengths = lengths

    def __repr__(self) -> str:
        return f"StackTape({self._tapes!r})"

    def gates(self) -> list[dict[str, Array]]:
        """What each gate gave at each step, as a layer's tape has it: of all layers in turn."""
        return [gates for tape in self._tapes for gates in tape.gates()]

    def backward(
        self,
        dy: Any = None,
        dstate: StackState | None = None,
        *,
        dlast: Any = None,
        state_gradients: bool = False,
    ) -> Gradients:
        """Gradients of a loss L by back-propagation through time.

        Args:
            dy: ∂L/∂y, shaped as y; None is zero.
            dstate: ∂L/∂(last states), a list or tuple with that of each layer; None, also as one of
                them, is zero.
            dlast: ∂L/∂(last output), shaped as ``last_output`` gives it; None is zero.
            state_gradients: whether to return those of every step's state and gates, as a layer's
                tape does.

        Returns:
            `Gradients`, which unpacks to ∂L/∂x (None for tokens), a tuple of ∂L/∂(initial state) of
            each layer, and ∂L/∂parameter by name; with `state_gradients` a fourth item, a list with
            the `StateGradients` of all layers in turn.

        Raises:
            TypeError, ValueError: dy, dstate or dlast has the wrong dtype or shape.

        """
        stack, device, y, lengths = self._stack, self._stack._device, self._y, self._lengths
        dstates = states_of("dstate", dstate, len(self._tapes))
        if dy is not None:
            dy = device.shaped("dy", dy, y.shape, stack.dtype)
            if any(stack.residual) and lengths is not None:
                dy = stack._within(dy, lengths)
        first: list[State] = []
        grads: dict[int, dict[str, Array]] = {}
        steps: list[StateGradients] = []
        for k in reversed(range(len(self._tapes))):
            own = self._tapes[k].backward(
                dy, dstates[k], dlast=dlast, state_gradients=state_gradients
            )
            mask, dx = self._masks[k], own.x
            if mask is not None and dx is not None:
                dx = masked(dx, mask)
            if stack.residual[k]:
                assert dx is not None
                dx = self._beside(dx, dy, dlast)
            dy, dlast = dx, None
            first.insert(0, own.state)
            steps = (own.steps or []) + steps
            grads[k] = own.params
        return Gradients(
            params={f"{k}.{name}": a for k in sorted(grads) for name, a in grads[k].items()},
            x=dy,
            state=tuple(first),
            steps=steps if state_gradients else None,
        )

    def _beside(self, dx: Array, dy: Array | None, dlast: Any) -> Array:
        """∂L/∂(a layer's input) by way of the layer, and what goes round it."""
        stack, device = self._stack, self._stack._device
        with np.errstate(all="ignore"):
            if dy is not None:
                dx = dx + dy
            if dlast is not None:
                spread = device.array("dlast", dlast)
                spread = spread[:, None] if stack._steps_axis(self._y) else spread[None]
                ends = device.put(stack._ends(self._y, self._lengths))
                dx = dx + device.xp.where(ends, spread, stack.dtype.type(0))
        return dx


class FrozenStack:
    """A packed snapshot of a `Stack`; it may be called from several threads at once.

    Example:
        >>> frozen = rk.Stack([rk.GRU(3, 4), rk.LSTM(4, 4)]).freeze()
        >>> y, (h, (h_top, c_top)) = frozen(np.ones((5, 2, 3), np.float32))

    """

    def __init__(self, stack: Stack, layers: list[Frozen]) -> None:
        """Of snapshots of the stack's layers."""
        self._stack = stack
        self._layers = layers

    def __call__(
        self,
        x: Any,
        state: StackState | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
    ) -> tuple[Array, tuple[State, ...]]:
        """As a plain call of the stack: the same arguments, results and errors."""
        return self._stack._run(self._layers, x, state, lengths, out)

    def __repr__(self) -> str:
        return f"FrozenStack({self._stack!r})"


def _check_layers(layers: tuple[Recurrent, ...]) -> None:
    """Refuse layers that do not fit on one another."""
    if not layers:
        raise ValueError("layers must be at least one, got none")
    for k, layer in enumerate(layers):
        if not isinstance(layer, Recurrent):
            raise TypeError(f"layers[{k}] must be a recurrent layer, got {type(layer).__name__}")
        if any(layer is other for other in layers[:k]):
            raise ValueError(f"layers[{k}] must be another layer than those below it")
        for fact in ("dtype", "device", "batch_first"):
            own, wanted = getattr(layer, fact), getattr(layers[0], fact)
            if own != wanted:
                raise ValueError(
                    f"layers[{k}] must have {fact}={wanted} as the first layer, got {own}"
                )
        if k > 0 and layer.input_size != layers[k - 1].output_size:
            raise ValueError(
                f"layers[{k}] must have input_size={layers[k - 1].output_size}, for "
                f"layers[{k - 1}] gives so many features, got {layer.input_size}"
            )


def _residual(layers: tuple[Recurrent, ...], residual: bool | Sequence[bool]) -> tuple[bool, ...]:
    """Whether each layer's input is added to its output."""
    if isinstance(residual, (list, tuple)):
        around = tuple(boolean(f"residual[{k}]", own) for k, own in enumerate(residual))
        if len(around) != len(layers):
            raise ValueError(
                f"residual must be a bool or one for each of the {len(layers)} layers, "
                f"got {len(around)}"
            )
    else:
        rest = boolean("residual", residual)  # type: ignore[arg-type]
        around = (False, *(rest for _ in layers[1:]))
    for k, (layer, own) in enumerate(zip(layers, around, strict=True)):
        if own and layer.input_size != layer.output_size:
            raise ValueError(
                f"residual needs a layer with as many outputs as inputs, got layers[{k}] with "
                f"{layer.input_size} inputs and {layer.output_size} outputs: a list of bools, as "
                "residual=[False, True], says it for each layer"
            )
    return around
