# SPDX-License-Identifier: Apache-2.0
"""Models on a device beside the same on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import devices
from rnnkern.adder import Settings
from rnnkern.cli import main
from rnnkern.layers.configured import spec_of

from support.compare import assert_close
from support.layers import arrays, as_layer_state, computed, make

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


def check_calls_agree(
    cuda: devices.Cuda, layer: Any, twin: Any, *, tokens: bool = False, **options: Any
) -> None:
    """All that a layer gives is what its twin on the device gives.

    `options` are of ``forward``.
    """
    tolerance = TOLERANCE[layer.dtype.name]
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    if tokens:
        x = np.random.default_rng(3).integers(0, layer.input_size, x.shape[:2])
    given = x, state, dy, dstate
    want = computed(layer, *given, **options)
    agree_by_name(cuda, computed(twin, *(put(cuda, a) for a in given), **options), want, tolerance)

    dlast = np.random.default_rng(4).standard_normal((BATCH, layer.output_size)).astype(layer.dtype)
    y, last, tape = layer.forward(x, as_layer_state(state), **options)
    got, got_last, got_tape = twin.forward(
        put(cuda, x), as_layer_state(put(cuda, state)), **options
    )
    agree(cuda, "last", twin.last_output(got, got_last), layer.last_output(y, last), tolerance)
    of_last = got_tape.backward(dlast=put(cuda, dlast)).params
    agree_by_name(cuda, of_last, tape.backward(dlast=dlast).params, tolerance)
    has_gates = not (layer.zoneout and spec_of(layer).facts.saved == 0)
    if "recompute" not in options and has_gates:
        for got_gates, gates in zip(got_tape.gates(), tape.gates(), strict=True):
            agree_by_name(cuda, got_gates, gates, tolerance)
