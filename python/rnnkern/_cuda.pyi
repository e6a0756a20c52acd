# SPDX-License-Identifier: Apache-2.0
"""Kernels of rnnkern for GPUs, private: the layers are the interface.

Arrays are any with ``__cuda_array_interface__``, ``stream`` a cudaStream_t's address.
"""

from typing import Any

from numpy.typing import NDArray

class Call:
    def __init__(
        self,
        spec: Any,
        steps: int,
        batch: int,
        lengths: NDArray[Any] | None,
        *,
        tokens: bool = False,
        layers: int = 1,
    ) -> None: ...
    @property
    def live(self) -> int: ...
    @property
    def forward_workspace(self) -> int: ...
    @property
    def backward_workspace(self) -> int: ...
    def forward(self, strands: list[dict[str, Any]], workspace: Any, stream: int) -> None: ...
    def backward(self, strands: list[dict[str, Any]], workspace: Any, stream: int) -> None: ...

def devices() -> list[dict[str, Any]]: ...
def force_groups(groups: int) -> None: ...
def layers_per_launch(spec: Any, steps: int, batch: int, backward: bool) -> list[int]: ...
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
def plan(spec: Any, steps: int, batch: int, training: bool) -> dict[str, Any]: ...
