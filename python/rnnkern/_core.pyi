# SPDX-License-Identifier: Apache-2.0
"""Kernels of rnnkern, private: the layers are the interface."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

class Packed:
    def __init__(
        self,
        cell: str,
        weight_ih: Array,
        weight_hh: Array,
        bias: Array | None,
        bias_hn: Array | None,
        compute: str | None = None,
        *,
        backward: bool = False,
        with_input: bool = True,
    ) -> None: ...

def activation(name: str, x: Array) -> Array: ...
def adam(
    p: Array,
    g: Array,
    first: Array,
    second: Array,
    *,
    decay: float,
    first_beta: float,
    second_beta: float,
    epsilon: float,
    rate: float,
) -> None: ...
def backward(
    cell: str,
    x: Array,
    h_0: Array,
    c_0: Array | None,
    packed: Packed,
    lengths: Array | None,
    reverse: bool,
    y: Array,
    saved: Array | None,
    cells: Array | None,
    dy: Array | None,
    dh: Array,
    dc: Array | None,
    dx: Array | None,
    dweight_ih: Array,
    dweight_hh: Array,
    dbias: Array | None,
    dbias_hn: Array | None,
    state_gradients: Array | None = None,
    compute: str | None = None,
) -> None: ...
def bfloat16_product() -> str: ...

class PackedMatrix:
    def __init__(self, matrix: Array, bias: Array | None) -> None: ...
    def times(self, x: Array) -> Array: ...

class Stepper:
    def __init__(
        self,
        cell: str,
        layers: list[tuple[Array, Array, Array | None, Array | None]],
        h: Array,
        c: Array | None,
        narrow: bool,
        compute: str | None = None,
        by_token: bool = False,
    ) -> None: ...
    def step(self, x: object, out: object) -> Array | None: ...

def cpu_quota(root: str = "") -> float: ...
def forward(
    cell: str,
    x: Array,
    h: Array,
    c: Array | None,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None,
    bias_hn: Array | None,
    lengths: Array | None,
    reverse: bool,
    y: Array,
    keep: bool,
    packed: Packed | None = None,
    compute: str | None = None,
) -> tuple[Array | None, Array | None]: ...
def isa() -> str: ...
def isa_reason() -> str: ...
def matmul(
    a: Array,
    b: Array,
    out: Array | None = None,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Array | None = None,
    accumulate: bool = False,
) -> Array: ...
def own_threads() -> int: ...
def plan(
    cell: str,
    inputs: int,
    units: int,
    steps: int,
    batch: int,
    float64: bool,
    compute: str | None = None,
) -> tuple[int, int, str]: ...
def pretend_cores(count: int, root: str = "") -> None: ...
def pretend_teams(sizes: list[int]) -> None: ...
def process_threads() -> int: ...
def set_own_threads(count: int) -> None: ...
def set_process_threads(count: int) -> None: ...
def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array | None, weight: float, gradient: Array
) -> float: ...
def sum_of_squares(x: Array) -> float: ...
def supported_isas() -> list[str]: ...
def thread_limit() -> int: ...
def thread_limit_reason() -> str: ...
