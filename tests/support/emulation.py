# SPDX-License-Identifier: Apache-2.0
"""A GPU that is not there: what ``device="cuda"`` needs, in host memory.

``DeviceArray`` stands for CuPy's array and is as strict: it does not mix with NumPy's, is not
converted silently, and each look at a value is counted, since it would wait for a GPU. ``xp``
stands for the module, with functions that CuPy has too and no others. The kernels are rnnkern's own
emulation of the GPU's where that was built, or ``StandIn``, which asks the CPU's kernels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from rnnkern import _core
from rnnkern.devices import Cuda

from support.reference import Array


class Looks:
    """How often a value was looked at: what would have waited for a GPU."""

    count = 0


class DeviceArray(np.ndarray[Any, Any]):
    """An array of the device that is not there."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.ctypes.data if self.size else 0, False),  # as CuPy says it
            "strides": self.strides,
            "version": 3,
        }

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The same, for the emulated kernels."""
        return self.__cuda_array_interface__

    def __dlpack_device__(self) -> tuple[Any, Any]:
        return (2, 0)

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        if method not in ("__call__", "reduce"):
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method}")
        if out is not None:
            options["out"] = tuple(on_host(o) for o in out)
        if options.get("where") is not None:
            options["where"] = on_host(options["where"])
        result = getattr(ufunc, method)(*map(on_host, inputs), **options)
        return out[0] if out is not None and len(out) == 1 else on_device(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(
            f"numpy.{function.__name__} was given an array of the device; xp has its own"
        )

    def __getitem__(self, key: Any) -> Any:
        return on_device(super().__getitem__(self._key(key)))

    def __setitem__(self, key: Any, value: Any) -> None:
        on_host(value)
        super().__setitem__(self._key(key), value)

    @staticmethod
    def _key(key: Any) -> Any:
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, np.ndarray):
                on_host(part)
        return key

    def _looked(self) -> Array:
        Looks.count += 1
        return self.view(np.ndarray)

    def __bool__(self) -> bool:
        return bool(self._looked())

    def __int__(self) -> int:
        return int(self._looked())

    def __float__(self) -> float:
        return float(self._looked())

    def __index__(self) -> int:
        return self._looked().__index__()

    def item(self, *args: Any) -> Any:
        return self._looked().item(*args)

    def tolist(self) -> Any:
        return self._looked().tolist()


def on_device(value: Any) -> Any:
    """Arrays, also those of no axes, as the device's."""
    if isinstance(value, tuple):
        return tuple(on_device(v) for v in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(DeviceArray)
    return value


def on_host(value: Any) -> Any:
    """The memory of a device's array; TypeError for one of the host, as CuPy has it."""
    if isinstance(value, DeviceArray):
        return value.view(np.ndarray)
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)):
        return type(value)(on_host(v) for v in value)
    return value


