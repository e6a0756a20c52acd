# SPDX-License-Identifier: Apache-2.0
"""The GPU: CuPy's arrays and the kernels of ``_cuda``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, from_dlpack, on_gpu
from rnnkern.devices import philox
from rnnkern.devices.base import Device, get_device
from rnnkern.devices.kernels import Gradient, NetworkKernels
from rnnkern.devices.launches import Draws, KeptLayer, LaunchedNetwork, Pass, Schedule
from rnnkern.devices.spec import LayerSpec, Weights

_GRADIENTS = tuple("d" + name for name in Weights._fields)


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

    def random(self, key: int, stream: int, shape: tuple[int, ...], first: int = 0) -> Array:
        return philox.random(self.xp, key, stream, shape, first)

    def address(self, array: Array) -> int:
        address: int = array.data.ptr  # type: ignore[attr-defined]
        return address

    def writeable(self, array: Array) -> bool:
        return True

    def check(self, spec: LayerSpec) -> None:
        facts = spec.facts
        if not facts.recurrent_product:
            raise ValueError(f"the cell {spec.cell!r} needs device='cpu', got device='cuda'")
        if facts.layer_norm:
            raise ValueError("layer_norm=True needs device='cpu', got device='cuda'")
        if spec.projection:
            raise ValueError("proj_size needs device='cpu', got device='cuda'")

    def network(
        self, spec: LayerSpec, weights: Sequence[Weights], *, batch_first: bool
    ) -> NetworkKernels:
        return LaunchedNetwork(self, spec, weights)

    def layers_per_launch(
        self, spec: LayerSpec, schedule: Schedule, *, backward: bool
    ) -> list[int]:
        """How many of the layers each launch takes, from the first up."""
        if spec.directions > 1:  # a layer takes both directions below
            return [1] * spec.layers
        steps, batch, _ = schedule
        split: list[int] = self.kernels.layers_per_launch(spec, steps, batch, backward)
        return split

    def forward(
        self,
        spec: LayerSpec,
        layers: Sequence[Sequence[Weights]],
        schedule: Schedule,
        x: Array,
        h: Array,
        c: Array | None,
        ys: list[Array],
        masks: Sequence[Array],
        draws: Draws,
        *,
        keep: bool,
        fixed: bool,
    ) -> list[KeptLayer]:
        """See `Launcher`."""
        xp, facts, units = self.xp, spec.facts, spec.units
        call = self._call(spec, schedule, x, len(layers))
        kept: list[KeptLayer] = []
        if keep:
            h_0, c_0 = h.copy(), None if c is None else c.copy()
        strands: list[dict[str, Any]] = []
        for k, weights in enumerate(layers):
            rooms: list[tuple[Array | None, Array | None, Array | None]] = []
            halves = spec.by_direction(ys[k])
            for d, own in enumerate(weights):
                saved = cells = fresh_c = None
                if keep and facts.saved:
                    saved = xp.empty((call.live, facts.saved, units), spec.dtype)
                if keep and c is not None:
                    cells = xp.empty((call.live, units), spec.dtype)
                if keep and spec.cell_zoneout:
                    fresh_c = xp.empty((call.live, units), spec.dtype)
                rooms.append((saved, cells, fresh_c))
                index = len(strands)
                strands.append(
                    {
                        "x": x if k == 0 else None,
                        "h": h[index],
                        "c": None if c is None else c[index],
                        **own._asdict(),
                        "reverse": spec.backwards(d),
                        "y": halves[d],
                        "saved": saved,
                        "cells": cells,
                        "fresh_c": fresh_c,
                        "mask": masks[k] if k < len(masks) else None,
                        **draws.strand(index),
                    }
                )
            if keep:
                first = len(strands) - len(weights)
                kept.append(
                    KeptLayer(
                        schedule,
                        h_0[first : len(strands)],
                        None if c_0 is None else c_0[first : len(strands)],
                        tuple(saved for saved, _, _ in rooms),
                        tuple(cells for _, cells, _ in rooms),
                        tuple(fresh_c for _, _, fresh_c in rooms),
                        [_for_backward(own, fixed=fixed) for own in weights],
                    )
                )
        call.forward(strands, self._workspace(call.forward_workspace), self._stream())
        return kept

    def backward(
        self,
        spec: LayerSpec,
        passes: list[Pass],
        dys: Sequence[Array] | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
        gradients: Sequence[Gradient],
        masks: Sequence[Array],
        draws: Draws,
    ) -> None:
        """See `Launcher`."""
        last = len(passes) - 1
        call = self._call(spec, passes[0].kept.schedule, passes[0].x, len(passes))
        launched: list[dict[str, Any]] = []
        for k, (x, y, own) in enumerate(passes):
            halves = spec.by_direction(y)
            for d, (weight_ih, weight_hh, unit_weights) in enumerate(own.weights):
                index = len(launched)
                launched.append(
                    {
                        "x": x,
                        "h_0": own.h_0[d],
                        "c_0": None if own.c_0 is None else own.c_0[d],
                        "weight_ih": weight_ih,
                        "weight_hh": weight_hh,
                        "unit_weights": unit_weights,
                        "reverse": spec.backwards(d),
                        "y": halves[d],
                        "saved": own.saved[d],
                        "cells": own.cells[d],
                        "fresh_c": own.fresh_c[d],
                        "dy": None if dys is None or k < last else dys[d],
                        "dh": dh[index],
                        "dc": None if dc is None else dc[index],
                        "dx": dx if k == 0 else None,
                        "mask": masks[k] if k < len(masks) else None,
                        **draws.strand(index),
                        **dict(zip(_GRADIENTS, gradients[index], strict=True)),
                    }
                )
        call.backward(launched, self._workspace(call.backward_workspace), self._stream())

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
        if out is None:
            shape = (a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1])
            out = self.xp.empty(shape, a.dtype)
        self.kernels.matmul(a, b, out, transpose_a, transpose_b, bias, False, None, self._stream())
        return out

    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array, Array | None], Array]:
        kept = weight.copy(), None if bias is None else bias.copy()
        return lambda x, out: self.matmul(x, kept[0], transpose_b=True, bias=kept[1], out=out)

    def sums_by_token(self, tokens: Array, rows: Array, count: int) -> Array:
        xp, n = self.xp, len(tokens)
        order = xp.argsort(tokens * n + xp.arange(n))  # stable, whatever the sort is
        tokens, rows = tokens[order], rows[order]
        apart = 1
        while apart < n:  # each row comes to hold the sum of twice as many from it on
            same = tokens[apart:] == tokens[:-apart]
            rows[:-apart] += xp.where(same[:, np.newaxis], rows[apart:], rows.dtype.type(0))
            apart *= 2
        first = xp.ones(n, np.bool_)
        first[1:] = tokens[1:] != tokens[:-1]
        sums = xp.zeros((count + 1, rows.shape[1]), rows.dtype)
        sums[xp.where(first, tokens, count)] = rows  # those that are not first to a place too many
        result: Array = sums[:count]
        return result

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

    def stepper(
        self,
        spec: LayerSpec,
        weights: Sequence[Weights],
        h: Array,
        c: Array | None,
        *,
        narrow: bool,
        by_token: bool,
    ) -> None:
        return None

    def plan(self, spec: LayerSpec, steps: int, batch: int, *, training: bool) -> dict[str, Any]:
        plan: dict[str, Any] = self.kernels.plan(spec, steps, batch, training)
        return plan

    def describe(self) -> str:
        """The devices that there are, in words."""
        return "; ".join(
            f"{d['name']}, compute capability {'.'.join(map(str, d['capability']))}, "
            f"{d['multiprocessors']} multiprocessors, {d['memory'] / 2**30:.0f} GiB"
            for d in self.kernels.devices()
        )

    def _call(self, spec: LayerSpec, schedule: Schedule, x: Array, layers: int) -> Any:
        """The sizes of a call, checked, with its kernels."""
        return self.kernels.Call(spec, *schedule, tokens=x.ndim == 2, layers=layers)

    def _workspace(self, size: int) -> Array:
        """Bytes from CuPy's pool, which aligns to 512."""
        memory: Array = self.xp.empty(size, np.uint8)
        return memory

    def _stream(self) -> int:
        pointer: int = self.xp.cuda.get_current_stream().ptr
        return pointer


def _for_backward(own: Weights, *, fixed: bool) -> tuple[Array, Array, Array | None]:
    """What a backward pass reads of the weights: copies, unless they stay as they are."""
    read = own.weight_ih, own.recurrent, own.unit_weights
    if fixed:
        return read
    weight_ih, weight_hh, unit_weights = read
    return weight_ih.copy(), weight_hh.copy(), None if unit_weights is None else unit_weights.copy()


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
            f"{wanted}rnnkern was built without its CUDA kernels, as it is where no GPU was found; "
            "install it anew, where there is nvcc, with "
            "--config-settings=cmake.define.RNNKERN_CUDA=ON"
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
