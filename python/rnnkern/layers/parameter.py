# SPDX-License-Identifier: Apache-2.0
"""One array of a layer.

A ``Parameter`` owns the memory that the kernels read, and shows callers a view of it: whatever they
do to the view's shape, dtype or flags, the kernels' array is as it was made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.devices import Device


class Parameter:
    """One array of a layer.

    Attributes:
        name: in the layer's own mapping.
        shape: fixed, as is the dtype.
        own: the array that the kernels read, C-contiguous and never handed out.

    """

    __slots__ = ("_device", "_seen", "dtype", "name", "own", "shape")

    own: Array
    _seen: Array

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], device: Device
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._device = device

    @property
    def label(self) -> str:
        """As errors call it."""
        return f"params[{self.name!r}]"

    def fill(self, values: Any) -> None:
        """Take memory and these values, NumPy's or the device's."""
        self._take(self._device.xp.empty(self.shape, self.dtype))
        self.own[...] = self._device.put(values)

    def adopt(self, array: Array) -> None:
        """Be this array, which is others' too."""
        self._take(array)

    def seen(self) -> Array:
        """What callers get: the same array each time, unless they gave it another shape."""
        if (self._seen.shape, self._seen.dtype) != (self.shape, self.dtype):
            self._seen = self.own.view()
        return self._seen

    def checked(self, label: str, value: Any) -> Array:
        """`value` as an array that can be written here."""
        array = self._device.shaped(label, value, self.shape, self.dtype)
        if not self._device.writeable(self._seen):
            raise ValueError(f"{label} is read-only: its setflags(write=False) was called")
        return array

    def overlaps(self, array: Array) -> bool:
        """Whether an array of its device may share memory with this one."""
        return bool(self._device.xp.may_share_memory(self.own, array))

    def _take(self, own: Array) -> None:
        self.own = own
        self._seen = own.view()

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        twin = Parameter(self.name, self.shape, self.dtype, self._device)
        twin._take(self.own.copy())
        return twin

    def __getstate__(self) -> tuple[Any, ...]:
        return self.name, self.shape, self.dtype, self._device, self.own

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, self.shape, self.dtype, self._device, own = state
        self._take(own)