def poisoned(shape: Any, dtype: Any) -> Array:
    """New memory in which every float is NaN."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    room = np.full((*shape, dtype.itemsize), 255, np.uint8)
    array: Array = room.view(dtype)[..., 0].view(DeviceArray)
    return array


def _function(name: str) -> Callable[..., Any]:
    function = getattr(np, name)

    def call(*args: Any, **options: Any) -> Any:
        for key, value in options.items():
            options[key] = on_host(value)
        result = function(*map(on_host, args), **options)
        if isinstance(result, tuple):
            return on_device(result)
        return result if isinstance(result, bool) else on_device(np.asarray(result))

    return call


FUNCTIONS = (
    *("arange", "argpartition", "argsort", "array", "ascontiguousarray", "clip", "concatenate"),
    *("count_nonzero", "cumsum", "divmod", "full", "may_share_memory", "moveaxis"),
    *("ones", "repeat", "stack", "take_along_axis", "where", "zeros", "zeros_like"),
)


def _xp() -> SimpleNamespace:
    xp = SimpleNamespace(**{name: _function(name) for name in FUNCTIONS})
    xp.ndarray, xp.empty = DeviceArray, poisoned
    xp.asarray = lambda a, *rest: np.array(a, *rest).view(DeviceArray)
    xp.asnumpy = lambda a: np.array(on_host(a))
    return xp


class StandIn:
    """The interface of ``rnnkern._cuda`` over the CPU's kernels, one pass after another.

    Of stacked layers it takes two in a call.
    """

    _facts: ClassVar = {
        "rnn_tanh": (1, 0, False),
        "rnn_relu": (1, 0, False),
        "simplified_gru": (2, 2, False),
        "gru_before": (3, 3, False),
        "gru_after": (3, 4, False),
        "lstm": (4, 4, True),
    }

    def devices(self) -> list[dict[str, Any]]:
        return [{"name": "stand-in", "capability": (0, 0), "multiprocessors": 1, "memory": 2**30}]

    def facts(self, cell: str) -> dict[str, Any]:
        gates, saved, cell_state = self._facts[cell]
        return {
            "gates": gates,
            "saved": saved,
            "cell_state": cell_state,
            "bias_hn": cell == "gru_after",
        }

    def plan(
        self,
        cell: str,
        inputs: int,
        units: int,
        steps: int,
        batch: int,
        directions: int,
        dtype: str,
        compute: str | None,
        training: bool,
        layers: int,
    ) -> dict[str, Any]:
        return {
            "path": "stand-in",
            "layers_per_launch": self._split(layers),
            "groups": 1,
            "blocks_per_group": 1,
            "units_per_block": units,
            "shared_bytes": 0,
            "workspace_bytes": self.forward_workspace(
                cell, directions, inputs, units, steps, batch, None, False, dtype, compute
            ),
            "reason": "the CPU's kernels stand in",
        }

    def forward_workspace(
        self,
        cell: str,
        passes: int,
        inputs: int,
        units: int,
        steps: int,
        batch: int,
        lengths: Array | None,
        tokens: bool,
        dtype: str,
        compute: str | None,
        stacked: bool = False,
    ) -> int:
        return passes * units * np.dtype(dtype).itemsize

    backward_workspace = forward_workspace

    def layers_per_launch(
        self,
        cell: str,
        units: int,
        steps: int,
        batch: int,
        layers: int,
        dtype: str,
        compute: str | None,
        backward: bool,
    ) -> list[int]:
        return self._split(layers)

    @staticmethod
    def _split(layers: int) -> list[int]:
        return [2] * (layers // 2) + [1] * (layers % 2)

    def forward(
        self,
        cell: str,
        passes: list[dict[str, Any]],
        lengths: Array | None,
        compute: str | None,
        workspace: Array,
        stream: int,
        stacked: bool,
    ) -> None:
        assert passes[0]["y"].nbytes == 0 or workspace.nbytes > 0
        workspace[...] = 255
        below: Array | None = None
        for p in passes:
            assert (p["x"] is None) == (below is not None)
            given = {**p, "x": self._clamped(p) if below is None else below}
            mask = given.pop("mask", None)
            keep = p["saved"] is not None or p["cells"] is not None
            kept = {name: given.pop(name) for name in ("saved", "cells")}
            made = _core.forward(cell, lengths=lengths, keep=keep, **given)
            for room, array in zip(kept.values(), made, strict=True):
                assert (room is None) == (array is None)
                if array is not None:
                    room.view(np.ndarray)[...] = array
            if stacked:
                below = p["y"].view(np.ndarray)
                below = below if mask is None else below * mask.view(np.ndarray)

    def backward(
        self,
        cell: str,
        passes: list[dict[str, Any]],
        lengths: Array | None,
        compute: str | None,
        workspace: Array,
        stream: int,
        stacked: bool,
    ) -> None:
        workspace[...] = 255
        from_above: Array | None = None
        for k, p in reversed(list(enumerate(passes))):
            given = {**p, "x": self._clamped(p)}
            mask = given.pop("mask", None)
            if stacked and k > 0:
                given["dx"] = np.zeros_like(given["x"])
            if from_above is not None:
                given["dy"] = from_above if mask is None else from_above * mask.view(np.ndarray)
            w_ih, w_hh = (given.pop(name) for name in ("weight_ih", "weight_hh"))
            packed = _core.Packed(cell, w_ih, w_hh, None, None, backward=True)
            _core.backward(cell, lengths=lengths, packed=packed, **given)
            from_above = given["dx"] if stacked else None

    def matmul(
        self,
        a: Array,
        b: Array,
        out: Array,
        transpose_a: bool,
        transpose_b: bool,
        bias: Array | None,
        accumulate: bool,
        compute: str | None,
        stream: int,
    ) -> None:
        _core.matmul(
            a,
            b,
            out,
            transpose_a=transpose_a,
            transpose_b=transpose_b,
            bias=bias,
            accumulate=accumulate,
        )

    @staticmethod
    def _clamped(p: dict[str, Any]) -> Array:
        """Tokens as the device's kernels take those that are out of range."""
        x: Array = p["x"].view(np.ndarray)
        return x if x.ndim == 3 else np.clip(x, 0, p["weight_ih"].shape[1] - 1)


class EmulatedCuda(Cuda):
    """``device="cuda"`` in host memory."""

    def __init__(self, kernels: Any) -> None:
        super().__init__(_xp(), kernels)

    def address(self, array: Array) -> int:
        return array.ctypes.data

    def _workspace(self, size: int) -> Array:
        room = np.full(size + 256, 255, np.uint8)
        start = -room.ctypes.data % 256
        aligned: Array = room[start : start + size].view(DeviceArray)
        return aligned

    def _stream(self) -> int:
        return 0


def emulated_kernels() -> ModuleType | None:
    """``rnnkern._emulation``, where it was built."""
    try:
        return importlib.import_module("rnnkern._emulation")
    except ModuleNotFoundError:
        return None
