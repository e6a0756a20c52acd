# SPDX-License-Identifier: Apache-2.0
"""Batch rows that begin anew now and then, or skip steps, as rows with lengths alone.

What lies between two such places is copied to be a row of a batch of its own, for kernels that know
no more than lengths; results go back to where they belong. The CPU's kernels need no copies:
csrc/core/stretches.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rnnkern import _core
from rnnkern._checks import Array
from rnnkern.devices.kernels import Gradient, Kept

# In the place of a stretch that leaves a row's last state: see `_core.stretches`.
_GIVEN, _ANEW = -1, -3


class Copier(Protocol):
    """Of a device, what copies take."""

    xp: Any

    def put(self, array: Any) -> Array:
        """An array of the host as one of the device."""

    def sums_by_token(self, tokens: Array, rows: Array, count: int) -> Array:
        """The sums of those rows whose tokens are equal."""


class Stretches:
    """The stretches of a call, longest first.

    Attributes:
        lengths: (rows,), in host memory; where no step is live there is one row, of length 0.
        places: t·B + b of each live step, by step and stretch, in host memory.

    """

    def __init__(
        self,
        device: Copier,
        shape: tuple[int, ...],
        backwards: Sequence[bool],
        lengths: Array | None,
        resets: Array | None,
        mask: Array | None,
        states_anew: bool,
    ) -> None:
        """Of a call of T steps and B rows, its ``shape``.

        `backwards` says of each direction whether it is that from the last step to the first. With
        `states_anew` states have 2·B rows, of which the second half are those to begin anew with.
        """
        steps, batch = shape
        self._device, self._shape = device, shape
        self.places, self.lengths, sources, leaving = _core.stretches(
            steps, batch, lengths, resets, mask, states_anew
        )
        if not len(self.lengths):  # kernels are given a row without steps, which is nobody's
            self.lengths, sources = np.zeros(1, np.int64), (np.full(1, -1),) * 2
        self._directions = len(backwards)
        self._sources = [sources[back] for back in backwards]
        self._leaving = [leaving[back] for back in backwards]
        longest = int(self.lengths.max(initial=1))
        s, v = np.nonzero(np.arange(longest)[:, None] < self.lengths)
        t, b = np.divmod(self.places, batch)
        grid = np.zeros((2, longest, len(self.lengths)), np.int64)
        grid[:, s, v] = t, b
        self._of_batch, self._grid = self._put(t, b), self._put(*grid)
        self._of_rows = self._put(s, v)

    def _put(self, *arrays: NDArray[np.int64]) -> tuple[Array, ...]:
        return tuple(self._device.put(array) for array in arrays)

    def taken(self, array: Array) -> Array:
        """What an array (T, B, ·) has for the stretches: (longest, rows, ·)."""
        rows: Array = array[self._grid]
        return rows

    def by_row(self, array: Array) -> Array:
        """What an array (B, ·) has for them: (rows, ·)."""
        rows: Array = array[self._grid[1][0]]
        return rows

    def give(self, rows: Array, array: Array) -> None:
        """The other way: into an array (T, B, ·), in which all else becomes 0."""
        array[...] = 0
        array[self._of_batch] = rows[self._of_rows]

    def given(self, rows: Array) -> Array:
        """The same into a new array."""
        array: Array = self._device.xp.empty((*self._shape, *rows.shape[2:]), rows.dtype)
        self.give(rows, array)
        return array

    def add(self, rows: Array, array: Array) -> None:
        """Likewise, added to it."""
        array[self._of_batch] += rows[self._of_rows]

    def begin(self, given: Array) -> Array:
        """The states that stretches begin with, of those that the call is given."""
        return self._each(given, lambda d, h: self._chosen(h, self._sources[d]))

    def end(self, rows: Array, state: Array) -> None:
        """The last states of the batch, in the place of the given ones."""
        batch = self._shape[1]
        for i, (own, left) in enumerate(zip(state, rows, strict=True)):
            leaving = self._leaving[i % self._directions]
            held = self._where(leaving == _GIVEN, own[:batch])
            if (leaving == _ANEW).any():
                held = self._where(leaving == _ANEW, own[batch:], held)
            own[:batch] = self._where(leaving >= 0, self._chosen(left, leaving), held)

    def begin_backward(self, dstate: Array) -> Array:
        """∂L/∂(what stretches leave), of that in the last states."""
        return self._each(dstate, self._to_leaving)

    def end_backward(self, drows: Array, dstate: Array) -> None:
        """∂L/∂(the states given), in the place of that in the last ones."""
        batch = self._shape[1]
        for i, (own, begun) in enumerate(zip(dstate, drows, strict=True)):
            d = i % self._directions
            leaving = self._leaving[d]
            if (leaving == _ANEW).any():
                own[batch:] += self._where(leaving == _ANEW, own[:batch])
            own[:batch] = self._where(leaving == _GIVEN, own[:batch])
            (from_given,) = np.nonzero(self._sources[d] >= 0)
            if from_given.size:
                tokens, chosen = self._put(self._sources[d][from_given], from_given)
                own += self._device.sums_by_token(tokens, begun[chosen], len(own))

    def _each(self, states: Array, of_direction: Any) -> Array:
        parts = [of_direction(i % self._directions, own) for i, own in enumerate(states)]
        stacked: Array = self._device.xp.stack(parts)
        return stacked

    def _to_leaving(self, d: int, dstate: Array) -> Array:
        (rows,) = np.nonzero(self._leaving[d] >= 0)
        from_rows, to = self._put(rows, self._leaving[d][rows])
        out: Array = self._device.xp.zeros((len(self.lengths), dstate.shape[1]), dstate.dtype)
        out[to] = dstate[from_rows]
        return out

    def _chosen(self, states: Array, rows: NDArray[np.int64]) -> Array:
        """Those of some rows; zeros where the number is negative."""
        (at,) = self._put(np.maximum(rows, 0))
        return self._where(rows >= 0, states[at])

    def _where(self, rows: NDArray[np.bool_], states: Array, others: Array | None = None) -> Array:
        """States of the rows that are True, and the others' or zeros."""
        beside = states.dtype.type(0) if others is None else others
        where: Array = self._device.xp.where(self._device.put(rows)[:, None], states, beside)
        return where


