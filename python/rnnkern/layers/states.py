# SPDX-License-Identifier: Apache-2.0
"""The state that a stream holds: h and, where there is one, c, in one memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rnnkern._checks import Array
from rnnkern.devices import Device


class States:
    """The parts of a state (L, B, ·), each of its own width, in one array.

    All are written at once, so that no signal comes between one and the next. The array has blocks
    as long as divides all widths, and one index finds those of some rows.

    Args:
        device: where they are.
        parts: their values, which are copied.

    Attributes:
        parts: the parts themselves, contiguous: what is written to them counts.

    """

    def __init__(self, device: Device, parts: Sequence[Array]) -> None:
        xp, self._device = device.xp, device
        layers, batch, _ = parts[0].shape
        widths = [part.shape[2] for part in parts]
        self._block = math.gcd(*widths)
        self._memory = self._as_blocks(parts)
        self.parts = self._apart(self._memory, batch, layers, widths)
        self._layers, self._widths = layers, widths
        # Where the blocks of row 0 are, and how many a row has, of parts that have as many.
        lead = xp.arange(layers)[:, None, None] * batch
        self._places = []
        start = 0
        for width in widths:
            blocks = width // self._block
            self._places.append((start + lead * blocks + xp.arange(blocks), blocks))
            start += layers * batch * blocks
        if len(set(widths)) == 1:
            self._places = [(xp.concatenate([place for place, _ in self._places]), 1)]

    @property
    def batch(self) -> int:
        """B."""
        return int(self.parts[0].shape[1])

    def copies(self) -> tuple[Array, ...]:
        """New arrays with the parts' values."""
        return self._apart(self._memory.copy(), self.batch, self._layers, self._widths)

    def set(self, parts: Sequence[Array]) -> None:
        """Give all rows these values."""
        self._memory[...] = self._as_blocks(parts)

    def clear(self) -> None:
        """Set all to zero."""
        self._memory[...] = 0

    def of_rows(self, rows: Array) -> tuple[Array, ...]:
        """New arrays with some rows' values: `rows` are their numbers, an array of the device."""
        blocks = self._device.xp.take(self._memory, self._places_of(rows), axis=0)
        return self._apart(blocks, len(rows), self._layers, self._widths)

    def set_rows(self, rows: Array, parts: Sequence[Array]) -> None:
        """Give some rows these values."""
        self._memory[self._places_of(rows)] = self._as_blocks(parts)

    def clear_rows(self, rows: Array) -> None:
        """Set some rows to zero."""
        self._memory[self._places_of(rows)] = 0

    def _places_of(self, rows: Array) -> Array:
        """Where the blocks of some rows are, in the order of the parts."""
        places = [(first + rows[:, None] * blocks).reshape(-1) for first, blocks in self._places]
        found: Array = places[0] if len(places) == 1 else self._device.xp.concatenate(places)
        return found

    def _as_blocks(self, parts: Sequence[Array]) -> Array:
        """A copy of the parts as blocks."""
        blocks: Array = self._device.xp.concatenate([p.reshape(-1, self._block) for p in parts])
        return blocks

    def _apart(
        self, blocks: Array, batch: int, layers: int, widths: Sequence[int]
    ) -> tuple[Array, ...]:
        """The parts of so many rows, which stand in these blocks."""
        parts, start = [], 0
        for width in widths:
            end = start + layers * batch * (width // self._block)
            parts.append(blocks[start:end].reshape(layers, batch, width))
            start = end
        return tuple(parts)
