# SPDX-License-Identifier: Apache-2.0
"""Where arrays live and kernels run."""

from rnnkern.devices.base import NAMES, Device, device_of, get_device, masked, to_host
from rnnkern.devices.cpu import Cpu
from rnnkern.devices.cuda import Cuda, cuda_status
from rnnkern.devices.kernels import Gradient, Kept, NetworkKernels
from rnnkern.devices.spec import MERGES, CellFacts, LayerSpec, Weights, cell_facts

__all__ = [
    "MERGES",
    "NAMES",
    "CellFacts",
    "Cpu",
    "Cuda",
    "Device",
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
    "to_host",
]
