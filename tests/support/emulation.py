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
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern.devices import Cuda, LayerSpec

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
    *("broadcast_to", "count_nonzero", "cumsum", "divmod", "expand_dims", "full"),
    *("matmul", "may_share_memory", "moveaxis"),
    *("ones", "repeat", "stack", "take", "take_along_axis", "where", "zeros", "zeros_like"),
)


def _xp() -> SimpleNamespace:
    xp = SimpleNamespace(**{name: _function(name) for name in FUNCTIONS})
    xp.ndarray, xp.empty = DeviceArray, poisoned
    xp.asarray = lambda a, *rest: np.array(a, *rest).view(DeviceArray)
    xp.asnumpy = lambda a: np.array(on_host(a))
    return xp


class StandIn:
    """The interface of ``rnnkern._cuda`` over the CPU's kernels, one strand after another.

    Of stacked layers it takes two in a call.
    """

    def devices(self) -> list[dict[str, Any]]:
        return [{"name": "stand-in", "capability": (0, 0), "multiprocessors": 1, "memory": 2**30}]

    def plan(self, spec: LayerSpec, steps: int, batch: int, training: bool) -> dict[str, Any]:
        return {
            "path": "stand-in",
            "layers_per_launch": self.layers_per_launch(spec, steps, batch, False),
            "groups": 1,
            "blocks_per_group": 1,
            "units_per_block": spec.units,
            "shared_bytes": 0,
            "workspace_bytes": StandInCall(spec, steps, batch, None).forward_workspace,
            "reason": "the CPU's kernels stand in",
        }

    def layers_per_launch(
        self, spec: LayerSpec, steps: int, batch: int, backward: bool
    ) -> list[int]:
        return [2] * (spec.layers // 2) + [1] * (spec.layers % 2)

    def Call(self, *args: Any, **options: Any) -> StandInCall:
        return StandInCall(*args, **options)

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


KEPT = ("saved", "cells", "fresh_c")


class StandInCall:
    """``rnnkern._cuda.Call``."""

    def __init__(
        self,
        spec: LayerSpec,
        steps: int,
        batch: int,
        lengths: Array | None,
        *,
        tokens: bool = False,
        layers: int = 1,
    ) -> None:
        self._spec, self._lengths, self._stacked = spec, lengths, layers > 1
        self.live = steps * batch if lengths is None else int(lengths.sum())
        self.forward_workspace = layers * spec.units * spec.dtype.itemsize
        self.backward_workspace = self.forward_workspace

    def forward(self, strands: list[dict[str, Any]], workspace: Array, stream: int) -> None:
        assert strands[0]["y"].nbytes == 0 or workspace.nbytes > 0
        workspace[...] = 255
        below: Array | None = None
        for p in strands:
            assert (p["x"] is None) == (below is not None)
            x = self._clamped(p) if below is None else below
            keep = p["saved"] is not None or p["cells"] is not None
            y, h, c, kept = self._run(p, x, p["h"], p["c"], keep=keep)
            d = int(p["reverse"])
            made = {"y": y[self._half(d)], "h": h[d], "c": None if c is None else c[d]}
            if kept is not None:
                made |= {name: getattr(kept, name)[d] for name in KEPT}
            for name, array in made.items():
                assert array is None or p[name] is not None, name
                if p[name] is not None:
                    host(p[name])[...] = array
            if self._stacked:
                below = made["y"] if p["mask"] is None else made["y"] * host(p["mask"])

    def backward(self, strands: list[dict[str, Any]], workspace: Array, stream: int) -> None:
        workspace[...] = 255
        from_above: Array | None = None
        for k, p in reversed(list(enumerate(strands))):
            x, d, mask = self._clamped(p), int(p["reverse"]), p["mask"]
            # What the other direction would have is made anew, and gets no gradient.
            y, h, c, kept = self._run(p, x, p["h_0"], p["c_0"], keep=True)
            assert kept is not None
            y[self._half(d)] = host(p["y"])
            for name in KEPT:
                if (made := getattr(kept, name)[d]) is not None:
                    made[...] = host(p[name])
            dy, dh = np.zeros_like(y), np.zeros_like(h)
            dc = None if c is None else np.zeros_like(c)
            if p["dy"] is not None:
                dy[self._half(d)] = host(p["dy"])
            if from_above is not None:
                dy[self._half(d)] = from_above if mask is None else from_above * host(mask)
            for whole, given in ((dh, p["dh"]), (dc, p["dc"])):
                if whole is not None:
                    whole[d] = host(given)
            dx = None if p["dx"] is None else host(p["dx"])
            if self._stacked and k > 0:
                dx = np.zeros_like(x)
            names = ("dweight_ih", "dweight_hh", "dbias", "dbias_hn", "dunit_weights")
            own: Any = tuple(None if p[name] is None else host(p[name]) for name in names)
            other: Any = tuple(None if a is None else np.zeros_like(a) for a in own)
            gradients = [other, own] if d else [own, other]
            kept.backward(x, y, dy, dh, dc, dx, gradients)
            host(p["dh"])[...] = dh[d]
            if dc is not None:
                host(p["dc"])[...] = dc[d]
            from_above = dx if self._stacked else None

    def _run(
        self, p: dict[str, Any], x: Array, h: Array, c: Array | None, *, keep: bool
    ) -> tuple[Array, Array, Array | None, _core.Kept | None]:
        """The weights in both directions, the strand's one of them: y, h, c, and what is kept."""
        weights = tuple(
            None if p.get(name) is None else host(p[name])
            for name in ("weight_ih", "weight_hh", "bias", "bias_hn", "unit_weights")
        )
        hs = np.stack([host(h)] * 2)
        cs = None if c is None else np.stack([host(c)] * 2)
        y = np.zeros((*x.shape[:2], 2 * self._spec.units), self._spec.dtype)
        both: Any = [weights, weights]
        options = self._spec.options
        spec = self._spec._replace(
            layers=1,
            directions=2,
            compute=None,
            merge="concat",
            options=options and (options * 2)[:2],
        )
        network = _core.Network(spec, both)
        factors = None if p["h_factors"] is None else np.stack([host(p["h_factors"])] * 2)
        zones = [() if p[n] is None else [host(p[n])] * 2 for n in ("zone_h", "zone_c")]
        kept = network.forward(
            *(x, self._lengths, hs, cs, y, (), keep),
            h_factors=factors,
            zoneout_h=zones[0],
            zoneout_c=zones[1],
        )
        return y, hs, cs, kept

    def _half(self, direction: int) -> Any:
        units = self._spec.units
        return np.s_[..., direction * units : (direction + 1) * units]

    @staticmethod
    def _clamped(p: dict[str, Any]) -> Array:
        """Tokens as the device's kernels take those that are out of range."""
        x = host(p["x"])
        return x if x.ndim == 3 else np.clip(x, 0, p["weight_ih"].shape[1] - 1)


def host(array: Array) -> Array:
    """The device's array as NumPy's, in the same memory."""
    return array.view(np.ndarray)


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
