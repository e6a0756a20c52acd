# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers on sequences that arrive piece by piece."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, choice
from rnnkern.layers.arguments import State
from rnnkern.layers.network import Network, forward

# Measured: in a step of fewer flops a second thread costs more to wake than it saves.
_SHARED_STEP_FLOPS = 1e7


class Stream:
    """Runs a layer step by step over a packed snapshot of its parameters; see ``layer.stream``.

    Steps and blocks take and give arrays without a layer's ``batch_first``: a step is (B, I) in and
    (B, H) out, a block (T, B, I) in and (T, B, H) out. A Stream is one sequence's state: unlike a
    layer, it must not be used from two threads at once. A copy goes on from the state that was
    copied, and shares nothing with it.
    """

    def __init__(
        self, network: Network, batch: int, weights: str | None = None, *, by_token: bool = False
    ) -> None:
        """Of a network, of whose weights it takes a copy.

        With `by_token` there will be tokens alone, and for as long as the stream lives nobody may
        write to the weights: no copies, and of a large vocabulary no more is packed than the tokens
        that come.
        """
        spec, device = network.spec, network.device
        if spec.directions > 1:
            raise ValueError(
                "stream needs a layer with bidirectional=False, got one whose second direction "
                "would need the whole sequence first"
            )
        self._by_token = by_token
        if not by_token:
            network = network.snapshot(replace(network.layout, batch_first=False))
        if weights is not None:
            choice("weights", weights, ("bfloat16",))
            if not device.has_stepper:
                raise ValueError(
                    f"weights='bfloat16' needs device='cpu', got a layer with "
                    f"device={device.name!r}: compute='bfloat16' is its like there"
                )
            if spec.dtype != np.float32:
                raise ValueError(
                    f"weights='bfloat16' needs a layer of dtype float32, got {spec.dtype.name}"
                )
            for w in network.weights:
                for matrix in (w.weight_ih, w.weight_hh):
                    matrix[...] = _rounded_to_bfloat16(matrix)
        self._network = network
        self._layout = network.layout
        self._packed: Network | None = None  # at the first block
        h, c = self._layout.state("state", None, batch, unbatched=False)
        # h and, where there is one, c in one array, so that no signal comes between the two.
        self._states = device.xp.stack([h] if c is None else [h, c])
        self._h, self._c = self._states[0], None if c is None else self._states[1]
        self._rounding = weights
        self._stepper = self._new_stepper(narrow=weights is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: weights are packed anew, and the state is copied."""
        arguments = (self._network, self.batch, self._rounding, self._by_token)
        return _again, (type(self), *arguments), self.state

    def __setstate__(self, state: State) -> None:
        self.state = state

    def _new_stepper(self, *, narrow: bool) -> _core.Stepper | None:
        """None where a step is so much work that threads share it, as a block, to the same bits."""
        spec, device, weights = self._network.spec, self._network.device, self._network.weights
        if self.batch == 0:
            return None
        flops = self.batch * sum(2 * (w.weight_ih.size + w.weight_hh.size) for w in weights)
        if flops >= _SHARED_STEP_FLOPS:
            plan = device.plan(spec, 1, self.batch, training=False)
            if plan.get("threads", 1) > 1:
                return None
        return device.stepper(
            spec, weights, self._h, self._c, narrow=narrow, by_token=self._by_token
        )

    def step(self, x: Any, out: Array | None = None) -> Array:
        """One step: x (B, I), or tokens (B,); returns y (B, H), in `out` if given.

        A C-contiguous array of the layer's dtype (int64 for tokens) goes straight to the kernel;
        anything else is checked and converted first. On a GPU a step is a block of one.
        """
        y = None if self._stepper is None else self._stepper.step(x, out)
        return self._checked_step(x, out) if y is None else y

    def _checked_step(self, x: Any, out: Array | None) -> Array:
        spec, layout = self._network.spec, self._layout
        array = self._network.device.array("x", x)
        axes = 1 if array.dtype.kind in "iu" else 2
        if array.ndim != axes or array.shape[0] != self.batch:
            wanted = (self.batch,) if axes == 1 else (self.batch, spec.inputs)
            raise ValueError(f"x must have shape {wanted}, got {array.shape}")
        given = layout.input(array[None], None, None)
        if out is not None:
            layout.check_out(out, (self.batch, spec.units))
        y = None
        if self._stepper is not None:
            dtype = np.dtype(np.int64) if axes == 1 else spec.dtype
            y = self._stepper.step(np.array(given.x[0], dtype, order="C"), None)
        if y is None:
            y = self.block(given.x)[0]
        if out is None:
            return y
        out[...] = y
        return out

    def block(self, x: Any, out: Array | None = None) -> Array:
        """Several steps: x (T, B, I), or tokens (T, B); returns y (T, B, H), in `out` if given.

        One that is interrupted (KeyboardInterrupt) leaves the state as it was before the block.
        """
        network, layout = self._network, self._layout
        given = layout.input(x, None, None)
        if given.unbatched or given.batch != self.batch:
            inputs, shape = network.spec.inputs, network.device.array("x", x).shape
            raise ValueError(
                f"x must have shape (T, {self.batch}, {inputs}), or (T, {self.batch}) "
                f"for tokens, got {shape}"
            )
        y = layout.output(out, given, () if out is None else network.named_weights())
        if self._packed is None:
            self._packed = network.packed(by_token=self._by_token)
        states = self._states.copy()
        forward(self._packed, given, states[0], None if self._c is None else states[1], y)
        self._states[...] = states
        return y

    @property
    def batch(self) -> int:
        """Rows, each a sequence of its own."""
        return int(self._h.shape[1])

    @property
    def state(self) -> State:
        """A copy of the state now, shaped as a layer's; one assigned is copied too."""
        return self._h.copy() if self._c is None else (self._h.copy(), self._c.copy())

    @state.setter
    def state(self, state: State) -> None:
        h, c = self._layout.state("state", state, self.batch, unbatched=False)
        self._h[...] = h
        if self._c is not None:
            self._c[...] = c

    def take(self, rows: Array) -> None:
        """Let row b go on from where row ``rows[b]`` is: a search's beams change places."""
        for state in (self._h, self._c):
            if state is not None:
                state[...] = state[:, rows]

    def reset(self, mask: Any = None) -> None:
        """Set the state to zero: all of it, or the rows where `mask` (B,) is true."""
        device, rows = self._network.device, None
        if mask is not None:
            rows = device.shaped("mask", mask, (self.batch,), np.dtype(bool))[:, None]
        for state in (self._h, self._c):
            if state is not None:
                zero = state.dtype.type(0)
                state[...] = zero if rows is None else device.xp.where(rows, zero, state)


def _again(
    kind: type[Stream], network: Network, batch: int, weights: str | None, by_token: bool
) -> Stream:
    """What a copied or pickled stream is built of."""
    return kind(network, batch, weights, by_token=by_token)


def _rounded_to_bfloat16(array: Array) -> Array:
    """The nearest float32 values whose lower half is 0, ties to even; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    result: Array = np.where(np.isnan(array), np.float32(np.nan), rounded.view(np.float32))
    return result
