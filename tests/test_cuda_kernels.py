"""The GPU's kernels against reference.py: emulated on the host where that was built, and on a GPU.

The emulation (CMake's RNNKERN_EMULATE) is the kernels' own text, every block a thread of the host.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import reference
from conftest import CELLS, assert_close, assert_same_bits
from reference import Array

# Norm-wise relative errors against float64; the operands of the narrow modes are rounded to 11, 8
# and 11 bits.
TOLERANCE = {
    ("float64", None): 1e-12,
    ("float32", None): 1e-5,
    ("float32", "tfloat32"): 2e-3,
    ("float32", "bfloat16"): 2e-2,
    ("float32", "float16"): 2e-2,
}
MODES = list(TOLERANCE)
mode_ids = [f"{dtype}-{compute or 'exact'}" for dtype, compute in MODES]


class Emulation:
    """Arrays are NumPy's; the device can be made up."""

    name = "emulation"

    def __init__(self) -> None:
        self.module = pytest.importorskip(
            "rnnkern._emulation", reason="the emulation was not built (RNNKERN_EMULATE)"
        )
        self.stream = 0

    def put(self, array: Array) -> Any:
        return array.copy()

    def get(self, array: Any) -> Array:
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Not-a-numbers, so that what is read before it is written shows."""
        return np.full(shape, np.nan, dtype)

    def workspace(self, size: int) -> Any:
        raw = np.full(size + 64, 0xFF, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size]

    def device(self, **facts: Any) -> None:
        self.module.set_device_facts(**facts)


class Gpu:
    """Arrays are CuPy's."""

    name = "gpu"

    def __init__(self) -> None:
        self.module = pytest.importorskip("rnnkern._cuda", reason="built without CUDA")
        self.cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        try:
            devices = self.module.devices()
        except RuntimeError as error:
            pytest.skip(f"no GPU: {error}")
        if not devices:
            pytest.skip("no GPU")
        self.stream = self.cupy.cuda.get_current_stream().ptr

    def put(self, array: Array) -> Any:
        return self.cupy.asarray(array)

    def get(self, array: Any) -> Array:
        return self.cupy.asnumpy(array)  # type: ignore[no-any-return]

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.cupy.full(shape, np.nan, dtype)

    def workspace(self, size: int) -> Any:
        return self.cupy.full(size, 0xFF, np.uint8)

    def device(self, **facts: Any) -> None:
        if facts:
            pytest.skip("a made-up device is for the emulation")


