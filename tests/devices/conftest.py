# SPDX-License-Identifier: Apache-2.0
"""What the GPU is in a test: emulated, a stand-in, or one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnkern import devices

from support.cuda_kernels import Emulation, Gpu
from support.emulation import EmulatedCuda, Looks, StandIn, emulated_kernels
from support.gpu import the_gpu
from support.needs import emulated_device

EMULATION = pytest.param("emulation", marks=emulated_device)
GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@pytest.fixture(params=[EMULATION, GPU])
def side(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The kernels themselves, and arrays of theirs."""
    made = Emulation() if request.param == "emulation" else Gpu()
    yield made
    made.finish()


@pytest.fixture(params=["stand-in", EMULATION, GPU])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> devices.Cuda:
    """What ``device="cuda"`` is in this test."""
    if request.param == "gpu":
        return the_gpu()
    found = EmulatedCuda(StandIn() if request.param == "stand-in" else emulated_kernels())
    monkeypatch.setitem(devices.base._ready, "cuda", found)
    return found


@pytest.fixture
def no_looks() -> Iterator[None]:
    """Nothing within looks at a value of the emulated device."""
    before = Looks.count
    yield
    assert before == Looks.count
