# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels against reference.py: emulated on the host where that was built, and on a GPU.

The emulation (CMake: RNNKERN_EMULATE=device) is the kernels' text, every block a host's thread.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from rnnkern.devices import Cuda, get_device

import reference
from conftest import CELLS, assert_close, assert_same_bits, no_gpu
from locate import assert_right
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
            "rnnkern._emulation", reason="the emulation was not built (RNNKERN_EMULATE=device)"
        )
        self.stream = 0
        self.behind: list[Array] = []

    def put(self, array: Array) -> Any:
        return array.copy()

    def get(self, array: Any) -> Array:
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Not-a-numbers, so that what is read before it is written shows."""
        return np.full(shape, np.nan, dtype)

    def workspace(self, size: int) -> Any:
        raw = np.full(size + 128, 0xFF, np.uint8)
        start = -raw.ctypes.data % 64
        self.behind.append(raw[start + size :])
        return raw[start : start + size]

    def finish(self) -> None:
        """Nothing was written behind a workspace; the device is the usual one again."""
        self.device()
        assert all(np.all(guard == 0xFF) for guard in self.behind)

    def device(self, **facts: Any) -> None:
        self.module.set_device_facts(**facts)


class Gpu:
    """Arrays are CuPy's."""

    name = "gpu"

    def __init__(self) -> None:
        try:
            found = get_device("cuda")
        except ValueError as error:
            no_gpu(str(error))
        assert isinstance(found, Cuda)
        self.module, self.cupy = found.kernels, found.xp
        self.stream = self.cupy.cuda.get_current_stream().ptr

    def put(self, array: Array) -> Any:
        return self.cupy.asarray(array)

    def get(self, array: Any) -> Array:
        return self.cupy.asnumpy(array)  # type: ignore[no-any-return]

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.cupy.full(shape, np.nan, dtype)

    def workspace(self, size: int) -> Any:
        return self.cupy.full(size, 0xFF, np.uint8)

    def finish(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def device(self, **facts: Any) -> None:
        pytest.skip("a made-up device is for the emulation")


@pytest.fixture(params=["emulation", pytest.param("gpu", marks=pytest.mark.gpu)])
def side(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = Emulation() if request.param == "emulation" else Gpu()
    yield made
    made.finish()


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

    def params(self, seed: int, inputs: int | None = None) -> dict[str, Array]:
        """The weights of one direction, of x or of so many inputs."""
        rows, inputs = reference.CELLS[self.cell].gates * self.units, inputs or self.inputs
        made = {
            "weight_ih": self.random(rows, inputs, seed=seed) / np.sqrt(inputs),
            "weight_hh": self.random(rows, self.units, seed=seed + 1) / np.sqrt(self.units),
        }
        if self.bias:
            made["bias"] = self.random(rows, seed=seed + 2)
            if self.cell == "gru_after":
                made["bias_hn"] = self.random(self.units, seed=seed + 3)
        return {name: p.astype(self.dtype) for name, p in made.items()}

    given: tuple[tuple[int, ...], ...] | None = None  # tokens other than the drawn ones

    def x(self) -> Array:
        if self.given is not None:
            return np.array(self.given)
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
    wide_x = np.eye(inputs)[np.clip(x, 0, inputs - 1)] if case.tokens else x.astype(np.float64)
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
    got, want = run_stack(side, case) if isinstance(case, Stack) else run(side, case)
    assert got.keys() == want.keys()
    # A relu whose input rounds to the other side of zero has another derivative: not an error.
    unsure = case.cell == "rnn_relu" and case.compute is not None
    stacked = isinstance(case, Stack)
    way = case.reverse * case.layers if isinstance(case, Stack) else case.reverse
    assert_right(
        str(case),
        got,
        {name: a for name, a in want.items() if not (unsure and name.startswith("d"))},
        TOLERANCE[case.dtype, case.compute],
        case.units,
        side.module.plan(
            *(case.cell, case.inputs, case.units, case.steps, case.batch),
            *(1 if stacked else len(way), case.dtype, case.compute, True),
            len(way) if stacked else 1,
        ),
        {name: way[0 if name == "dx" else int(name[-1])] for name in want},
    )
    return got


@dataclass(frozen=True)
class Stack(Case):
    """Layers in one direction that one call runs as a wavefront."""

    layers: int = 2
    dropout: bool = False

    def mask(self, k: int) -> Array:
        """What layer k hands on, as a factor."""
        shape = (self.steps, self.batch, self.units)
        kept = np.random.default_rng(k).random(shape) < 0.7
        return np.where(kept, 1.0 / 0.7, 0.0).astype(self.dtype)


def run_stack(side: Any, case: Stack) -> tuple[Results, Results]:
    """As ``run``, for stacked layers."""
    facts, (reverse,) = side.module.facts(case.cell), case.reverse
    steps, batch, inputs, units, dtype = (
        *(case.steps, case.batch, case.inputs, case.units),
        case.dtype,
    )
    lengths = np.full(batch, steps) if case.lengths is None else np.array(case.lengths)
    host_lengths = None if case.lengths is None else lengths
    live, top = int(lengths.sum()), case.layers - 1
    states = ["h", "c"] if facts["cell_state"] else ["h"]
    x, dy = case.x(), case.random(steps, batch, units, seed=40)
    dx_before = case.random(steps, batch, inputs, seed=50)
    dx = None if case.tokens else side.put(dx_before)
    forward: list[dict[str, Any]] = []
    backward: list[dict[str, Any]] = []
    directions, lasts = [], []
    want: Results = {}
    below = np.eye(inputs)[x] if case.tokens else x.astype(np.float64)
    for k in range(case.layers):
        own = case.params(seed=100 * (k + 1), inputs=None if k == 0 else units)
        first = [case.random(batch, units, seed=20 + 2 * k + i) for i in range(len(states))]
        last = [case.random(batch, units, seed=70 + 2 * k + i) for i in range(len(states))]
        if case.upstream == "y":
            last = [np.zeros_like(d) for d in last]
        common: dict[str, Any] = {name: side.put(p) for name, p in own.items()}
        common |= {"reverse": reverse, "mask": None}
        if case.dropout and k < top:
            common["mask"] = side.put(case.mask(k))
        common |= {"y": side.empty((steps, batch, units), dtype), "saved": None, "cells": None}
        if case.keep:
            common["saved"] = side.empty((live, facts["saved"], units), dtype)
            common["cells"] = side.empty((live, units), dtype)
        forward.append(
            common
            | {"x": side.put(x) if k == 0 else None}
            | {s: side.put(a) for s, a in zip(states, first, strict=True)}
        )
        given = k == top and case.upstream != "state"
        backward.append(
            common
            | {f"{s}_0": side.put(a) for s, a in zip(states, first, strict=True)}
            | {f"d{s}": side.put(a) for s, a in zip(states, last, strict=True)}
            | {f"d{name}": side.put(np.full_like(p, 0.5)) for name, p in own.items()}
            | {"dy": side.put(dy) if given else None, "dx": dx if k == 0 else None}
        )
        direction = oracle(case, own, lengths, reverse=reverse)
        below, want_last = direction.forward(below, tuple(a.astype(np.float64) for a in first))
        directions.append(direction)
        lasts.append(tuple(a.astype(np.float64) for a in last))
        want[f"y {k}"] = below
        want |= {f"{s}_n {k}": a for s, a in zip(states, want_last, strict=True)}
        if case.dropout and k < top:
            below = below * case.mask(k)
    if case.keep:
        above = np.zeros_like(below) if case.upstream == "state" else dy.astype(np.float64)
        for k in reversed(range(case.layers)):
            if case.dropout and k < top:
                above = above * case.mask(k)
            above, want_first, grads = directions[k].backward(above, lasts[k])
            want |= {f"d{s}_0 {k}": a for s, a in zip(states, want_first, strict=True)}
            names = ("weight_ih", "weight_hh", "bias", "bias_hn")
            named = zip(names, vars(grads).values(), strict=True)
            want |= {f"d{name} {k}": a for name, a in named if name in case.params(seed=0)}
        if dx is not None:
            want["dx"] = above

    sizes = (case.cell, case.layers, inputs, units, steps, batch, host_lengths, case.tokens, dtype)
    rest = (host_lengths, case.compute)
    space = side.workspace(side.module.forward_workspace(*sizes, case.compute, True))
    side.module.forward(case.cell, forward, *rest, space, side.stream, True)
    got: Results = {}
    for k, p in enumerate(forward):
        got[f"y {k}"] = side.get(p["y"])
        got |= {f"{s}_n {k}": side.get(p[s]) for s in states}
    if case.keep:
        backward[0]["x"] = side.put(x)
        for lower, upper in itertools.pairwise(backward):
            upper["x"] = lower["y"] if lower["mask"] is None else lower["y"] * lower["mask"]
        space = side.workspace(side.module.backward_workspace(*sizes, case.compute, True))
        side.module.backward(case.cell, backward, *rest, space, side.stream, True)
        if dx is not None:
            got["dx"] = side.get(dx) - dx_before
        for k, p in enumerate(backward):
            got |= {f"d{s}_0 {k}": side.get(p[f"d{s}"]) for s in states}
            got |= {f"d{n} {k}": side.get(p[f"d{n}"]) - 0.5 for n in case.params(seed=0)}
    return got, want


def same_bits(one: Results, other: Results) -> None:
    for name, a in one.items():
        assert_same_bits(name, a, other[name])


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


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize(("units", "batch"), [(5, 3), (5, 33), (33, 1), (100, 3), (100, 33)])
def test_odd_sizes(side: Any, units: int, batch: int, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Case("lstm", units, batch=batch, inputs=7, dtype=dtype, compute=compute))


KINDS: dict[str, dict[str, Any]] = {
    "one-step": {"steps": 1},
    "reverse": {"reverse": (True,)},
    "both": {"reverse": (False, True)},
    "ragged": {"lengths": (2, 0, 5, 5, 1, 3)},
    "ragged-reverse": {"lengths": (2, 0, 5, 4, 1, 3), "reverse": (True,)},
    "ragged-both": {"lengths": (4, 1, 0, 2, 2, 3), "reverse": (False, True)},
    "all-empty": {"lengths": (0,) * 6, "reverse": (False, True)},
    "tokens": {"tokens": True},
    "tokens-ragged-both": {"tokens": True, "lengths": (4, 0, 3, 5, 5, 1), "reverse": (False, True)},
    "no-bias": {"bias": False},
    "upstream-y": {"upstream": "y", "lengths": (5, 1, 2, 3, 4, 0)},
    "upstream-state": {"upstream": "state"},
    "inference": {"keep": False, "lengths": (5, 1, 2, 3, 4, 0), "reverse": (False, True)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_kinds_of_input(side: Any, cell: str, kind: str) -> None:
    check(side, Case(cell, 13, batch=6, **KINDS[kind]))


@pytest.mark.parametrize("cell", CELLS)
def test_kinds_of_input_on_tensor_cores(side: Any, cell: str) -> None:
    check(side, Case(cell, 13, batch=6, compute="bfloat16", **KINDS["tokens-ragged-both"]))
    check(side, Case(cell, 13, batch=6, compute="float16", **KINDS["ragged-both"]))


# Made-up devices, and what the plan has to come to on them.
DEVICES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "one-block": ({"multiprocessors": 2}, {"blocks_per_group": 1}),
    "groups": ({"multiprocessors": 48}, {"path": "resident"}),
    "streaming": ({"multiprocessors": 4, "shared_bytes": 20 << 10}, {"path": "streaming"}),
    "runs": ({"multiprocessors": 6, "run_bytes": 1}, {}),
}


@pytest.mark.parametrize("compute", [None, "tfloat32", "float16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_path(side: Any, cell: str, device: str, compute: str | None) -> None:
    facts, expected = DEVICES[device]
    side.device(**facts)
    case = Case(
        cell,
        70,
        batch=9,
        compute=compute,
        lengths=(5, 2, 5, 0, 4, 5, 3, 1, 5),
        reverse=(False, True),
    )
    plan = side.module.plan(cell, 4, 70, 5, 9, 2, "float32", compute, True)
    for way in (plan, plan["backward"]):
        # The one gate of a simple network leaves nothing to stream.
        if device != "streaming" or way["path"] == "streaming" or not cell.startswith("rnn"):
            assert expected.items() <= way.items(), way
        if device == "groups":
            assert way["groups"] > 1, way
        if device == "one-block":
            assert way["units_per_block"] >= 70, way
    got = check(side, case)
    again, _ = run(side, case)
    same_bits(got, again)


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_threads_within_a_phase_does_not_matter(
    side: Any, cell: str, mode: tuple[str, str | None]
) -> None:
    dtype, compute = mode
    for shared in (227 << 10, 40 << 10):
        case = Case(cell, 40, batch=7, dtype=dtype, compute=compute, lengths=(3, 0, 2, 3, 3, 1, 2))
        side.device(multiprocessors=3, shared_bytes=shared, descending=False)
        rising = run(side, case)[0]
        side.device(multiprocessors=3, shared_bytes=shared, descending=True)
        same_bits(rising, run(side, case)[0])


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", CELLS)
def test_wavefronts_of_every_cell_and_mode(
    side: Any, cell: str, mode: tuple[str, str | None], layers: int
) -> None:
    dtype, compute = mode
    check(side, Stack(cell, 33, batch=7, inputs=5, dtype=dtype, compute=compute, layers=layers))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", CELLS)
def test_wavefronts_of_few_rows(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    check(side, Stack(cell, 20, batch=2, inputs=3, dtype=dtype, compute=compute, layers=3))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("cell", CELLS)
def test_wavefronts_with_dropout(side: Any, cell: str, mode: tuple[str, str | None]) -> None:
    dtype, compute = mode
    case = Stack(cell, 33, batch=7, dtype=dtype, compute=compute, layers=3, dropout=True)
    check(side, case)
    check(side, replace(case, lengths=(2, 0, 5, 5, 1, 3, 4), reverse=(True,)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "both" not in kind])
@pytest.mark.parametrize("cell", CELLS)
def test_wavefronts_of_kinds_of_input(side: Any, cell: str, kind: str) -> None:
    options = {"reverse": (False,)} | KINDS[kind]
    options["reverse"] = options["reverse"][-1:]
    check(side, Stack(cell, 13, batch=6, layers=3, **options))


WAVEFRONT_DEVICES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "one-block": ({"multiprocessors": 3}, {"blocks_per_group": 1}),
    "groups": ({"multiprocessors": 48}, {"path": "resident"}),
    "streaming": ({"multiprocessors": 12, "shared_bytes": 20 << 10}, {"path": "streaming"}),
    "runs": ({"multiprocessors": 6, "run_bytes": 1}, {}),
    "two-runs": ({"multiprocessors": 6, "run_bytes": 1 << 17}, {}),
}


@pytest.mark.parametrize("compute", [None, "tfloat32", "float16"])
@pytest.mark.parametrize("device", WAVEFRONT_DEVICES)
@pytest.mark.parametrize("cell", CELLS)
def test_wavefronts_on_every_path(side: Any, cell: str, device: str, compute: str | None) -> None:
    facts, expected = WAVEFRONT_DEVICES[device]
    side.device(**facts)
    case = Stack(cell, 70, batch=9, compute=compute, lengths=(5, 2, 5, 0, 4, 5, 3, 1, 5), layers=3)
    plan = side.module.plan(cell, 4, 70, 64, 9, 1, "float32", compute, True, 3)
    for way in (plan, plan["backward"]):
        # Elsewhere a launch for each layer may be estimated to be faster: its plan is another.
        if way["layers_per_launch"] != [3]:
            assert compute != "float16" or device.endswith("runs"), way
        elif device != "streaming" or not cell.startswith("rnn"):
            assert expected.items() <= way.items(), way
            assert device != "groups" or way["groups"] > 1, way
    got = check(side, case)
    same_bits(got, run_stack(side, case)[0])


@pytest.mark.parametrize("compute", [None, "tfloat32", "float16"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_threads_does_not_matter_to_wavefronts(
    side: Any, cell: str, compute: str | None
) -> None:
    for shared in (227 << 10, 20 << 10):
        case = Stack(cell, 40, batch=5, compute=compute, lengths=(3, 0, 2, 3, 1), layers=3)
        side.device(multiprocessors=6, shared_bytes=shared, descending=False)
        rising = run_stack(side, case)[0]
        side.device(multiprocessors=6, shared_bytes=shared, descending=True)
        same_bits(rising, run_stack(side, case)[0])


def test_batches_longer_than_a_part_of_the_schedule(side: Any) -> None:
    lengths = tuple(int(n) for n in np.random.default_rng(0).integers(0, 4, 1001))
    check(side, Case("rnn_tanh", 3, batch=1001, steps=3, inputs=2, lengths=lengths))


@pytest.mark.parametrize("tokens", [False, True])
def test_more_rows_than_are_summed_at_once(side: Any, tokens: bool) -> None:
    check(side, Case("gru_after", 3, batch=1001, steps=5, inputs=2, tokens=tokens))


def test_inference_and_training_give_the_same_bits(side: Any) -> None:
    for cell in CELLS:
        kinds: dict[str, Any] = {
            "batch": 6,
            "lengths": (5, 1, 2, 3, 4, 0),
            "reverse": (False, True),
        }
        training = run(side, Case(cell, 13, **kinds))[0]
        inference = run(side, Case(cell, 13, keep=False, **kinds))[0]
        same_bits(inference, training)
        kinds["reverse"] = (False,)
        training = run_stack(side, Stack(cell, 13, layers=3, **kinds))[0]
        inference = run_stack(side, Stack(cell, 13, layers=3, keep=False, **kinds))[0]
        same_bits(inference, training)


def test_tokens_outside_count_as_the_nearest_inside(side: Any) -> None:
    check(side, Case("lstm", 5, batch=2, steps=2, tokens=True, given=((-3, 1), (0, 12))))


@pytest.mark.parametrize("mode", MODES, ids=mode_ids)
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
def test_matmul(
    side: Any, transpose_a: bool, transpose_b: bool, mode: tuple[str, str | None]
) -> None:
    dtype, compute = mode
    rng = np.random.default_rng(0)
    for m, n, k in [(1, 1, 1), (3, 65, 17), (130, 33, 40), (129, 1, 3), (1, 70, 130), (5, 4, 0)]:
        a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        bias, before = (
            rng.standard_normal(n).astype(dtype),
            rng.standard_normal((m, n)).astype(dtype),
        )
        product = a.astype(np.float64) @ b
        left = side.put(np.ascontiguousarray(a.T if transpose_a else a))
        right = side.put(np.ascontiguousarray(b.T if transpose_b else b))
        for accumulate in (False, True):
            out = side.put(before) if accumulate else side.empty((m, n), dtype)
            added = None if accumulate else side.put(bias)
            side.module.matmul(
                left, right, out, transpose_a, transpose_b, added, accumulate, compute, side.stream
            )
            want = product + (before if accumulate else bias)
            assert_close(f"{m} {n} {k}", side.get(out), want, TOLERANCE[mode])


def test_plans_of_a_large_device(side: Any) -> None:
    """On a made-up device of the size of an H100."""
    side.device(multiprocessors=132, shared_bytes=227 << 10)
    for cell, units, batch, directions in itertools.product(
        CELLS, (1, 5, 64, 100, 256, 650, 768, 1024, 1500, 2048), (1, 4, 16, 128), (1, 2)
    ):
        for dtype, compute in MODES:
            plan = side.module.plan(cell, 64, units, 64, batch, directions, dtype, compute, True)
            for way in (plan, plan["backward"]):
                blocks = way["groups"] * way["blocks_per_group"]
                assert 1 <= blocks * directions <= 132, way
                assert way["blocks_per_group"] * way["units_per_block"] >= units, way
                assert 1 <= way["groups"] <= batch, way
                assert way["shared_bytes"] <= 227 << 10, way
                assert way["workspace_bytes"] > 0, way
                if way["path"] != "streaming":
                    assert (way["path"] == "vector") == (batch <= 4), way
    assert side.module.plan("lstm", 64, 768, 64, 16, 1, "float32", "bfloat16", False)["path"] == (
        "resident"
    )
    # 64 MB of weights are more than 132 blocks can keep.
    streaming = side.module.plan("lstm", 64, 2048, 64, 16, 1, "float32", None, False)
    assert streaming["path"] == "streaming"
    assert "exceed shared memory" in streaming["reason"]
    # Where one group cannot use the device, the batch is split.
    assert side.module.plan("lstm", 64, 64, 64, 64, 1, "float32", "bfloat16", False)["groups"] > 1


def test_how_layers_share_launches(side: Any) -> None:
    """On a made-up device of the size of an H100, and on smaller ones."""

    def plan(units: int, layers: int, compute: str | None = "float16") -> dict[str, Any]:
        made: dict[str, Any] = side.module.plan(
            "lstm", 64, units, 256, 32, 1, "float32", compute, True, layers
        )
        return made

    side.device(multiprocessors=132, shared_bytes=227 << 10)
    for layers, launches in ((1, [1]), (2, [2]), (3, [3]), (4, [4])):
        for way in (plan(256, layers), plan(256, layers)["backward"]):
            assert way["layers_per_launch"] == launches, way
            assert way["groups"] * way["blocks_per_group"] * layers <= 132, way
            assert way["path"] == "resident", way
    assert "reason" in plan(256, 1)
    assert re.search(
        r"^wavefronts, by the estimate \d\.\d\d times as fast as a launch for each layer; "
        r"2 layers as a wavefront, each with \d+ groups of",
        plan(256, 2)["reason"],
    )
    many = plan(256, 9)["layers_per_launch"]
    assert sum(many) == 9
    assert 3 <= len(many) <= 4
    # Two layers of this size keep their weights in shared memory only by turns.
    large = plan(1024, 2)
    assert large["layers_per_launch"] == [1, 1]
    assert large["reason"].startswith("a launch for each layer: by the estimate wavefronts take 1.")
    assert plan(1024, 2)["path"] == "resident"
    # Where each step is a launch, the layers cannot work at once.
    side.device(multiprocessors=132, run_bytes=1)
    assert plan(256, 3)["layers_per_launch"] == [1, 1, 1]
    side.device(multiprocessors=1)
    assert plan(64, 3)["layers_per_launch"] == [1, 1, 1]
    assert plan(64, 3)["reason"].startswith("a launch for each layer: no wavefront fits the device")
    side.device()
    both = side.module.plan("lstm", 64, 64, 256, 32, 2, "float32", None, False, 3)
    assert both["layers_per_launch"] == [1, 1, 1]
    assert both["reason"].startswith("a launch for each layer: it takes both directions of")
    side.device(multiprocessors=1)
    split = ("lstm", 64, 256, 32, 3, "float32", "float16", False)
    assert side.module.layers_per_launch(*split) == [1, 1, 1]


def test_a_wait_in_vain_ends(side: Any) -> None:
    """Of many blocks and phases some are always early: they are to give up at once."""
    case = Case("lstm", 40, batch=6, steps=50, keep=False)
    side.device(multiprocessors=8, most_polls=0)
    assert side.module.plan("lstm", 4, 40, 50, 6, 1, "float32", None, False)["groups"] >= 1
    with pytest.raises(RuntimeError, match="a block waited in vain for another's flag"):
        run(side, case)
    side.device()
    check(side, case)


def test_groups_can_be_forced(side: Any) -> None:
    """To measure with; the plan's own choice is another."""
    side.device(multiprocessors=48)
    case = Case("lstm", 70, batch=9)
    size = ("lstm", 4, 70, 5, 9, 1, "float32", None, True)
    chosen = side.module.plan(*size)["groups"]
    try:
        for groups in (1, 2, 3):
            side.module.force_groups(groups)
            plan = side.module.plan(*size)
            assert (plan["groups"], plan["backward"]["groups"]) == (groups, groups)
            check(side, case)
        side.module.force_groups(50)
        with pytest.raises(ValueError, match="groups: no plan has 50 of them"):
            side.module.plan(*size)
    finally:
        side.module.force_groups(0)
    assert side.module.plan(*size)["groups"] == chosen


class Spoiled:
    """A side on which a number is added to one of a result, as it is fetched."""

    def __init__(self, side: Any, at: int, where: tuple[Any, ...]) -> None:
        self._side, self._at, self._where, self._fetched = side, at, where, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)

    def get(self, array: Any) -> Array:
        self._fetched += 1
        got: Array = self._side.get(array).copy()
        if self._fetched == self._at:
            got[self._where] += 1.0
        return got


def test_a_failure_tells_where(side: Any) -> None:
    case = Case("lstm", 33, batch=7, compute="float16", reverse=(True,), lengths=(5,) * 6 + (4,))
    plan = r"; plan: path \w+, groups \d+, blocks_per_group \d+, .*shared memory"
    # y comes first, then h, c, dx, dh, dc, and the weights.
    for at, where, says in (
        (
            1,
            (2, slice(3, 5), 7),
            r", forward: y 0: .* 2 of 1155 numbers .* first step 2, row 3, unit 7",
        ),
        (1, (slice(1, 4), 3, 7), r"first step 3, row 3, unit 7: .*in steps 1-3 of 5, rows 3 of 7"),
        (3, (6, 0), r", forward: c_n 0: .* first row 6, unit 0"),
        (4, (slice(1, 4), 3, 2), r", backward: dx: .* first step 1, row 3, input 2"),
        (5, (1, 2), r", backward: dh_0 0: .* first row 1, unit 2"),
        (8, (33 + 5, 9), r", backward: dweight_hh 0: .* first gate 1, unit 5, column 9"),
    ):
        with pytest.raises(AssertionError, match=f"cell='lstm'.*compute='float16'.*{says}.*{plan}"):
            check(Spoiled(side, at, where), case)


def test_devices_and_facts(side: Any) -> None:
    (device, *_) = side.module.devices()
    assert device.keys() == {"name", "capability", "multiprocessors", "memory"}
    assert side.module.facts("gru_after") == {
        "gates": 3,
        "saved": 4,
        "cell_state": False,
        "bias_hn": True,
    }


def bad(side: Any, message: str, error: type[Exception] = ValueError, **changes: Any) -> None:
    """forward() with one argument changed raises that error."""
    h, i, t, b = 4, 3, 2, 2
    p = {
        "x": side.empty((t, b, i), "float32"),
        "h": side.empty((b, h), "float32"),
        "weight_ih": side.empty((h, i), "float32"),
        "weight_hh": side.empty((h, h), "float32"),
        "y": side.empty((t, b, h), "float32"),
    }
    passes, stacked = changes.pop("passes", 1), changes.pop("stacked", False)
    call = {"cell": "rnn_tanh", "lengths": None, "compute": None}
    call |= {name: changes.pop(name) for name in list(call) if name in changes}
    space = changes.pop("workspace", None)
    if space is None:
        space = side.workspace(1 << 20)
    with pytest.raises(error, match=message):
        side.module.forward(
            call["cell"],
            [p | changes] * passes,
            call["lengths"],
            call["compute"],
            space,
            side.stream,
            stacked,
        )


def test_bad_arguments(side: Any) -> None:
    bad(side, "no cell is named", cell="gru")
    bad(side, "passes must be 1 or 2", passes=3)
    bad(side, "passes must not be empty", passes=0)
    bad(side, "passes must be 1 to 4 stacked layers, got 5", passes=5, stacked=True)
    bad(side, "x of stacked layer 1 must be None: it is the y", passes=2, stacked=True)
    bad(side, "compute must be", compute="int8")
    bad(side, "lengths must have 2 entries, got 1", lengths=[1])
    bad(side, r"lengths must lie in 0..2, got 3", lengths=[1, 3])
    bad(side, "x must be an array", TypeError, x=[1.0])
    bad(side, "x must be given", x=None)
    bad(side, r"x must have shape \(T, B, I\)", x=side.empty((4,), "float32"))
    bad(side, "x must be a <f4 array", x=side.empty((2, 2, 3), "float64"))
    bad(
        side,
        "x must have a contiguous last axis",
        x=side.empty((2, 3, 2), "float32").swapaxes(1, 2),
    )
    bad(side, r"h must be a <f4 array of shape \(2, 4\)", h=side.empty((2, 5), "float32"))
    bad(side, "h must be C-contiguous", h=side.empty((4, 2), "float32").T)
    bad(side, "weight_ih must be a", weight_ih=side.empty((5, 3), "float32"))
    bad(
        side,
        "weight_hh must be float32 or float64",
        TypeError,
        weight_hh=side.put(np.zeros((4, 4), np.int32)),
    )
    bad(side, "bias must be a", bias=side.empty((5,), "float32"))
    bad(side, "workspace must be", workspace=side.workspace(64))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        side.module.plan("lstm", 4, 4, 0, 1, 1, "float32", None, False)
    with pytest.raises(ValueError, match="compute must be None for float64"):
        side.module.plan("lstm", 4, 4, 1, 1, 1, "float64", "bfloat16", False)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        side.module.plan("lstm", 4, 4, 1, 1, 1, "float32", None, False, 0)


def test_what_stacked_layers_hand_each_other_is_no_argument(side: Any) -> None:
    array = side.empty((2, 2, 4), "float32")
    layer = {
        "x": array,
        "weight_ih": side.empty((4, 4), "float32"),
        "weight_hh": side.empty((4, 4), "float32"),
        "reverse": False,
    }
    space = side.workspace(64)
    for message, layers in (
        ("dx of stacked layer 1 must be None: it goes", [layer, layer | {"dx": array}]),
        ("dy of stacked layer 0 must be None: it comes", [layer | {"dy": array}, layer]),
        ("mask of stacked layer 1 must be None: no layer", [layer, layer | {"mask": array}]),
        ("reverse must be the same for all stacked", [layer, layer | {"reverse": True}]),
        ("mask must be a <f4 array", [layer | {"mask": side.empty((2, 2, 3), "float32")}, layer]),
    ):
        with pytest.raises(ValueError, match=message):
            side.module.backward("rnn_tanh", layers, None, None, space, side.stream, True)


def test_a_device_that_is_too_small(side: Any) -> None:
    side.device(multiprocessors=1)
    with pytest.raises(ValueError, match="passes: 2 need as many multiprocessors"):
        side.module.plan("lstm", 4, 4, 1, 1, 2, "float32", None, False)
    side.device(shared_bytes=64)
    with pytest.raises(ValueError, match="no plan fits 64 bytes"):
        side.module.plan("lstm", 4, 4, 1, 1, 1, "float32", None, False)
