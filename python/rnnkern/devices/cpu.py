# SPDX-License-Identifier: Apache-2.0
"""The processor: NumPy's arrays and the kernels of ``_core``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern import _core
from rnnkern._checks import Array, host_array
from rnnkern.devices.base import Arguments, Device, Kept


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


def open_device() -> Cpu:
    """The processor, which is always there."""
    return Cpu()
