# SPDX-License-Identifier: Apache-2.0
"""Where arrays live and kernels run: the one place that tells a CPU from a GPU.

Everything else asks a ``Device``: for its array module ``xp`` (NumPy or CuPy), for arrays taken in,
and for the kernels. NumPy's ufuncs serve both, since CuPy answers them for its own arrays.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rnnkern import _core
from rnnkern._checks import FLOATS, Array, choice, conversion, dtype_text, on_gpu
from rnnkern.devices.kernels import NetworkKernels
from rnnkern.devices.spec import LayerSpec, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rnnkern.devices.memory import Region


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
    def random(self, key: int, stream: int, shape: tuple[int, ...], first: int = 0) -> Array:
        """float32 in [0, 1) that follow from the two numbers alone, the same on every device.

        Those from `first` on of an endless row of them.
        """

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
        from rnnkern.devices.memory import Region

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
                f"{name} must be {dtype.name}, got {dtype_text(array.dtype)}: "
                f"{conversion(dtype, array.dtype)}"
            )
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        return array

    def floats(self, name: str, value: Any) -> Array:
        """`value` as an array of float32 or float64."""
        array = self.array(name, value)
        if array.dtype not in FLOATS:
            raise TypeError(
                f"{name} must be float32 or float64, got {dtype_text(array.dtype)}: "
                f"{conversion(FLOATS[0])}"
            )
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
        if array.flags.c_contiguous and self.aligned(array):
            return array
        if array.shape[-1] == 1 or array.strides[-1] == array.itemsize:
            return self.walkable(array)
        return self.contiguous(array)

    # -- kernels ------------------------------------------------------------------------------

    @abstractmethod
    def check(self, spec: LayerSpec) -> None:
        """Refuse, by a ValueError that names the option, layers that the kernels cannot run."""

    @abstractmethod
    def network(
        self, spec: LayerSpec, weights: Sequence[Weights], *, batch_first: bool
    ) -> NetworkKernels:
        """The kernels' hold of a network's weights.

        `weights` are by layer and direction, each an array of the device for life. The arrays are
        held, not copied: what is written to them later counts. `batch_first` is how callers have
        x and y.
        """

    @abstractmethod
    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        bias: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """The product a @ b + bias of contiguous 2-D arrays, in `out` if given."""

    @abstractmethod
    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array, Array | None], Array]:
        """``rows @ weight.T + bias`` as a function of contiguous rows, for many calls.

        Its second argument is where the product goes, contiguous and apart from the rows, or None.
        It has copies of the weight and the bias, packed where that helps.
        """

    @abstractmethod
    def sums_by_token(self, tokens: Array, rows: Array, count: int) -> Array:
        """The sums (count, D) of those rows (N, D) whose tokens (N,), in 0..count-1, are equal.

        Many rows of one token are summed pairwise or in blocks, since long sums of float32 lose
        digits, and in an order that follows from the tokens alone.
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
    def stepper(
        self,
        spec: LayerSpec,
        weights: Sequence[Weights],
        h: Array,
        c: Array | None,
        *,
        narrow: bool,
        by_token: bool,
    ) -> _core.Stepper | None:
        """One step of all layers as one kernel, or None where ``forward`` serves better.

        With `narrow` it keeps the weight matrices as bfloat16. With `by_token` x is tokens alone,
        and the first layer's weight_ih must stay as it is: no more of it is packed than the columns
        of tokens that come.
        """

    @abstractmethod
    def plan(self, spec: LayerSpec, steps: int, batch: int, *, training: bool) -> dict[str, Any]:
        """How the first layers of a call of that size are computed, and why."""


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


def masked(array: Array, mask: Array) -> Array:
    """Their product, whatever ``np.seterr`` says of numbers that vanish or overflow in it."""
    with np.errstate(all="ignore"):
        product: Array = array * mask
    return product
