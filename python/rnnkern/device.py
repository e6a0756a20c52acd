# SPDX-License-Identifier: Apache-2.0
"""Where arrays live and kernels run: the one place that tells a CPU from a GPU.

Everything else asks a ``Device``: for its array module ``xp`` (NumPy or CuPy), for arrays taken in,
and for the kernels. NumPy's ufuncs serve both, since CuPy answers them for its own arrays.
"""

from __future__ import annotations

import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rnnkern import _core, philox
from rnnkern._checks import (
    Array,
    choice,
    conversion,
    dtype_text,
    from_dlpack,
    host_array,
    on_gpu,
)
from rnnkern._memory import Region

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


class Cpu(Device):
    """NumPy arrays and the kernels of ``_core``."""

    name = "cpu"
    library = "NumPy"
    computes = (None, "bfloat16")
    has_stepper = True
    values_are_free = True
    block = 32768  # a block of every operand of an update fits the L2 cache
    xp = np

    def array(self, name: str, value: Any) -> Array:
        return host_array(name, value)

    def put(self, array: Any) -> Array:
        return np.asarray(array)

    def get(self, array: Array) -> NDArray[Any]:
        return np.asarray(array)

    def random(self, key: int, stream: int, shape: tuple[int, ...]) -> Array:
        bits = np.random.Philox(key=np.array([key, stream], np.uint64))
        return np.random.Generator(bits).random(shape, dtype=np.float32)

    def address(self, array: Array) -> int:
        address: int = array.__array_interface__["data"][0]
        return address

    def aligned(self, array: Array) -> bool:
        return array.flags.aligned

    def writeable(self, array: Array) -> bool:
        return array.flags.writeable

    def forward(
        self,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        *,
        keep: bool,
        packed: list[_core.Packed] | None = None,
        stacked: bool = False,
    ) -> list[Kept]:
        made: list[Kept] = []
        for index, p in enumerate(passes):
            saved, cells = _core.forward(
                cell,
                p["x"],
                p["h"],
                p["c"],
                p["weight_ih"],
                p["weight_hh"],
                p["bias"],
                p["bias_hn"],
                lengths,
                p["reverse"],
                p["y"],
                keep,
                None if packed is None else packed[index],
                compute,
            )
            weights = None
            if keep:
                weights = _core.Packed(
                    cell,
                    p["weight_ih"],
                    p["weight_hh"],
                    None,
                    None,
                    compute,
                    backward=True,
                    with_input=p["x"].ndim == 3,
                )
            made.append((saved, cells, weights))
        return made

    def backward(
        self,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        *,
        stacked: bool = False,
    ) -> None:
        for p in passes:
            # By position: binding two dozen names would take as long as a small layer.
            _core.backward(
                cell,
                p["x"],
                p["h_0"],
                p["c_0"],
                p["weights"],
                lengths,
                p["reverse"],
                p["y"],
                p["saved"],
                p["cells"],
                p["dy"],
                p["dh"],
                p["dc"],
                p["dx"],
                p["dweight_ih"],
                p["dweight_hh"],
                p["dbias"],
                p["dbias_hn"],
                p["state_gradients"],
                compute,
            )

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
        return [1] * layers

    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        bias: Array | None = None,
    ) -> Array:
        return _core.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b, bias=bias)

    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array], Array]:
        return _core.PackedMatrix(weight, bias).times

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
        _core.adam(
            p,
            self.contiguous(grad),
            first,
            second,
            decay=decay,
            first_beta=first_beta,
            second_beta=second_beta,
            epsilon=epsilon,
            rate=rate,
        )

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
    ) -> _core.Packed:
        return _core.Packed(
            cell, weight_ih, weight_hh, bias, bias_hn, compute, with_input=with_input
        )

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
        return _core.Stepper(cell, layers, h, c, narrow, compute, by_token)

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
        row_groups, unit_groups, reason = _core.plan(
            cell, inputs, units, steps, batch, dtype == np.float64, compute
        )
        return {
            "isa": _core.isa(),
            "threads": row_groups * unit_groups,
            "row_groups": row_groups,
            "unit_groups": unit_groups,
            "reason": reason,
            "product": dtype.name if compute is None else _core.bfloat16_product(),
        }


