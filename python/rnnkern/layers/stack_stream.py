# SPDX-License-Identifier: Apache-2.0
"""Layers of different kinds on sequences that arrive piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array
from rnnkern.devices import Device
from rnnkern.layers.arguments import State, states_of
from rnnkern.layers.stream import Stream


class StackStream:
    """Runs a stack step by step over a packed snapshot of its parameters; see ``stack.stream``.

    It does what a `Stream` does, with a tuple of the layers' states, from the first up.

    Example:
        >>> stream = rk.Stack([rk.GRU(3, 4), rk.LSTM(4, 4)]).stream(batch=2)
        >>> y = stream.step(np.ones((2, 3), np.float32))
        >>> h, (h_top, c_top) = stream.state

    """

    def __init__(self, streams: list[Stream], residual: Sequence[bool], device: Device) -> None:
        """Of the layers' streams, and whether each one's input is added to its output."""
        self._streams = streams
        self._residual = tuple(residual)
        self._device = device

    def __repr__(self) -> str:
        return f"StackStream({self._streams!r})"

    def step(self, x: Any, out: Array | None = None, *, mask: Any = None) -> Array:
        """One step: x (B, I), or tokens (B,); returns y (B, H), in `out` if given.

        Args:
            x: one step of every row.
            out: where y goes.
            mask: (B,), bool, in host memory: the rows that go on. The others hold their state, and
                their y is 0.

        """
        with self._all_or_nothing():
            y: Array = x
            for k, stream in enumerate(self._streams):
                given = self._kept(k, y, out)
                y = stream.step(y, out if self._is_top(k) else None, mask=mask)
                if given is not None:
                    y += self._held(k, given, mask)
        return y

    def block(
        self, x: Any, out: Array | None = None, *, resets: Any = None, mask: Any = None
    ) -> Array:
        """Several steps: x (T, B, I), or tokens (T, B); returns y (T, B, H), in `out` if given.

        One that is interrupted (KeyboardInterrupt) leaves the states as they were before the block.

        Args:
            x: the steps of every row.
            out: where y goes.
            resets: (T, B) bool: before these steps the row's states are zero again.
            mask: (T, B) bool: where it is False the row skips the step; its y is 0 there.

        """
        with self._all_or_nothing():
            y: Array = x
            for k, stream in enumerate(self._streams):
                given = self._kept(k, y, out)
                to = out if self._is_top(k) else None
                y = stream.block(y, to, resets=resets, mask=mask)
                if given is not None:
                    y += self._held(k, given, mask)
        return y

    def _held(self, k: int, given: Array, mask: Any) -> Array:
        """A layer's input without what it has for rows that are held: further up that is 0."""
        if k > 0 or mask is None:
            return given
        live = self._device.put(np.asarray(mask)[..., None])
        held: Array = self._device.xp.where(live, given, given.dtype.type(0))
        return held

    def _is_top(self, k: int) -> bool:
        return k == len(self._streams) - 1

    def _kept(self, k: int, given: Any, out: Array | None) -> Array | None:
        """A layer's input, if it is to be added to its output."""
        if not self._residual[k]:
            return None
        array = self._device.array("x", given)
        if array.dtype.kind in "iu":
            raise TypeError(
                "x must be features, since residual adds it to what the first layer gives, "
                f"got tokens of {array.dtype.name}"
            )
        return array if k > 0 or out is None else array.copy()  # out may lie where x does

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """What does not get through all layers leaves the states of all as they were."""
        before = self.state
        try:
            yield
        except BaseException:
            self.state = before
            raise

    @property
    def batch(self) -> int:
        """Rows, each a sequence of its own."""
        return self._streams[0].batch

    @property
    def state(self) -> tuple[State, ...]:
        """A copy of the layers' states now, from the first up; those assigned are copied too."""
        return tuple(stream.state for stream in self._streams)

    @state.setter
    def state(self, state: Sequence[State]) -> None:
        self.set_rows(np.arange(self.batch), state)

    def take(self, rows: Array) -> None:
        """Let row b go on from where row ``rows[b]`` is: a search's beams change places."""
        for stream in self._streams:
            stream.take(rows)

    def reset(self, mask: Any = None) -> None:
        """Set the state to zero, of all rows or of some: as ``Stream.reset``."""
        for stream in self._streams:
            stream.reset(mask)

    def get_rows(self, rows: Any) -> tuple[State, ...]:
        """A copy of some rows' states, as ``Stream.get_rows``."""
        return tuple(stream.get_rows(rows) for stream in self._streams)

    def set_rows(self, rows: Any, state: Sequence[State | None] | None) -> None:
        """Give some rows other states, as ``Stream.set_rows``: in all layers, or in none."""
        given = states_of("state", state, len(self._streams))
        before = self.get_rows(rows)
        try:
            for stream, own in zip(self._streams, given, strict=True):
                stream.set_rows(rows, own)
        except BaseException:
            for stream, own in zip(self._streams, before, strict=True):
                stream.set_rows(rows, own)
            raise

    def add_rows(
        self, count: int = 1, state: Sequence[State | None] | None = None
    ) -> NDArray[np.int64]:
        """Further rows behind those that are there, and their numbers: as ``Stream.add_rows``."""
        for stream in self._streams:
            rows = stream.add_rows(count)
        if state is not None:
            try:
                self.set_rows(rows, state)
            except BaseException:
                self.remove_rows(rows)
                raise
        return rows

    def remove_rows(self, rows: Any) -> None:
        """Take rows away; those behind them move up: as ``Stream.remove_rows``."""
        for stream in self._streams:
            stream.remove_rows(rows)

    def refresh(self) -> None:
        """Take the layers' parameters as they are now; the states stay.

        Raises:
            ValueError: the stream is a copy or was pickled, and has no layers.

        """
        for stream in self._streams:
            stream.refresh()
