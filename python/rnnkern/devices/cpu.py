# SPDX-License-Identifier: Apache-2.0
"""The processor: NumPy's arrays and the kernels of ``_core``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, host_array
from rnnkern.devices import philox
from rnnkern.devices.base import Device
from rnnkern.devices.kernels import NetworkKernels
from rnnkern.devices.spec import LayerSpec, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray


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

    def random(self, key: int, stream: int, shape: tuple[int, ...], first: int = 0) -> Array:
        bits = np.random.Philox(key=np.array([key, stream], np.uint64))
        blocks, before = divmod(first, philox.BLOCK)
        bits.advance(blocks)
        numbers = np.random.Generator(bits).random(before + math.prod(shape), dtype=np.float32)
        return numbers[before:].reshape(shape)

    def address(self, array: Array) -> int:
        address: int = array.__array_interface__["data"][0]
        return address

    def aligned(self, array: Array) -> bool:
        return array.flags.aligned

    def writeable(self, array: Array) -> bool:
        return array.flags.writeable

    def check(self, spec: LayerSpec) -> None:
        """Nothing: the kernels run all of them."""

    def network(
        self, spec: LayerSpec, weights: Sequence[Weights], *, batch_first: bool
    ) -> NetworkKernels:
        return _core.Network(spec, weights, batch_first)

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
        return _core.matmul(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, bias=bias)

    def affine(self, weight: Array, bias: Array | None) -> Callable[[Array, Array | None], Array]:
        return _core.PackedMatrix(weight, bias).times

    def sums_by_token(self, tokens: Array, rows: Array, count: int) -> Array:
        sums = np.zeros((count, rows.shape[1]), rows.dtype)
        _core.add_by_token(self.contiguous(tokens), rows, sums)
        return sums

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

    def stepper(
        self,
        spec: LayerSpec,
        weights: Sequence[Weights],
        h: Array,
        c: Array | None,
        *,
        narrow: bool,
        by_token: bool,
    ) -> _core.Stepper:
        return _core.Stepper(spec, weights, h, c, narrow=narrow, by_token=by_token)

    def plan(self, spec: LayerSpec, steps: int, batch: int, *, training: bool) -> dict[str, Any]:
        row_groups, unit_groups, reason = _core.plan(spec, steps, batch)
        products = {"bfloat16": _core.bfloat16_product, "int8": _core.int8_product}
        return {
            "isa": _core.isa(),
            "threads": row_groups * unit_groups,
            "row_groups": row_groups,
            "unit_groups": unit_groups,
            "reason": reason,
            "product": spec.dtype.name if spec.compute is None else products[spec.compute](),
        }


def open_device() -> Cpu:
    """The processor, which is always there."""
    return Cpu()