class Cuda(Device):
    """CuPy arrays, on CuPy's current device and stream, and the kernels of ``_cuda``.

    Nothing here waits for the device but ``get`` and what Python does with a value.
    """

    name = "cuda"
    library = "CuPy"
    computes = (None, "tfloat32", "bfloat16", "float16")
    has_stepper = False
    values_are_free = False
    block = sys.maxsize  # a launch for each block is what would cost

    def __init__(self, xp: Any, kernels: Any) -> None:
        self.xp = xp
        self.kernels = kernels

    def array(self, name: str, value: Any) -> Array:
        if not isinstance(value, self.xp.ndarray):
            if not on_gpu(value):
                raise TypeError(
                    f"{name} must be on the GPU for device='cuda', got {type(value)!r} in host "
                    "memory: cupy.asarray copies it there"
                )
            # DLPack first: it orders the two libraries' streams without waiting.
            take = self.xp.from_dlpack if hasattr(value, "__dlpack__") else self.xp.asarray
            self._keep_from_reuse(value)
            value = from_dlpack(name, value, take)
        array: Array = value
        return array

    def _keep_from_reuse(self, value: Any) -> None:
        """Have PyTorch give a tensor's memory to no one else before our stream is done with it.

        Once nothing holds the tensor PyTorch reuses its memory at once, in the order of its own
        stream, of which work that we have only queued knows nothing.
        """
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            value.record_stream(torch.cuda.ExternalStream(self._stream(), device=value.device))

    def put(self, array: Any) -> Array:
        moved: Array = self.xp.asarray(array)
        return moved

    def get(self, array: Array) -> NDArray[Any]:
        copied: NDArray[Any] = self.xp.asnumpy(array)
        return copied

    def random(self, key: int, stream: int, shape: tuple[int, ...]) -> Array:
        return philox.random(self.xp, key, stream, shape)

    def address(self, array: Array) -> int:
        address: int = array.data.ptr  # type: ignore[attr-defined]
        return address

    def writeable(self, array: Array) -> bool:
        return True

    def forward(
        self,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        *,
        keep: bool,
        packed: list[None] | None = None,
        stacked: bool = False,
    ) -> list[Kept]:
        facts = self.kernels.facts(cell)
        saved_shape: tuple[int, ...] | None = None
        cells_shape: tuple[int, ...] | None = None
        if keep:
            (steps, batch), units = passes[0]["x"].shape[:2], passes[0]["weight_hh"].shape[1]
            live = steps * batch if lengths is None else int(lengths.sum())
            saved_shape = (live, facts["saved"], units) if facts["saved"] else None
            cells_shape = (live, units) if facts["cell_state"] else None
        for p in passes:
            for name, shape in (("saved", saved_shape), ("cells", cells_shape)):
                p[name] = None if shape is None else self.xp.empty(shape, p["y"].dtype)
        self._launch("forward", cell, passes, lengths, compute, stacked)
        weights = ("weight_ih", "weight_hh")
        return [
            (p["saved"], p["cells"], {w: p[w].copy() for w in weights} if keep else None)
            for p in passes
        ]

    def backward(
        self,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        *,
        stacked: bool = False,
    ) -> None:
        if any(p.pop("state_gradients", None) is not None for p in passes):
            raise ValueError(
                "state_gradients needs device='cpu', got a layer with device='cuda': rnnkern.save "
                "it and load it with device='cpu'"
            )
        for p in passes:
            p.update(p.pop("weights"))
        self._launch("backward", cell, passes, lengths, compute, stacked)

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
        split: list[int] = self.kernels.layers_per_launch(
            cell, units, steps, batch, layers, dtype.name, compute, backward
        )
        return split

    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        bias: Array | None = None,
    ) -> Array:
        shape = (a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1])
        out: Array = self.xp.empty(shape, a.dtype)
        self.kernels.matmul(a, b, out, transpose_a, transpose_b, bias, False, None, self._stream())
        return out

    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array], Array]:
        kept = weight.copy(), None if bias is None else bias.copy()
        return lambda rows: self.matmul(rows, kept[0], transpose_b=True, bias=kept[1])

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
        limit = math.sqrt(float(np.finfo(p.dtype).max) * (1.0 - second_beta)) / 2.0
        grad = self.xp.clip(grad, -limit, limit) + (grad - grad)  # NaN where it is not finite
        first *= first_beta
        first += grad
        second *= second_beta
        second += np.square(grad)
        p *= decay
        p -= rate * first / (np.sqrt(second) + epsilon)

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
    ) -> None:
        return None

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
    ) -> None:
        return None

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
        plan: dict[str, Any] = self.kernels.plan(
            cell, inputs, units, steps, batch, directions, dtype.name, compute, training, layers
        )
        return plan

    def describe(self) -> str:
        """The devices that there are, in words."""
        return "; ".join(
            f"{d['name']}, compute capability {'.'.join(map(str, d['capability']))}, "
            f"{d['multiprocessors']} multiprocessors, {d['memory'] / 2**30:.0f} GiB"
            for d in self.kernels.devices()
        )

    def _launch(
        self,
        kind: str,
        cell: str,
        passes: list[Arguments],
        lengths: Array | None,
        compute: str | None,
        stacked: bool,
    ) -> None:
        """Call a kernel, "forward" or "backward", with the memory that it asks for."""
        x, weight_ih = passes[0]["x"], passes[0]["weight_ih"]
        size = getattr(self.kernels, f"{kind}_workspace")(
            cell,
            len(passes),
            weight_ih.shape[1],
            passes[0]["weight_hh"].shape[1],
            *x.shape[:2],
            lengths,
            x.ndim == 2,
            weight_ih.dtype.name,
            compute,
            stacked,
        )
        workspace, stream = self._workspace(size), self._stream()
        getattr(self.kernels, kind)(cell, passes, lengths, compute, workspace, stream, stacked)

    def _workspace(self, size: int) -> Array:
        """Bytes from CuPy's pool, which aligns to 512."""
        memory: Array = self.xp.empty(size, np.uint8)
        return memory

    def _stream(self) -> int:
        pointer: int = self.xp.cuda.get_current_stream().ptr
        return pointer


