# SPDX-License-Identifier: Apache-2.0
"""What of a layer's outputs a head sees: all steps, the last, their mean or their greatest.

y is (T, B, F), or (B, T, F) where ``axis``, that of the steps, is 1; of one sequence it is (T, F).
Steps past a row's length and those that it skips do not count, and a row without steps gives 0. A
head sees (B, F), or (F,), but for "all" of the steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array
from rnnkern.devices import Device

READOUTS = ("all", "last", "mean", "max")


class Readout:
    """One of the ways, for one call, of which it keeps what its backward pass needs.

    Args:
        kind: One of READOUTS.
        device: Where y is.
        axis: Of the steps of y.
        y: What the layer gave.
        live: Which steps count, in host memory and with the axes of y but the last; or ``None``.

    """

    def __init__(
        self, kind: str, device: Device, axis: int, y: Array, live: NDArray[np.bool_] | None
    ) -> None:
        self._kind = kind
        self._device = device
        self._axis = axis if y.ndim == 3 else 0
        self._shape, self._dtype = y.shape, y.dtype
        self._live = live
        self._place: Array | None = None  # of the greatest, among the steps
        self._y = y if kind in ("all", "mean", "max") else None

    def forward(self, last: Array) -> Array:
        """What the head sees; ``last`` (B, F) is the top layer's last h."""
        y, self._y = self._y, None
        if y is None:
            return last
        if self._kind == "all":
            return y
        if self._kind == "mean":
            mean: Array = y.sum(axis=self._axis) * self._share()
            return mean
        if self._shape[self._axis] == 0:
            zeros: Array = self._device.xp.zeros(last.shape, self._dtype)
            return zeros
        counted = y if self._live is None else self._device.xp.where(self._there(), y, -np.inf)
        place = self._device.xp.expand_dims(counted.argmax(axis=self._axis), self._axis)
        self._place = place
        greatest: Array = self._device.xp.take_along_axis(y, place, self._axis).squeeze(self._axis)
        return greatest  # y is 0 where a row has no steps

    def backward(self, dfeatures: Array) -> tuple[Array | None, Array | None]:
        """∂L/∂y and ∂L/∂last of ∂L/∂(what the head saw); None is zero."""
        if self._kind == "all":
            return dfeatures, None
        if self._kind == "last":
            return None, dfeatures
        xp, zero = self._device.xp, self._dtype.type(0)
        if self._kind == "mean":
            spread = xp.expand_dims(dfeatures * self._share(), self._axis)
            if self._live is None:
                return xp.broadcast_to(spread, self._shape), None
            return xp.where(self._there(), spread, zero), None
        if self._place is None:
            return None, None
        along = [1] * len(self._shape)
        along[self._axis] = -1
        chosen = xp.arange(self._shape[self._axis]).reshape(along) == self._place
        if self._live is not None:
            chosen &= self._there()
        return xp.where(chosen, xp.expand_dims(dfeatures, self._axis), zero), None

    def _there(self) -> Array:
        """Which steps count, with an axis for the features."""
        assert self._live is not None
        return self._device.put(self._live[..., None])

    def _share(self) -> Any:
        """One over each row's number of steps."""
        if self._live is None:
            return self._dtype.type(1.0 / max(self._shape[self._axis], 1))
        count = self._live.sum(axis=self._axis)
        return self._device.put((1.0 / np.maximum(count, 1)).astype(self._dtype)[..., None])
