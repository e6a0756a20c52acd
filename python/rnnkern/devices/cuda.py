# SPDX-License-Identifier: Apache-2.0
"""The GPU: CuPy's arrays and the kernels of ``_cuda``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, from_dlpack, on_gpu
from rnnkern.devices import philox
from rnnkern.devices.base import Arguments, Device, Kept, get_device


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


def cuda_status() -> str:
    """Whether ``device="cuda"`` can be used, and why."""
    try:
        device = get_device("cuda")
    except ValueError as error:
        return f"no ({error})"
    assert isinstance(device, Cuda)
    return f"yes ({device.describe()})"


def open_device() -> Cuda:
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