@pytest.fixture(params=["emulation", pytest.param("gpu", marks=pytest.mark.gpu)])
def side(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = Emulation() if request.param == "emulation" else Gpu()
    yield made
    if request.param == "emulation":
        made.device()


@dataclass(frozen=True)
class Case:
    """A layer of one or two directions and what it is given."""

    cell: str
    units: int
    batch: int = 3
    steps: int = 5
    inputs: int = 4
    lengths: tuple[int, ...] | None = None
    tokens: bool = False
    reverse: tuple[bool, ...] = (False,)
    bias: bool = True
    upstream: str = "both"  # which gradients come from above: of "y", of the "state", or both
    dtype: str = "float32"
    compute: str | None = None
    keep: bool = True  # a backward pass follows

    def random(self, *shape: int, seed: int) -> Array:
        return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(self.dtype)

    def params(self, seed: int) -> dict[str, Array]:
        rows = reference.CELLS[self.cell].gates * self.units
        made = {
            "weight_ih": self.random(rows, self.inputs, seed=seed) / np.sqrt(self.inputs),
            "weight_hh": self.random(rows, self.units, seed=seed + 1) / np.sqrt(self.units),
        }
        if self.bias:
            made["bias"] = self.random(rows, seed=seed + 2)
            if self.cell == "gru_after":
                made["bias_hn"] = self.random(self.units, seed=seed + 3)
        return {name: p.astype(self.dtype) for name, p in made.items()}

    def x(self) -> Array:
        if self.tokens:
            return np.random.default_rng(9).integers(0, self.inputs, (self.steps, self.batch))
        return self.random(self.steps, self.batch, self.inputs, seed=9)


Results = dict[str, Array]


def oracle(case: Case, own: dict[str, Array], lengths: Array, *, reverse: bool) -> Any:
    """One direction of the reference, with these weights."""
    rows = len(own["weight_hh"])
    shapes = {"bias": rows, "bias_hn": case.units}
    whole = {name: np.zeros(shape) for name, shape in shapes.items()} | own
    w = reference.Weights(
        *(whole[n].astype(np.float64) for n in ("weight_ih", "weight_hh", "bias", "bias_hn"))
    )
    return reference.Direction(reference.CELLS[case.cell], w, lengths, reverse=reverse)


def run(side: Any, case: Case) -> tuple[Results, Results]:
    """Forward and, where the case keeps, backward: what the kernels gave, and the reference."""
    facts = side.module.facts(case.cell)
    steps, batch, inputs, units = case.steps, case.batch, case.inputs, case.units
    directions, dtype = len(case.reverse), case.dtype
    lengths = np.full(batch, steps) if case.lengths is None else np.array(case.lengths)
    host_lengths = None if case.lengths is None else lengths
    live = int(lengths.sum())
    states = ["h", "c"] if facts["cell_state"] else ["h"]
    x = case.x()
    wide_x = np.eye(inputs)[x] if case.tokens else x.astype(np.float64)
    dy = case.random(steps, batch, directions * units, seed=40)
    dx_before = case.random(steps, batch, inputs, seed=50)

    # x is strided over time; y and dy of the directions are parts of one array.
    device_x = side.put(np.repeat(x, 2, axis=0))[::2]
    y, device_dy = side.empty((steps, batch, directions * units), dtype), side.put(dy)
    dx = None if case.tokens else side.put(dx_before)
    forward: list[dict[str, Any]] = []
    backward: list[dict[str, Any]] = []
    want: Results = {"dx": np.zeros(dx_before.shape)} if dx is not None and case.keep else {}
    for k, reverse in enumerate(case.reverse):
        own = case.params(seed=100 * (k + 1))
        first = [case.random(batch, units, seed=20 + 2 * k + i) for i in range(len(states))]
        last = [case.random(batch, units, seed=30 + 2 * k + i) for i in range(len(states))]
        if case.upstream == "y":
            last = [np.zeros_like(d) for d in last]
        half = slice(k * units, (k + 1) * units)

        common = {"x": device_x, "reverse": reverse, "y": y[..., half]}
        common |= {name: side.put(p) for name, p in own.items()}
        common |= {"saved": None, "cells": None}
        if case.keep:
            common["saved"] = side.empty((live, facts["saved"], units), dtype)
            common["cells"] = side.empty((live, units), dtype)
        forward.append(common | {s: side.put(a) for s, a in zip(states, first, strict=True)})
        backward.append(
            common
            | {f"{s}_0": side.put(a) for s, a in zip(states, first, strict=True)}
            | {f"d{s}": side.put(a) for s, a in zip(states, last, strict=True)}
            | {f"d{name}": side.put(np.full_like(p, 0.5)) for name, p in own.items()}
            | {"dy": None if case.upstream == "state" else device_dy[..., half], "dx": dx}
        )

        direction = oracle(case, own, lengths, reverse=reverse)
        want_y, want_last = direction.forward(wide_x, tuple(a.astype(np.float64) for a in first))
        want[f"y {k}"] = want_y
        want |= {f"{s}_n {k}": a for s, a in zip(states, want_last, strict=True)}
        if not case.keep:
            continue
        upstream = np.zeros(want_y.shape) if case.upstream == "state" else dy[..., half]
        want_dx, want_first, grads = direction.backward(
            upstream.astype(np.float64), tuple(a.astype(np.float64) for a in last)
        )
        if dx is not None:
            want["dx"] += want_dx
        want |= {f"d{s}_0 {k}": a for s, a in zip(states, want_first, strict=True)}
        named = zip(
            ("weight_ih", "weight_hh", "bias", "bias_hn"), vars(grads).values(), strict=True
        )
        want |= {f"d{name} {k}": a for name, a in named if name in own}

    sizes = (case.cell, directions, inputs, units, steps, batch, host_lengths, case.tokens, dtype)
    space = side.workspace(side.module.forward_workspace(*sizes, case.compute))
    side.module.forward(case.cell, forward, host_lengths, case.compute, space, side.stream)
    got: Results = {}
    for k, p in enumerate(forward):
        got[f"y {k}"] = side.get(p["y"])
        got |= {f"{s}_n {k}": side.get(p[s]) for s in states}
    if case.keep:
        space = side.workspace(side.module.backward_workspace(*sizes, case.compute))
        side.module.backward(case.cell, backward, host_lengths, case.compute, space, side.stream)
        if dx is not None:
            got["dx"] = side.get(dx) - dx_before
        for k, p in enumerate(backward):
            got |= {f"d{s}_0 {k}": side.get(p[f"d{s}"]) for s in states}
            got |= {f"d{n} {k}": side.get(p[f"d{n}"]) - 0.5 for n in case.params(seed=0)}
    return got, want


def check(side: Any, case: Case) -> Results:
    """The kernels agree with the reference; returns what they gave."""
    got, want = run(side, case)
    assert got.keys() == want.keys()
    for name, a in want.items():
        # A relu whose input rounds to the other side of zero has another derivative: not an error.
        if case.cell == "rnn_relu" and name.startswith("d") and case.compute is not None:
            continue
        assert_close(name, got[name], a, TOLERANCE[case.dtype, case.compute])
    return got


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_and_mode(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Case(cell, 33, batch=7, inputs=5, dtype=dtype, compute=compute))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", CELLS)
def test_few_rows(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Case(cell, 20, batch=1, inputs=3, dtype=dtype, compute=compute))
