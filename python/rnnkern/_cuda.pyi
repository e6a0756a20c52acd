# SPDX-License-Identifier: Apache-2.0
"""Kernels of rnnkern for GPUs, private: the layers are the interface.

Arrays are any with ``__cuda_array_interface__``, ``stream`` a cudaStream_t's address.
"""

from typing import Any

from numpy.typing import NDArray

def backward(
    cell: str,
    passes: list[dict[str, Any]],
    lengths: NDArray[Any] | None,
    compute: str | None,
    workspace: Any,
    stream: int,
    stacked: bool = False,
) -> None: ...
def backward_workspace(
    cell: str,
    passes: int,
    inputs: int,
    units: int,
    steps: int,
    batch: int,
    lengths: NDArray[Any] | None,
    tokens: bool,
    dtype: str,
    compute: str | None,
    stacked: bool = False,
) -> int: ...
def devices() -> list[dict[str, Any]]: ...
def facts(cell: str) -> dict[str, Any]: ...
def force_groups(groups: int) -> None: ...
def forward(
    cell: str,
    passes: list[dict[str, Any]],
    lengths: NDArray[Any] | None,
    compute: str | None,
    workspace: Any,
    stream: int,
    stacked: bool = False,
) -> None: ...
def forward_workspace(
    cell: str,
    passes: int,
    inputs: int,
    units: int,
    steps: int,
    batch: int,
    lengths: NDArray[Any] | None,
    tokens: bool,
    dtype: str,
    compute: str | None,
    stacked: bool = False,
) -> int: ...
def layers_per_launch(
    cell: str,
    units: int,
    steps: int,
    batch: int,
    layers: int,
    dtype: str,
    compute: str | None,
    backward: bool,
) -> list[int]: ...
def matmul(
    a: Any,
    b: Any,
    out: Any,
    transpose_a: bool,
    transpose_b: bool,
    bias: Any,
    accumulate: bool,
    compute: str | None,
    stream: int,
) -> None: ...
def plan(
    cell: str,
    inputs: int,
    units: int,
    steps: int,
    batch: int,
    directions: int,
    dtype: str,
    compute: str | None,
    training: bool,
    layers: int = 1,
) -> dict[str, Any]: ...
