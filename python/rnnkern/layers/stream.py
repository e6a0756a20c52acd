# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers on sequences that arrive piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, choice
from rnnkern.layers.tape import State

if TYPE_CHECKING:
    from rnnkern.layers.base import Recurrent

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
        self,
        layer: Recurrent,
        batch: int,
        weights: str | None = None,
        *,
        by_token: bool = False,
    ) -> None:
        if layer.bidirectional:
            raise ValueError(
                "stream needs a layer with bidirectional=False, got one whose second direction "
                "would need the whole sequence first"
            )
        # That of a decoding lives for one call and takes tokens alone: no copies, and of a large
        # vocabulary no more is packed than the tokens that come.
        self._by_token = by_token
        self._layer = layer if by_token else layer._snapshot(batch_first=False)
        if weights is not None:
            choice("weights", weights, ("bfloat16",))
            if not layer._device.has_stepper:
                raise ValueError(
                    f"weights='bfloat16' needs device='cpu', got a layer with "
                    f"device={layer.device!r}: compute='bfloat16' is its like there"
                )
            if layer.dtype != np.float32:
                raise ValueError(
                    f"weights='bfloat16' needs a layer of dtype float32, got {layer.dtype.name}"
                )
            for name, array in self._layer.params.items():
                if name.startswith("weight_"):
                    array[...] = _rounded_to_bfloat16(array)
        self._weights = self._layer._weights
        self._panels: list[Any] | None = None  # packed at the first block
        h, c = self._layer._check_state("state", None, batch, unbatched=False)
        # h and, where there is one, c in one array, so that no signal comes between the two.
        self._states = self._layer._device.xp.stack([h] if c is None else [h, c])
        self._h, self._c = self._states[0], None if c is None else self._states[1]
        self._rounding = weights
        self._stepper = self._new_stepper(narrow=weights is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: weights are packed anew, and the state is copied."""
        return type(self), (self._layer, self.batch, self._rounding), self.state

    def __setstate__(self, state: State) -> None:
        self.state = state

    def _new_stepper(self, *, narrow: bool) -> _core.Stepper | None:
        """None where a step is so much work that threads share it, as a block, to the same bits."""
        layer = self._layer
        if self.batch == 0:
            return None
        flops = self.batch * sum(2 * (w.weight_ih.size + w.weight_hh.size) for w in self._weights)
        if flops >= _SHARED_STEP_FLOPS and layer.plan(1, self.batch).get("threads", 1) > 1:
            return None
        return layer._device.stepper(
            layer._cell,
            [(w.weight_ih, w.weight_hh, w.bias, w.bias_hn) for w in self._weights],
            self._h,
            self._c,
            layer.compute,
            narrow=narrow,
            by_token=self._by_token,
        )

    def step(self, x: Any, out: Array | None = None) -> Array:
        """One step: x (B, I), or tokens (B,); returns y (B, H), in `out` if given.

        A C-contiguous array of the layer's dtype (int64 for tokens) goes straight to the kernel;
        anything else is checked and converted first. On a GPU a step is a block of one.
        """
        y = None if self._stepper is None else self._stepper.step(x, out)
        return self._checked_step(x, out) if y is None else y

    def _checked_step(self, x: Any, out: Array | None) -> Array:
        layer = self._layer
        array = layer._device.array("x", x)
        axes = 1 if array.dtype.kind in "iu" else 2
        if array.ndim != axes or array.shape[0] != self.batch:
            wanted = (self.batch,) if axes == 1 else (self.batch, layer.input_size)
            raise ValueError(f"x must have shape {wanted}, got {array.shape}")
        given = layer._check_input(array[None], None, None)
        if out is not None:
            layer._check_out(out, (self.batch, layer.hidden_size))
        y = None
        if self._stepper is not None:
            dtype = np.dtype(np.int64) if axes == 1 else layer.dtype
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
        layer = self._layer
        given = layer._check_input(x, None, None)
        if given.unbatched or given.batch != self.batch:
            raise ValueError(
                f"x must have shape (T, {self.batch}, {layer.input_size}), or (T, {self.batch}) "
                f"for tokens, got {layer._device.array('x', x).shape}"
            )
        result = layer._output(out, given, self._weights)
        if self._panels is None:
            self._panels = layer._panels(self._weights, by_token=self._by_token)
        states = self._states.copy()
        c = None if self._c is None else states[1]
        layer._through_layers(given, states[0], c, result, self._weights, self._panels)
        self._states[...] = states
        return result

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
        h, c = self._layer._check_state("state", state, self.batch, unbatched=False)
        self._h[...] = h
        if self._c is not None:
            self._c[...] = c

    def _take(self, rows: Array) -> None:
        """Row b goes on from where row ``rows[b]`` is."""
        for state in (self._h, self._c):
            if state is not None:
                state[...] = state[:, rows]

    def reset(self, mask: Any = None) -> None:
        """Set the state to zero: all of it, or the rows where `mask` (B,) is true."""
        device, rows = self._layer._device, None
        if mask is not None:
            rows = device.shaped("mask", mask, (self.batch,), np.dtype(bool))[:, None]
        for state in (self._h, self._c):
            if state is not None:
                zero = state.dtype.type(0)
                state[...] = zero if rows is None else device.xp.where(rows, zero, state)


def _rounded_to_bfloat16(array: Array) -> Array:
    """The nearest float32 values whose lower half is 0, ties to even; NaN stays NaN."""
    bits = array.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    result: Array = np.where(np.isnan(array), np.float32(np.nan), rounded.view(np.float32))
    return result
