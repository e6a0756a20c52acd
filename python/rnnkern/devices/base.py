# SPDX-License-Identifier: Apache-2.0
"""Where arrays live and kernels run: the one place that tells a CPU from a GPU.

Everything else asks a ``Device``: for its array module ``xp`` (NumPy or CuPy), for arrays taken in,
and for the kernels. NumPy's ufuncs serve both, since CuPy answers them for its own arrays.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rnnkern import _core
from rnnkern._checks import (
    Array,
    choice,
    conversion,
    dtype_text,
    on_gpu,
)
from rnnkern.devices.memory import Region

# What a kernel takes for one direction of a layer, by name; None stands for what is absent.
# Forward: x, h, c, weight_ih, weight_hh, bias, bias_hn, reverse, y. Backward: x, h_0, c_0,
# weights (as kept), reverse, y, saved, cells, dy, dh, dc, dx, dweight_ih, dweight_hh, dbias,
# dbias_hn. Of stacked layers in one call all but the last may also have mask.
Arguments = dict[str, Any]
# (saved, cells, weights): what backward needs beside x, y and the initial state. The weights are a
# snapshot, so that a later step of training does not change them.
Kept = tuple["Array | None", "Array | None", Any]


class Device(ABC):
    """A place for arrays, and the kernels that run there.

    Attributes:
        name: what ``device=`` says.
        library: what the array module is called.
        xp: the array module, NumPy or CuPy.
        computes: what ``compute=`` may be.
        has_stepper: whether ``stepper`` is there: one step of all layers as one kernel.
        values_are_free: whether a value can be looked at without waiting for the device.
        block: how many numbers an elementwise update goes over at a time.

    """

    name: ClassVar[str]
    library: ClassVar[str]
    computes: ClassVar[tuple[str | None, ...]]
    has_stepper: ClassVar[bool]
    values_are_free: ClassVar[bool]
    block: ClassVar[int]
    xp: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a device is that device; a pickled one is looked up where it is read."""
        return get_device, (self.name,)

    # -- arrays -------------------------------------------------------------------------------

    @abstractmethod
    def array(self, name: str, value: Any) -> Array:
        """`value` as one of the device's arrays, uncopied; TypeError where it is elsewhere."""

    @abstractmethod
    def put(self, array: Any) -> Array:
        """An array of the host, or of this device, as one of this device."""

    @abstractmethod
    def get(self, array: Array) -> NDArray[Any]:
        """One of the device's arrays as NumPy's, when all work on it is done."""

    @abstractmethod
    def random(self, key: int, stream: int, shape: tuple[int, ...]) -> Array:
        """float32 in [0, 1) that follow from the two numbers alone, the same on every device."""

    @abstractmethod
    def address(self, array: Array) -> int:
        """Where the array's first element lies."""

    def aligned(self, array: Array) -> bool:
        """Whether the array's elements stand at multiples of their size."""
        return self.address(array) % array.itemsize == 0

    @abstractmethod
    def writeable(self, array: Array) -> bool:
        """Whether the array may be written to."""

    def region(self, array: Array) -> Region:
        """The memory that the array lies in."""
        return Region(self.address(array), array.shape, array.strides, array.itemsize)

    def overlap(self, a: Array, b: Array) -> bool:
        """Whether the arrays share memory."""
        near = self.xp.may_share_memory(a, b)
        return bool(near) and self.region(a).overlaps(self.region(b))

    def shaped(self, name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """`value` as an array of that very shape and dtype."""
        array = self.array(name, value)
        if array.dtype != dtype:
            raise TypeError(
                f"{name} must be {dtype.name}, got {dtype_text(array.dtype)}: {conversion(dtype)}"
            )
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        return array

    def contiguous(self, array: Array) -> Array:
        """`array`, or a copy where it is not C-contiguous or its elements are not aligned."""
        if array.flags.c_contiguous and self.aligned(array):
            return array
        copy: Array = self.xp.array(array, order="C")
        return copy

    def walkable(self, array: Array) -> Array:
        """`array`, or a copy where its elements or strides are not aligned."""
        item = array.itemsize
        walkable = self.aligned(array)
        for stride in array.strides:  # a generator would take three times as long
            walkable &= stride % item == 0
        if walkable:
            return array
        copy: Array = self.xp.array(array, order="C")
        return copy

    def last_axis_contiguous(self, array: Array) -> Array:
        """`array`, or a copy where the kernels could not walk its last axis or its strides."""
        if array.shape[-1] == 1 or array.strides[-1] == array.itemsize:
            return self.walkable(array)
        return self.contiguous(array)

    # -- kernels ------------------------------------------------------------------------------

    @abstractmethod
    def forward(
        self,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        *,
        keep: bool,
        packed: list[Any] | None = None,
        stacked: bool = False,
    ) -> list[Kept]:
        """All directions of one layer; h and c change in place, y is written.

        `packed` is what ``pack`` gave for each direction, or None. Gives, for each direction, what
        backward needs, Nones unless `keep`.

        With `stacked` the passes are layers in one direction from the first up, as many as
        ``layers_per_call`` says: each but the first has None as x, for it takes the y below it,
        times that layer's mask.
        """

    @abstractmethod
    def backward(
        self,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        *,
        stacked: bool = False,
    ) -> None:
        """The gradients of ``forward``: dh and dc change in place, dx and the others are added to.

        "weights" among the arguments is what ``forward`` kept of them.

        Where ``state_gradients`` is among the arguments it is written. With `stacked` each pass but
        the first has None as dx, and each but the last None as dy.
        """

    @abstractmethod
    def layers_per_call(
        self,
        cell: str,
        units: int,
        steps: int,
        batch: int,
        layers: int,
        dtype: np.dtype[Any],
        compute: str | None,
        *,
        backward: bool,
    ) -> list[int]:
        """How many of the stacked layers in one direction each call takes, from the first up."""

    @abstractmethod
    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        bias: Array | None = None,
    ) -> Array:
        """The product a @ b + bias of contiguous 2-D arrays."""

    @abstractmethod
    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array], Array]:
        """``rows @ weight.T + bias`` as a function of contiguous rows, for many calls.

        It has copies of the weight and the bias, packed where that helps.
        """

    @abstractmethod
    def adam(
        self,
        p: Array,
        grad: Array,
        first: Array,
        second: Array,
        *,
        decay: float,
        first_beta: float,
        second_beta: float,
        epsilon: float,
        rate: float,
    ) -> None:
        """One step of Adam in place, over sums of gradients and of their squares.

        ``first ← first_beta·first + grad``, ``second ← second_beta·second + grad²``, then
        ``p ← decay·p - rate·first / (√second + epsilon)``. A gradient counts as at most
        ±√(the largest number · (1 - second_beta))/2, so that no sum of squares overflows, and as
        NaN where it is not finite. On a CPU, where denormal numbers are slow, sums are
        rounded to multiples of the smallest normal number.
        """

    @abstractmethod
    def pack(
        self,
        cell: str,
        weight_ih: Array,
        weight_hh: Array,
        bias: Array | None,
        bias_hn: Array | None,
        compute: str | None,
        *,
        with_input: bool,
    ) -> Any:
        """The weights as many calls of ``forward`` want them, or None where that gains nothing.

        Without `with_input` their x must be tokens.
        """

    @abstractmethod
    def stepper(
        self,
        cell: str,
        layers: list[tuple[Array, Array, Array | None, Array | None]],
        h: Array,
        c: Array | None,
        compute: str | None,
        *,
        narrow: bool,
        by_token: bool,
    ) -> _core.Stepper | None:
        """One step of all layers as one kernel, or None where ``forward`` serves better.

        With `by_token` x is tokens alone, and the first layer's weight_ih must stay as it is: no
        more of it is packed than the columns of tokens that come.
        """

    @abstractmethod
    def plan(
        self,
        cell: str,
        inputs: int,
        units: int,
        steps: int,
        batch: int,
        directions: int,
        layers: int,
        dtype: np.dtype[Any],
        compute: str | None,
        *,
        training: bool,
    ) -> dict[str, Any]:
        """How a layer of that size, the first of so many, is computed, and why."""


# Each is a module beside this one, by that name, with a function ``open_device``.
NAMES = ("cpu", "cuda")
_ready: dict[str, Device] = {}


def get_device(name: str) -> Device:
    """The device of that name.

    Raises:
        ValueError: there is no such name, or no GPU can be used: why, and what helps.

    """
    if name not in _ready:
        choice("device", name, NAMES)
        _ready[name] = importlib.import_module(f"rnnkern.devices.{name}").open_device()
    return _ready[name]


def device_of(array: Any) -> Device:
    """The device that holds an array, for functions that belong to no layer."""
    return get_device("cuda" if on_gpu(array) else "cpu")


def to_host(array: Any) -> NDArray[Any]:
    """An array of any device as NumPy's."""
    return device_of(array).get(array)
