# SPDX-License-Identifier: Apache-2.0
"""Kernels of rnnkern, private: the layers are the interface."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

class Kept:
    @property
    def saved(self) -> tuple[Array | None, ...]: ...
    @property
    def cells(self) -> tuple[Array | None, ...]: ...
    @property
    def fresh_c(self) -> tuple[Array | None, ...]: ...
    @property
    def places(self) -> Array: ...
    @property
    def between(self) -> tuple[Array, ...]: ...
    def backward(
        self,
        x: Array,
        y: Array,
        dy: Array | None,
        dh: Array,
        dc: Array | None,
        dx: Array | None,
        gradients: Sequence[tuple[Array | None, ...]],
        state_gradients: Sequence[Array] | None = None,
    ) -> None: ...
    def direct(
        self, x: Array, y: Array, dy: Any, dstate: Any, unbatched: bool, with_dx: bool = True
    ) -> Any: ...

class Network:
    def __init__(
        self,
        spec: Any,
        weights: Sequence[tuple[Array | None, ...]],
        batch_first: bool = False,
    ) -> None: ...
    def packed(self, *, with_input: bool = True, with_backward: bool = False) -> Network: ...
    def forward(
        self,
        x: Array,
        lengths: Array | None,
        h: Array,
        c: Array | None,
        y: Array,
        masks: Sequence[Array],
        keep: bool,
        resets: Array | None = None,
        mask: Array | None = None,
        states_anew: bool = False,
        h_factors: Array | None = None,
        zoneout_h: Sequence[Array] = (),
        zoneout_c: Sequence[Array] = (),
    ) -> Kept | None: ...
    def direct(self, x: Any, state: Any, lengths: Any, keep: bool) -> Any: ...

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
def add_by_token(tokens: Array, rows: Array, sums: Array) -> None: ...
def bfloat16_product() -> str: ...
def functions() -> dict[str, tuple[int, float, float]]: ...
def cells() -> dict[str, dict[str, Any]]: ...

class PackedMatrix:
    def __init__(self, matrix: Array, bias: Array | None) -> None: ...
    def times(self, x: Array, out: Array | None = None) -> Array: ...

class Stepper:
    def __init__(
        self,
        spec: Any,
        weights: Sequence[tuple[Array | None, ...]],
        h: Array,
        c: Array | None,
        *,
        narrow: bool = False,
        by_token: bool = False,
    ) -> None: ...
    def step(self, x: object, out: object) -> Array | None: ...

def cpu_quota(root: str = "") -> float: ...
def int8_product() -> str: ...
def isa() -> str: ...

jax_backward: Any  # a capsule, as jax.ffi.register_ffi_target takes it
jax_forward: Any

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
def plan(spec: Any, steps: int, batch: int) -> tuple[int, int, str]: ...
def pretend_cores(count: int, root: str = "") -> None: ...
def pretend_teams(sizes: list[int]) -> None: ...
def process_threads() -> int: ...
def set_own_threads(count: int) -> None: ...
def set_process_threads(count: int) -> None: ...
def softmax_cross_entropy(
    logits: Array, targets: Array, mask: Array | None, weight: float, gradient: Array
) -> float: ...
def sum_of_squares(x: Array) -> float: ...
def stretches(
    steps: int,
    batch: int,
    lengths: Array | None,
    resets: Array | None,
    mask: Array | None,
    states_anew: bool,
) -> tuple[Array, Array, tuple[Array, Array], tuple[Array, Array]]: ...
def supported_isas() -> list[str]: ...
def thread_limit() -> int: ...
def thread_limit_reason() -> str: ...
def use_isa(name: str) -> None: ...
