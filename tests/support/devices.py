# SPDX-License-Identifier: Apache-2.0
"""Models on a device beside the same on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import devices
from rnnkern.adder import Settings
from rnnkern.cli import main

from support.compare import assert_close
from support.layers import make

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 4, 7


LENGTHS = np.array([3, 6, 0, 1, 6])


TINY = Settings(digits=1, hidden=16, batch=32, steps=20, share=0.5)


def twins(cuda: devices.Cuda, cell: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A layer on the CPU and one on the device with the same parameters."""
    layer = make(cell, *sizes, **options)
    twin = type(layer)(**{**layer.config(), "device": "cuda"})
    move(cuda, layer, twin)
    return layer, twin


def move(cuda: devices.Cuda, source: Any, target: Any) -> None:
    """Give one model the parameters of another."""
    for name, p in source.params.items():
        target.params[name][...] = cuda.put(p)


def put(cuda: devices.Cuda, value: Any) -> Any:
    """An array, a state or None on the device."""
    if isinstance(value, tuple):
        return tuple(put(cuda, v) for v in value)
    return None if value is None else cuda.put(value)


def agree(cuda: devices.Cuda, what: str, got: Any, want: Any, tolerance: float) -> None:
    """An array of the device is within the tolerance of one of the CPU."""
    assert isinstance(got, cuda.xp.ndarray), f"{what} is {type(got)}"
    assert got.dtype == want.dtype
    assert_close(what, cuda.get(got), want, tolerance)


def agree_by_name(cuda: devices.Cuda, got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """The same for arrays by name."""
    assert list(got) == list(want)
    for name, array in want.items():
        agree(cuda, name, got[name], array, tolerance)


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command line says to a question that it does not take."""
    assert main(["adder", "ask", "3+4", *options]) == 2
    return capsys.readouterr().err
