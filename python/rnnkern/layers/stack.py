# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers of different kinds on one another, which behave as one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from rnnkern._checks import Array, boolean, explains_options, fraction
from rnnkern.devices import get_device, masked
from rnnkern.layers.arguments import (
    StackState,
    State,
    check_apart,
    check_dropout_key,
    check_out,
    check_repeats,
    split_key,
    states_of,
)
from rnnkern.layers.base import Recurrent
from rnnkern.layers.configured import spec_of
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.frozen import Frozen
from rnnkern.layers.marks import Asked, asked
from rnnkern.layers.network import dropout_mask
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.stack_stream import StackStream
from rnnkern.layers.stack_tape import StackTape
from rnnkern.layers.steps import Steps


class Stack(Fixed):
    """Recurrent layers on one another: what one gives is what the next is given.

    The layers may be of different cells, sizes and directions, each perhaps of several stacked
    layers itself. A stack is called, trained, streamed, frozen and saved as one layer is; what
    differs is the state: a tuple of the layers' states, from the first up, each as its layer has
    it.

    Args:
        layers: the layers, from the first up; each takes as many inputs as the one below it has
            outputs (its ``output_size``), and all have the same dtype, device and
            ``batch_first``. The stack has the layers themselves, not copies.
        residual: whether a layer's input is added to its output: True for all but the first, whose
            input is x, or a bool for each. Inputs and outputs must then be as many, and the last
            layer must not ``merge`` directions that end at other steps than each other.
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
        self.dropout = fraction("dropout", dropout)
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
        resets: Any = None,
        reset_to: str | StackState = "zero",
        segments: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
    ) -> tuple[Array, tuple[State, ...]]:
        """Run without keeping anything for a backward pass; there is no dropout.

        Args:
            x: as the first layer takes it.
            state: the initial state of each layer, in a list or tuple; None, also as one of them,
                is zero.
            lengths: as a layer takes them.
            out: where y goes, as of a layer.
            resets: these five as a layer takes them, for all layers; the initial states are
                those of each layer.
            reset_to: see there; or a state of each layer, None for zero, as ``state``.
            segments: see there.
            mask: see there.
            masked_output: see there, of the last layer.

        Returns:
            y as the last layer gives it, and a tuple of the layers' last states.

        Raises:
            TypeError, ValueError: as the layers raise.

        """
        marks = asked(resets, reset_to, segments, mask, masked_output)
        return self._run(self.layers, x, state, lengths, out, marks)

    def forward(
        self,
        x: Any,
        state: StackState | None = None,
        lengths: Any = None,
        *,
        out: Array | None = None,
        dropout_key: SupportsIndex | None = None,
        recompute: SupportsIndex | None = None,
        tbptt: SupportsIndex | None = None,
        resets: Any = None,
        reset_to: str | StackState = "zero",
        segments: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
    ) -> tuple[Array, tuple[State, ...], StackTape]:
        """Run and keep what a backward pass needs; arguments and results as in a plain call.

        Args:
            dropout_key: an integer in 0..2**64-1 that picks the dropout masks, of the stack and of
                its layers, needed where there are some. Give every step of training its own.
            recompute: as of a layer, for each of them; what one layer hands to the next is kept.
            tbptt: as of a layer, for each of them.
            resets: these five as in a plain call.
            reset_to: see there.
            segments: see there.
            mask: see there.
            masked_output: see there.

        Returns:
            y, the last states and a tape. x, y and the initial states are kept as they are: leave
            them unchanged until ``tape.backward``.

        """
        key = None if dropout_key is None else check_dropout_key(dropout_key, 64)
        if key is None and self.dropout > 0.0 and len(self.layers) > 1:
            raise ValueError(
                f"dropout_key must be given when dropout is {self.dropout:g}, got None"
            )
        marks = asked(resets, reset_to, segments, mask, masked_output)
        options = self._options(marks)
        keys = split_key(key, 2 * len(self.layers))
        states, tapes, masks = states_of("state", state, len(self.layers)), [], []
        y = self._device.array("x", x)
        self._check_overlap(out, y, states)
        last: list[State] = []
        for k, layer in enumerate(self.layers):
            given, factors, mask_key = y, None, keys[2 * k]
            if k > 0 and self.dropout > 0.0:
                assert mask_key is not None
                factors = dropout_mask(
                    self._device, given.shape, self.dtype, self.dropout, mask_key, 0
                )
            y, own, tape = layer.forward(
                given if factors is None else masked(given, factors),
                states[k],
                lengths,
                out=self._out_of(k, out),
                dropout_key=keys[2 * k + 1],
                recompute=recompute,
                tbptt=tbptt,
                **options[k],
            )
            y = self._joined(k, y, given, lengths, out, marks)
            last.append(own)
            tapes.append(tape)
            masks.append(factors)
        steps = self._steps(y, lengths, marks)
        steps.repeat(y)
        return y, tuple(last), StackTape(tapes, masks, self.residual, steps)

    def last_output(
        self, y: Array, state: Sequence[State], lengths: Any = None, *, mask: Any = None
    ) -> Array:
        """The last output of every row, of what a call gave: each direction's where it ends.

        It is what ``dlast`` of a tape's ``backward`` is the gradient in: as `Recurrent` has it.

        Args:
            y: as the call gave it.
            state: the last states, likewise.
            lengths: as the call was given them.
            mask: likewise.

        Returns:
            (B, output_size), or (output_size,) without a batch.

        """
        h = self.layers[-1].last_output(y, state[-1], lengths)
        if not self.residual[-1]:
            return h
        return self._steps(y, lengths, asked(None, "zero", None, mask, "zero")).last(y, h)

    def freeze(self, *, weights: str | None = None) -> FrozenStack:
        """A packed snapshot of the parameters as they are now, to be called as the stack is.

        Args:
            weights: "int8" or None, as of a layer.

        Raises:
            ValueError: a layer cannot have such weights.

        """
        return FrozenStack(self, [layer.freeze(weights=weights) for layer in self.layers])

    def stream(self, batch: int = 1, *, weights: str | None = None) -> StackStream:
        """A stepper for sequences that arrive piece by piece, as a layer's `Stream`.

        Args:
            batch: rows, each a sequence of its own.
            weights: "bfloat16", "int8" or None, as of a layer.

        Raises:
            ValueError: a layer is bidirectional, so that its output needs the whole sequence; or
                cannot have such weights.

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
        marks: Asked | None,
    ) -> tuple[Array, tuple[State, ...]]:
        """A plain call of the layers, or of their snapshots."""
        options = self._options(marks)
        states = states_of("state", state, len(layers))
        y = self._device.array("x", x)
        self._check_overlap(out, y, states)
        last = []
        for k, layer in enumerate(layers):
            given = y
            y, own = layer(given, states[k], lengths, out=self._out_of(k, out), **options[k])
            y = self._joined(k, y, given, lengths, out, marks)
            last.append(own)
        if marks is not None and marks.repeats:
            self._steps(y, lengths, marks).repeat(y)
        return y, tuple(last)

    def _options(self, marks: Asked | None) -> list[dict[str, Any]]:
        """What each layer's call is asked for: between them y of skipped steps is 0."""
        check_repeats(marks, spec_of(self.layers[-1]))
        count = len(self.layers)
        if marks is None:
            return [{}] * count
        of_all = {"resets": marks.resets, "segments": marks.segments, "mask": marks.mask}
        anew: list[Any] = [marks.reset_to] * count
        if not isinstance(marks.reset_to, str):
            own = states_of("reset_to", marks.reset_to, count)
            anew = ["zero" if state is None else state for state in own]
        return [{**of_all, "reset_to": reset_to} for reset_to in anew]

    def _out_of(self, k: int, out: Array | None) -> Array | None:
        """Where a layer writes its y: to `out`, if what it gives is what the stack gives."""
        return out if k == len(self.layers) - 1 and not self.residual[k] else None

    def _joined(
        self,
        k: int,
        y: Array,
        given: Array,
        lengths: Any,
        out: Array | None,
        marks: Asked | None,
    ) -> Array:
        """A layer's y, and its input added where that is wanted."""
        if not self.residual[k]:
            return y
        if given.dtype != self.dtype:
            raise TypeError(
                f"x must be {self.dtype.name}, since residual adds it to what the first layer "
                f"gives, got tokens of {given.dtype.name}"
            )
        if k == 0:  # further up it is 0 past a row's length
            given = self._steps(y, lengths, marks).within(given)
        with np.errstate(all="ignore"):
            if out is None or k < len(self.layers) - 1:
                total: Array = y + given
                return total
            check_out(self._device, out, y.shape, self.dtype)
            np.add(y, given, out=out)
        return out

    def _check_overlap(self, out: Array | None, x: Array, states: list[State | None]) -> None:
        """Refuse an `out` in memory that the call reads; layers refuse what else is wrong."""
        device = self._device
        if not isinstance(out, device.xp.ndarray):
            return
        of_states = [
            ("state", device.array("state", part))
            for state in states
            for part in (state if isinstance(state, (tuple, list)) else (state,))
            if part is not None
        ]
        params = ((f"params[{name!r}]", p) for name, p in self.params.items())
        check_apart(device, out, (("x", x), *of_states, *params))

    def _steps(self, y: Array, lengths: Any, marks: Asked | None) -> Steps:
        return Steps(
            self._device,
            y,
            lengths,
            marks,
            batch_first=self.batch_first,
            backwards=spec_of(self.layers[-1]).ways,
        )


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
        resets: Any = None,
        reset_to: str | StackState = "zero",
        segments: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
    ) -> tuple[Array, tuple[State, ...]]:
        """As a plain call of the stack: the same arguments, results and errors."""
        marks = asked(resets, reset_to, segments, mask, masked_output)
        return self._stack._run(self._layers, x, state, lengths, out, marks)

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
    if around[-1] and spec_of(layers[-1]).merges:
        raise ValueError(
            f"residual must be False around a last layer with merge={layers[-1].merge!r}: its last "
            "output is of the states at two ends, beside which no one input stands"
        )
    return around
