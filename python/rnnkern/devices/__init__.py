# SPDX-License-Identifier: Apache-2.0
"""Where arrays live and kernels run."""

from typing import TYPE_CHECKING

from rnnkern.devices.base import NAMES, Device, device_of, get_device, masked, to_host
from rnnkern.devices.cpu import Cpu
from rnnkern.devices.kernels import Gradient, Kept, NetworkKernels
from rnnkern.devices.spec import (
    MERGES,
    CellFacts,
    CellOptions,
    Function,
    LayerSpec,
    Weights,
    cell_facts,
    normalising,
)

if TYPE_CHECKING:
    from rnnkern.devices.cuda import Cuda, cuda_status

__all__ = [
    "MERGES",
    "NAMES",
    "CellFacts",
    "CellOptions",
    "Cpu",
    "Cuda",
    "Device",
    "Function",
    "Gradient",
    "Kept",
    "LayerSpec",
    "NetworkKernels",
    "Weights",
    "cell_facts",
    "cuda_status",
    "device_of",
    "get_device",
    "masked",
    "normalising",
    "to_host",
]

if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name):
        """What is of the GPU, which most programs do not wait for."""
        if name not in ("Cuda", "cuda_status"):
            raise AttributeError(f"module 'rnnkern.devices' has no attribute {name!r}")
        from rnnkern.devices import cuda

        return getattr(cuda, name)
