# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers on sequences that arrive piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern import _core
from rnnkern._checks import Array, host_array, on_gpu, positive_int
from rnnkern.layers.arguments import Input, State, check_out
from rnnkern.layers.marks import asked
from rnnkern.layers.narrow import check_narrow, narrow_layout, round_weights
from rnnkern.layers.network import Network, forward
from rnnkern.layers.states import States

# Measured: in a step of fewer flops a second thread costs more to wake than it saves.
_SHARED_STEP_FLOPS = 1e7


class Stream:
    """Runs a layer step by step over a packed snapshot of its parameters; see ``layer.stream``.

    Steps and blocks take and give arrays without a layer's ``batch_first``: a step is (B, I) in and
    (B, H) out, a block (T, B, I) in and (T, B, H) out. A Stream is one sequence's state: unlike a
    layer, it must not be used from two threads at once. A copy goes on from the state that was
    copied, and shares nothing with it.

    A service has a row for each client: ``step(x, mask=...)`` lets some of them go on, ``add_rows``
    and ``remove_rows`` let clients come and go, ``get_rows`` and ``set_rows`` move their states. A
    row's numbers are bit for bit those that it would have alone.

    Example:
        >>> gru = rk.GRU(3, 4, seed=0)
        >>> stream, x = gru.stream(batch=2), np.ones((5, 2, 3), np.float32)
        >>> steps = [stream.step(x_t) for x_t in x]
        >>> bool((np.stack(steps) == gru(x)[0]).all())
        True

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
        if spec.reverse:
            raise ValueError(
                "stream needs a layer with reverse=False, got one that begins with the last step"
            )
        self._by_token = by_token
        self._source: Network | None = network
        check_narrow(network, weights, ("bfloat16", "int8"))
        if not by_token:
            layout = narrow_layout(network.layout, weights)._replace(batch_first=False)
            network = network.snapshot(layout)
            round_weights(network, weights)
        self._network = network
        self._layout = network.layout
        self._rounding = weights
        self._packed: Network | None = None  # at the first block
        self._states = States(device, self._as_parts(None, batch))
        self._stepper = self._new_stepper()

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: weights are packed anew, and the state is copied."""
        arguments = (self._network, self.batch, self._rounding, self._by_token)
        return _again, (type(self), *arguments), self.state

    def __setstate__(self, state: State) -> None:
        self.state = state
        self._source = None

    def __repr__(self) -> str:
        return f"Stream({self._layout.owner}, batch={self.batch})"

    def _new_stepper(self) -> _core.Stepper | None:
        """None where a step is so much work that threads share it, as a block, to the same bits."""
        spec, device, weights = self._network.spec, self._network.device, self._network.weights
        if self.batch == 0:
            return None
        flops = self.batch * sum(2 * matrix.size for w in weights for matrix in w.matrices)
        if flops >= _SHARED_STEP_FLOPS:
            plan = device.plan(spec, 1, self.batch, training=False)
            if plan.get("threads", 1) > 1:
                return None
        return device.stepper(
            spec,
            weights,
            *_pair(self._states.parts),
            narrow=self._rounding == "bfloat16",
            by_token=self._by_token,
        )

    def step(self, x: Any, out: Array | None = None, *, mask: Any = None) -> Array:
        """One step: x (B, I), or tokens (B,); returns y (B, H), in `out` if given.

        A C-contiguous array of the layer's dtype (int64 for tokens) goes straight to the kernel;
        anything else is checked and converted first. On a GPU a step is a block of one.

        Args:
            x: one step of every row.
            out: where y goes.
            mask: (B,), bool, in host memory: the rows that go on; work is spent on these alone. The
                others hold their state, their y is 0, and nobody looks at what x has for them.

        """
        if mask is not None:
            rows = np.flatnonzero(self._mask(mask))
            if len(rows) < self.batch:
                return self._step_of(rows, x, out)
        y = None if self._stepper is None else self._stepper.step(x, out)
        return self._checked_step(x, out) if y is None else y

    def _checked_step(self, x: Any, out: Array | None) -> Array:
        spec, device, array = self._network.spec, self._network.device, self._step_input(x)
        given, _, _ = self._layout.input(array[None], None, None)
        if out is not None:
            check_out(device, out, (self.batch, spec.outputs), spec.dtype)
        y = None
        if self._stepper is not None:
            dtype = np.dtype(np.int64) if array.ndim == 1 else spec.dtype
            y = self._stepper.step(np.array(given.x[0], dtype, order="C"), None)
        if y is None:
            block = device.xp.empty((1, self.batch, spec.outputs), spec.dtype)
            self._advance(given, block)
            y = block[0]
        if out is None:
            return y
        out[...] = y
        return out

    def _step_input(self, x: Any) -> Array:
        """One step's x, an array with its rows."""
        array = self._network.device.array("x", x)
        axes = 1 if array.dtype.kind in "iu" else 2
        if array.ndim != axes or array.shape[0] != self.batch:
            wanted = (self.batch,) if axes == 1 else (self.batch, self._network.spec.inputs)
            raise ValueError(f"x must have shape {wanted}, got {array.shape}")
        return array

    def _step_of(self, rows: NDArray[np.int64], x: Any, out: Array | None) -> Array:
        """A step of some rows alone, as a block of so many."""
        network, device, layout = self._network, self._network.device, self._layout
        chosen, array = device.put(rows), self._step_input(x)
        given, _, _ = layout.input(array[None, chosen], None, None)
        shape = (self.batch, network.spec.outputs)
        if out is None:
            out = device.xp.empty(shape, network.spec.dtype)
        else:
            check_out(device, out, shape, network.spec.dtype)
        parts = self._states.of_rows(chosen)
        y = device.xp.empty((1, len(rows), shape[1]), network.spec.dtype)
        forward(self._packed_now(), given, *_pair(parts), y)
        self._states.set_rows(chosen, parts)
        out[...] = 0
        out[chosen] = y[0]
        return out

    def _packed_now(self) -> Network:
        """The snapshot for blocks, whose weights are packed when the first one comes."""
        if self._packed is None:
            self._packed = self._network.packed(by_token=self._by_token)
        return self._packed

    def block(
        self, x: Any, out: Array | None = None, *, resets: Any = None, mask: Any = None
    ) -> Array:
        """Several steps: x (T, B, I), or tokens (T, B); returns y (T, B, H), in `out` if given.

        One that is interrupted (KeyboardInterrupt) leaves the state as it was before the block.

        Args:
            x: the steps of every row.
            out: where y goes.
            resets: (T, B) bool: before these steps the row's state is zero again.
            mask: (T, B) bool: where it is False the row skips the step; its y is 0 there.

        """
        network, layout = self._network, self._layout
        marks = asked(resets, "zero", None, mask, "zero")
        given, h_0, c_0 = layout.input(x, None, None, marks)
        if given.unbatched or given.batch != self.batch:
            inputs, shape = network.spec.inputs, network.device.array("x", x).shape
            raise ValueError(
                f"x must have shape (T, {self.batch}, {inputs}), or (T, {self.batch}) "
                f"for tokens, got {shape}"
            )
        y = layout.output(out, given, h_0, c_0, () if out is None else network.named_weights())
        self._advance(given, y)
        return y

    def _advance(self, given: Input, y: Array) -> None:
        """Go through a block of all rows; what is interrupted leaves the state as it was."""
        parts = self._states.copies()
        forward(self._packed_now(), given, *_pair(parts), y)
        self._states.set(parts)

    @property
    def batch(self) -> int:
        """Rows, each a sequence of its own."""
        return self._states.batch

    @property
    def state(self) -> State:
        """A copy of the state now, shaped as a layer's; one assigned is copied too."""
        return _as_state(self._states.copies())

    @state.setter
    def state(self, state: State) -> None:
        self._states.set(self._as_parts(state, self.batch))

    def take(self, rows: Array) -> None:
        """Let row b go on from where row ``rows[b]`` is: a search's beams change places.

        Args:
            rows: (B,), integers in 0..B-1, of which some may be alike. On a GPU they may be there.

        """
        device = self._network.device
        array = rows if on_gpu(rows) else host_array("rows", rows)
        if array.dtype.kind not in "iu" or array.shape != (self.batch,):
            raise ValueError(
                f"rows must be integers ({self.batch},), got {array.dtype} of shape {array.shape}"
            )
        if not on_gpu(rows):
            _check_rows("rows", array, self.batch)
        self._states.set(self._states.of_rows(device.put(array)))

    def reset(self, mask: Any = None) -> None:
        """Set the state to zero: all of it, or some rows' alone.

        Args:
            mask: (B,), bool, true for those rows; or their numbers, as ``[1, 2]``. On a GPU a mask
                may be there.

        """
        device = self._network.device
        if mask is None:
            self._states.clear()
        elif on_gpu(mask):
            there = device.shaped("mask", mask, (self.batch,), np.dtype(bool))[:, None]
            zero = self._network.spec.dtype.type(0)
            self._states.set([device.xp.where(there, zero, part) for part in self._states.parts])
        else:
            by_mask = host_array("mask", mask).dtype == np.bool_
            rows = np.flatnonzero(self._mask(mask)) if by_mask else self._numbers("mask", mask)
            self._states.clear_rows(device.put(rows))

    # -- rows that come and go ----------------------------------------------------------------

    def get_rows(self, rows: Any) -> State:
        """A copy of some rows' state, shaped as that of a layer with so many rows.

        Args:
            rows: (N,), different integers in 0..B-1.

        """
        numbers = self._numbers("rows", rows)
        return _as_state(self._states.of_rows(self._network.device.put(numbers)))

    def set_rows(self, rows: Any, state: State | None) -> None:
        """Give some rows another state, as ``get_rows`` gives it; None is zero."""
        numbers = self._numbers("rows", rows)
        parts = self._as_parts(state, len(numbers))
        self._states.set_rows(self._network.device.put(numbers), parts)

    def add_rows(self, count: int = 1, state: State | None = None) -> NDArray[np.int64]:
        """Further rows behind those that are there: their numbers.

        From then on steps are computed as blocks of one, whose weights need not be packed for each
        number of rows: a few µs more, and the same bits.

        Args:
            count: how many, at least 0.
            state: theirs, as ``get_rows`` gives it; None is zero.

        """
        before, count = self.batch, positive_int("count", count, minimum=0)
        device, more = self._network.device, self._as_parts(state, count)
        joined = [
            device.xp.concatenate(both, axis=1)
            for both in zip(self._states.parts, more, strict=True)
        ]
        self._stepper = None
        self._states = States(device, joined)
        return np.arange(before, before + count)

    def remove_rows(self, rows: Any) -> None:
        """Take rows away; those behind them move up, in their order. See ``add_rows`` for steps.

        Args:
            rows: (N,), different integers in 0..B-1.

        """
        left = np.delete(np.arange(self.batch), self._numbers("rows", rows))
        device = self._network.device
        self._stepper = None
        self._states = States(device, self._states.of_rows(device.put(left)))

    def refresh(self) -> None:
        """Take the layer's parameters as they are now; the state stays.

        Raises:
            ValueError: the stream is a copy or was pickled, and has no layer.

        """
        if self._source is None:
            raise ValueError(
                "refresh needs a stream that a layer's stream() made, got a copied or pickled one"
            )
        if not self._by_token:
            for own, now in zip(self._network.weights, self._source.weights, strict=True):
                for to, array in zip(own, now, strict=True):
                    if to is not None:
                        to[...] = array
            round_weights(self._network, self._rounding)
        self._packed = None
        self._stepper = self._new_stepper()

    def _as_parts(self, state: State | None, count: int) -> tuple[Array, ...]:
        """The parts of a state of so many rows, which may be the caller's own."""
        h, c = self._layout.state("state", state, count, unbatched=False)
        return (h,) if c is None else (h, c)

    def _mask(self, mask: Any) -> NDArray[np.bool_]:
        array = host_array("mask", mask)
        if array.dtype != np.bool_ or array.shape != (self.batch,):
            raise ValueError(
                f"mask must be bool ({self.batch},), got {array.dtype} of shape {array.shape}"
            )
        return array

    def _numbers(self, name: str, rows: Any) -> NDArray[np.int64]:
        """Different rows by their numbers."""
        array = host_array(name, rows)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise ValueError(
                f"{name} must be integers (N,), got {array.dtype} of shape {array.shape}"
            )
        _check_rows(name, array, self.batch)
        if len(np.unique(array)) < len(array):
            raise ValueError(f"{name} must be different rows, got {array.tolist()}")
        return array.astype(np.int64)


def _check_rows(name: str, numbers: NDArray[Any], count: int) -> None:
    """Refuse numbers of rows that there are not."""
    if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
        wrong = numbers.min() if numbers.min() < 0 else numbers.max()
        raise ValueError(f"{name} must lie in 0..{count - 1}, got {wrong}")


def _pair(parts: tuple[Array, ...]) -> tuple[Array, Array | None]:
    """A state's parts as h and c."""
    return parts[0], parts[1] if len(parts) > 1 else None


def _as_state(parts: tuple[Array, ...]) -> State:
    """A state's parts as a layer has it."""
    return (parts[0], parts[1]) if len(parts) > 1 else parts[0]


def _again(
    kind: type[Stream], network: Network, batch: int, weights: str | None, by_token: bool
) -> Stream:
    """What a copied or pickled stream is built of."""
    return kind(network, batch, weights, by_token=by_token)
