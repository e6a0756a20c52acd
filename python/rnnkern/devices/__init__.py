# SPDX-License-Identifier: Apache-2.0
"""Where arrays live and kernels run."""

from rnnkern.devices.base import NAMES, Arguments, Device, Kept, device_of, get_device, to_host
from rnnkern.devices.cpu import Cpu
from rnnkern.devices.cuda import Cuda, cuda_status

__all__ = [
    "NAMES",
    "Arguments",
    "Cpu",
    "Cuda",
    "Device",
    "Kept",
    "cuda_status",
    "device_of",
    "get_device",
    "to_host",
]