class StretchedKept(Kept):
    """What a forward pass over stretches kept."""

    def __init__(
        self, device: Copier, stretches: Stretches, kept: Kept, x: Array, y: Array
    ) -> None:
        """Of its x and y, of the stretches."""
        self._device = device
        self._stretches = stretches
        self._kept = kept
        self._x, self._y = x, y

    @property
    def places(self) -> Array:
        """See `Kept`, as the others."""
        return self._stretches.places

    @property
    def saved(self) -> Sequence[Array | None]:
        """Likewise."""
        return self._kept.saved

    @property
    def between(self) -> list[Array]:
        """Likewise."""
        return [self._stretches.given(y) for y in self._kept.between]

    def backward(
        self,
        x: Array,
        y: Array,
        dy: Array | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
        gradients: Sequence[Gradient],
        state_gradients: Sequence[Array] | None = None,
    ) -> None:
        """See `Kept`."""
        stretches = self._stretches
        own_dh = stretches.begin_backward(dh)
        own_dc = None if dc is None else stretches.begin_backward(dc)
        own_dx = None if dx is None else self._device.xp.zeros(self._x.shape, dx.dtype)
        self._kept.backward(
            self._x,
            self._y,
            None if dy is None else stretches.taken(dy),
            own_dh,
            own_dc,
            own_dx,
            gradients,
            state_gradients,
        )
        if dx is not None and own_dx is not None:
            stretches.add(own_dx, dx)
        stretches.end_backward(own_dh, dh)
        if dc is not None and own_dc is not None:
            stretches.end_backward(own_dc, dc)
