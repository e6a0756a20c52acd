# SPDX-License-Identifier: Apache-2.0
"""Which steps of a batch its rows go through, and where rows end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, host_array
from rnnkern.devices import Device
from rnnkern.layers.marks import Asked, Repeated, checked, live_of


def live_steps(steps: int, lengths: NDArray[np.int64], axis: int) -> NDArray[np.bool_]:
    """Whether a step is within its row's length: (T, B), or (B, T) where ``axis`` is 1."""
    live: NDArray[np.bool_] = np.arange(steps)[:, None] < lengths
    return live if axis == 0 else live.T


class Steps:
    """Those of what a call gave: y (T, B, D·H), as the caller has it, of which it keeps no number.

    Args:
        device: where y is.
        y: what the call gave.
        lengths: as the call was given them; they are copied.
        asked: what else the call was asked for.
        batch_first: whether y is (B, T, D·H), where it is of a batch.
        backwards: of each direction, whether it is that from the last step to the first.

    """

    def __init__(
        self,
        device: Device,
        y: Array,
        lengths: Any,
        asked: Asked | None = None,
        *,
        batch_first: bool,
        backwards: Sequence[bool],
    ) -> None:
        self.device = device
        self.shape, self.dtype = y.shape, y.dtype
        self._axis = 1 if batch_first and y.ndim == 3 else 0
        self._lengths = None if lengths is None else host_array("lengths", lengths).copy()
        self._backwards = tuple(backwards)
        self._steps = self.shape[self._axis]
        self._batch = 1 if len(self.shape) == 2 else self.shape[1 - self._axis]
        self._mask, self._repeated = None, None
        if asked is not None and asked.mask is not None:
            marks = checked(
                asked._replace(resets=None, segments=None),
                self._steps,
                self._batch,
                self._lengths,
                swapped=self._axis == 1,
                unbatched=len(self.shape) == 2,
            )
            self._mask = mask = marks.mask
            if marks.repeats and mask is not None and mask.size:
                self._repeated = Repeated(device, mask, self._lengths, self._backwards)

    def repeat(self, y: Array) -> None:
        """Write the last outputs where steps are skipped, if that is wanted, into y."""
        if self._repeated is not None:
            self._repeated.fill(self._time_first(y))

    def repeat_backward(self, dy: Array) -> Array:
        """The way back of ``repeat``."""
        if self._repeated is None:
            return dy
        total = self._repeated.backward(self._time_first(dy))
        if len(self.shape) == 2:
            return total[:, 0]
        return total.swapaxes(0, 1) if self._axis == 1 else total

    def within(self, array: Array) -> Array:
        """An array shaped as y, that is 0 past each row's length and where steps are skipped."""
        if self._lengths is None and self._mask is None:
            return array
        return self._where(self._as_given(self._live()[..., None]), array)

    def last(self, y: Array, h: Array) -> Array:
        """The last outputs (B, D·H) in y; of rows without steps, which gave none, those in h."""
        ends = self._ends()
        some = self.device.put(ends.any(axis=self._axis))
        last: Array = self.device.xp.where(some, self._where(ends, y).sum(axis=self._axis), h)
        return last

    def spread(self, dlast: Array) -> Array:
        """The way back of ``last``: ∂L/∂y of the gradient in the last outputs."""
        return self._where(self._ends(), self.device.xp.expand_dims(dlast, self._axis))

    def _ends(self) -> NDArray[np.bool_]:
        """Where in y the last outputs are: of a direction that runs back at the first live step."""
        live, t = self._live(), np.arange(self._steps)[:, None]
        last = np.where(live, t, -1).max(axis=0, initial=-1)
        first = np.where(live, t, self._steps).min(axis=0, initial=self._steps)
        of_directions = [t == (first if back else last) for back in self._backwards]
        units = self.shape[-1] // len(self._backwards)
        return self._as_given(np.repeat(np.stack(of_directions, axis=-1), units, axis=-1))

    def _live(self) -> NDArray[np.bool_]:
        return live_of(self._steps, self._batch, self._lengths, self._mask)

    def _time_first(self, array: Array) -> Array:
        """A view (T, B, ·) of an array shaped as y."""
        if len(self.shape) == 2:
            return array[:, None]
        return array.swapaxes(0, 1) if self._axis == 1 else array

    def _as_given(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (T, B, ·) with the axes of y."""
        return mask[:, 0] if len(self.shape) == 2 else np.moveaxis(mask, 0, self._axis)

    def _where(self, mask: NDArray[np.bool_], array: Array) -> Array:
        """The array where the mask is true, elsewhere 0."""
        chosen: Array = self.device.xp.where(self.device.put(mask), array, self.dtype.type(0))
        return chosen
