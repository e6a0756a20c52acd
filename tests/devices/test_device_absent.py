# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"`` where a part of what it needs is missing, and what is told of it."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices

from support import emulation
from support.devices import refused
from support.emulation import EmulatedCuda, StandIn


@pytest.mark.parametrize(
    ("kernels", "cupy", "says"),
    [
        (None, None, "built without its CUDA kernels, .*; install it anew"),
        (SimpleNamespace(), None, r"CuPy cannot be imported .*pip install 'rnnkern\[cuda13\]'"),
        (SimpleNamespace(devices=list), SimpleNamespace(), "there is no CUDA device; nvidia-smi"),
    ],
)
def test_without_a_gpu(
    kernels: Any,
    cupy: Any,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(devices.base._ready, "cuda", raising=False)
    # A module that is None in sys.modules counts as not there.
    monkeypatch.setitem(sys.modules, "rnnkern._cuda", kernels)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for make_one in (rk.LSTM, rk.Linear):
        with pytest.raises(ValueError, match=f"device='cuda' cannot be used: .*{says}"):
            make_one(2, 3, device="cuda")
    assert "device='cuda' cannot be used: " in rk.info()["cuda"]
    assert "device='cuda' cannot be used: " in refused(capsys, "--device", "cuda")


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer() -> Any:
        raise RuntimeError("driver version is insufficient")

    monkeypatch.delitem(devices.base._ready, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "rnnkern._cuda", SimpleNamespace(devices=no_answer))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    with pytest.raises(ValueError, match=r"does not answer .driver version is insufficient"):
        rk.LSTM(2, 3, device="cuda")


def test_the_memory_of_a_tensor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is told which stream reads it; a stand-in, for there is no GPU to hold a tensor."""

    class Tensor(emulation.DeviceArray):
        device: Any = "cuda:0"
        recorded: ClassVar[list[Any]] = []

        def record_stream(self, stream: Any) -> None:
            self.recorded.append(stream)

    def stream(pointer: int, device: Any) -> tuple[int, Any]:
        return (pointer, device)

    torch = SimpleNamespace(Tensor=Tensor, cuda=SimpleNamespace(ExternalStream=stream))
    monkeypatch.setitem(sys.modules, "torch", torch)
    cuda = EmulatedCuda(StandIn())
    monkeypatch.setattr(cuda.xp, "ndarray", SimpleNamespace)  # a tensor is no array of CuPy's
    monkeypatch.setattr(cuda.xp, "from_dlpack", lambda a: a, raising=False)
    monkeypatch.setattr(cuda, "_stream", lambda: 77)
    x = np.zeros((2, 3), np.float32).view(Tensor)
    assert cuda.array("x", x) is x
    assert Tensor.recorded == [(77, "cuda:0")]


def test_info_names_the_device(cuda: devices.Cuda) -> None:
    assert rk.info()["cuda"].startswith("yes (")
    assert re.search(r"compute capability \d+\.\d+, \d+ multiproc.*GiB", rk.info()["cuda"])


def test_cupy_has_what_stands_for_it() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    missing = [name for name in emulation.FUNCTIONS if not hasattr(cupy, name)]
    assert not missing