NAMES = (Cpu.name, Cuda.name)
_ready: dict[str, Device] = {Cpu.name: Cpu()}


def get_device(name: str) -> Device:
    """The device of that name.

    Raises:
        ValueError: there is no such name, or no GPU can be used: why, and what helps.

    """
    if name not in _ready:
        choice("device", name, NAMES)
        _ready[name] = _open_cuda()
    return _ready[name]


def device_of(array: Any) -> Device:
    """The device that holds an array, for functions that belong to no layer."""
    return get_device(Cuda.name if on_gpu(array) else Cpu.name)


def to_host(array: Any) -> NDArray[Any]:
    """An array of any device as NumPy's."""
    return device_of(array).get(array)


def cuda_status() -> str:
    """Whether ``device="cuda"`` can be used, and why."""
    try:
        device = get_device(Cuda.name)
    except ValueError as error:
        return f"no ({error})"
    assert isinstance(device, Cuda)
    return f"yes ({device.describe()})"


def _open_cuda() -> Cuda:
    """The GPU, once its three needs are met: our kernels, CuPy, a device."""
    wanted = "device='cuda' cannot be used: "
    try:
        kernels = importlib.import_module("rnnkern._cuda")
    except ModuleNotFoundError:
        raise ValueError(
            f"{wanted}rnnkern was built without its CUDA kernels; install it anew where nvcc is "
            "found, with -C cmake.define.RNNKERN_CUDA=ON"
        ) from None
    try:
        xp = importlib.import_module("cupy")
    except ImportError as error:
        raise ValueError(
            f"{wanted}CuPy cannot be imported ({error}); pip install 'rnnkern[cuda13]'"
        ) from error
    try:
        found = kernels.devices()
    except RuntimeError as error:
        raise ValueError(f"{wanted}the driver does not answer ({error}); see nvidia-smi") from error
    if not found:
        raise ValueError(f"{wanted}there is no CUDA device; nvidia-smi lists those that there are")
    return Cuda(xp, kernels)
