# SPDX-License-Identifier: Apache-2.0
"""Which steps of a batch are within their rows' lengths, and where rows end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, host_array
from rnnkern.devices import Device


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
        batch_first: whether y is (B, T, D·H), where it is of a batch.
        backwards: of each direction, whether it is that from the last step to the first.

    """

    def __init__(
        self,
        device: Device,
        y: Array,
        lengths: Any,
        *,
        batch_first: bool,
        backwards: Sequence[bool],
    ) -> None:
        self.device = device
        self.shape, self.dtype = y.shape, y.dtype
        self._axis = 1 if batch_first and y.ndim == 3 else 0
        self._lengths = None if lengths is None else host_array("lengths", lengths).copy()
        self._backwards = tuple(backwards)

    def within(self, array: Array) -> Array:
        """An array shaped as y, that is 0 past each row's length."""
        if self._lengths is None:
            return array
        live = self._as_given(live_steps(self.shape[self._axis], self._lengths, 0)[..., None])
        return self._where(live, array)

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
        """Where in y the last outputs are: of a direction that runs back at the first step."""
        steps, lengths = self.shape[self._axis], self._lengths
        if lengths is None:
            lengths = np.full(1 if len(self.shape) == 2 else self.shape[1 - self._axis], steps)
        t = np.arange(steps)[:, None]
        of_directions = [
            (t == 0) & (lengths > 0) if back else t == lengths - 1 for back in self._backwards
        ]
        units = self.shape[-1] // len(self._backwards)
        return self._as_given(np.repeat(np.stack(of_directions, axis=-1), units, axis=-1))

    def _as_given(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (T, B, ·) with the axes of y."""
        return mask[:, 0] if len(self.shape) == 2 else np.moveaxis(mask, 0, self._axis)

    def _where(self, mask: NDArray[np.bool_], array: Array) -> Array:
        """The array where the mask is true, elsewhere 0."""
        chosen: Array = self.device.xp.where(self.device.put(mask), array, self.dtype.type(0))
        return chosen
