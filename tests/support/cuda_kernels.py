# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels, emulated on the host or on a GPU, held against reference.py."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rnnkern.devices import CellOptions, LayerSpec, cell_facts

from support import reference
from support.compare import assert_close, assert_same_bits
from support.draws import ByRow, Zoned
from support.emulation import emulated_kernels
from support.gpu import the_gpu
from support.locate import assert_right
from support.reference import Array

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
        self.module: Any = emulated_kernels()
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
        found = the_gpu()
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
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    cell_zoneout: float = 0.0
    given_functions: bool = False  # the cell's own, as a layer is given others

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
            if reference.CELLS[self.cell].own_bias:
                made["bias_hn"] = self.random(self.units, seed=seed + 3)
        return {name: p.astype(self.dtype) for name, p in made.items()}

    def draws(self, k: int) -> dict[str, Array]:
        """What is drawn of direction, or layer, k."""
        rng, drawn = np.random.default_rng(60 + k), {}
        if self.recurrent_dropout:
            rest = 1.0 - self.recurrent_dropout
            kept = rng.random((self.batch, self.units)) < rest
            drawn["h_factors"] = (kept / rest).astype(self.dtype)
        for name, share in (("zone_h", self.zoneout), ("zone_c", self.cell_zoneout)):
            if share and self.keep:
                drawn[name] = rng.random((self.steps, self.batch, self.units)) < share
        return drawn

    def cell_of(self, k: int, rows: slice, *, reverse: bool) -> reference.Cell:
        """The reference's, for some rows of direction, or layer, k."""
        cell, draws = reference.CELLS[self.cell], self.draws(k)
        if not (self.zoneout or self.cell_zoneout):
            return cell
        zones: list[Any] = [self.zoneout, self.cell_zoneout]
        for i, name in enumerate(("zone_h", "zone_c")):
            if name in draws:  # from the first processed step on
                zones[i] = draws[name][np.newaxis, :: -1 if reverse else 1, rows]
        return Zoned(cell, zones[: cell.states], self.steps, 1)

    given: tuple[tuple[int, ...], ...] | None = None  # tokens other than the drawn ones

    def spec(self) -> LayerSpec:
        return spec(
            self.cell,
            self.inputs,
            self.units,
            directions=len(self.reverse),
            dtype=self.dtype,
            compute=self.compute,
            recurrent_dropout=self.recurrent_dropout,
            zoneout=self.zoneout,
            cell_zoneout=self.cell_zoneout,
            options=self.options(),
        )

    def options(self) -> tuple[CellOptions, ...] | None:
        if not self.given_functions:
            return None
        candidate = "relu" if self.cell == "rnn_relu" else "tanh"
        gate, own, output = ((name, 0.0, 0.0) for name in ("sigmoid", candidate, "tanh"))
        return (CellOptions(gate, own, output, clip=np.inf, cell_clip=np.inf),) * len(self.reverse)

    def x(self) -> Array:
        if self.given is not None:
            return np.array(self.given)
        if self.tokens:
            return np.random.default_rng(9).integers(0, self.inputs, (self.steps, self.batch))
        return self.random(self.steps, self.batch, self.inputs, seed=9)


def spec(
    cell: str, inputs: int, units: int, *, dtype: str = "float32", **options: Any
) -> LayerSpec:
    return LayerSpec(cell, inputs, units, dtype=np.dtype(dtype), **options)


Results = dict[str, Array]


def oracle(case: Case, k: int, own: dict[str, Array], lengths: Array, *, reverse: bool) -> Any:
    """Direction, or layer, k of the reference, with these weights."""
    rows = len(own["weight_hh"])
    shapes = {"bias": rows, "bias_hn": case.units}
    whole = {name: np.zeros(shape) for name, shape in shapes.items()} | own
    w = reference.Weights(
        *(whole[n].astype(np.float64) for n in ("weight_ih", "weight_hh", "bias", "bias_hn"))
    )

    def of(rows: slice, w: reference.Weights) -> reference.Direction:
        cell = case.cell_of(k, rows, reverse=reverse)
        return reference.Direction(cell, w, lengths[rows], reverse=reverse)

    factors = case.draws(k).get("h_factors")
    return of(slice(None), w) if factors is None else ByRow(w, factors.astype(np.float64), of)


def run(side: Any, case: Case) -> tuple[Results, Results]:
    """Forward and, where the case keeps, backward: what the kernels gave, and the reference."""
    facts = cell_facts(case.cell)
    steps, batch, inputs, units = case.steps, case.batch, case.inputs, case.units
    directions, dtype = len(case.reverse), case.dtype
    lengths = np.full(batch, steps) if case.lengths is None else np.array(case.lengths)
    host_lengths = None if case.lengths is None else lengths
    live = int(lengths.sum())
    states = facts.states
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
        common |= {name: side.put(p) for name, p in (own | case.draws(k)).items()}
        common |= {"saved": None, "cells": None}
        if case.keep:
            common["saved"] = side.empty((live, facts.saved, units), dtype)
            common["cells"] = side.empty((live, units), dtype)
            common["fresh_c"] = side.empty((live, units), dtype)
        forward.append(common | {s: side.put(a) for s, a in zip(states, first, strict=True)})
        backward.append(
            common
            | {f"{s}_0": side.put(a) for s, a in zip(states, first, strict=True)}
            | {f"d{s}": side.put(a) for s, a in zip(states, last, strict=True)}
            | {f"d{name}": side.put(np.full_like(p, 0.5)) for name, p in own.items()}
            | {"dy": None if case.upstream == "state" else device_dy[..., half], "dx": dx}
        )

        direction = oracle(case, k, own, lengths, reverse=reverse)
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

    call = side.module.Call(case.spec(), steps, batch, host_lengths, tokens=case.tokens)
    got = _gone_forward(side, call, case, forward)
    if case.keep:
        got |= _gone_back(side, call, case, backward)
        if dx is not None:
            got["dx"] = side.get(dx) - dx_before
    return got, want


def _gone_forward(side: Any, call: Any, case: Case, passes: list[Any]) -> Results:
    """What a pass forward gives, by name and place."""
    call.forward(passes, side.workspace(call.forward_workspace), side.stream)
    got: Results = {}
    for k, p in enumerate(passes):
        got[f"y {k}"] = side.get(p["y"])
        got |= {f"{s}_n {k}": side.get(p[s]) for s in cell_facts(case.cell).states}
    return got


def _gone_back(side: Any, call: Any, case: Case, passes: list[Any]) -> Results:
    """Likewise of a pass back, without dx: gradients of the states and of the parameters."""
    call.backward(passes, side.workspace(call.backward_workspace), side.stream)
    got: Results = {}
    for k, p in enumerate(passes):
        got |= {f"d{s}_0 {k}": side.get(p[f"d{s}"]) for s in cell_facts(case.cell).states}
        got |= {f"d{n} {k}": side.get(p[f"d{n}"]) - 0.5 for n in case.params(seed=0)}
    return got


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
            case.spec()._replace(layers=len(way)) if stacked else case.spec(),
            case.steps,
            case.batch,
            True,
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
    facts, (reverse,) = cell_facts(case.cell), case.reverse
    steps, batch, inputs, units, dtype = (
        *(case.steps, case.batch, case.inputs, case.units),
        case.dtype,
    )
    lengths = np.full(batch, steps) if case.lengths is None else np.array(case.lengths)
    host_lengths = None if case.lengths is None else lengths
    live, top = int(lengths.sum()), case.layers - 1
    states = facts.states
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
        common: dict[str, Any] = {n: side.put(p) for n, p in (own | case.draws(k)).items()}
        common |= {"reverse": reverse, "mask": None}
        if case.dropout and k < top:
            common["mask"] = side.put(case.mask(k))
        common |= {"y": side.empty((steps, batch, units), dtype), "saved": None, "cells": None}
        if case.keep:
            common["saved"] = side.empty((live, facts.saved, units), dtype)
            common["cells"] = side.empty((live, units), dtype)
            common["fresh_c"] = side.empty((live, units), dtype)
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
        direction = oracle(case, k, own, lengths, reverse=reverse)
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

    tokens, layers = case.tokens, case.layers
    call = side.module.Call(case.spec(), steps, batch, host_lengths, tokens=tokens, layers=layers)
    got = _gone_forward(side, call, case, forward)
    if case.keep:
        backward[0]["x"] = side.put(x)
        for lower, upper in itertools.pairwise(backward):
            upper["x"] = lower["y"] if lower["mask"] is None else lower["y"] * lower["mask"]
        got |= _gone_back(side, call, case, backward)
        if dx is not None:
            got["dx"] = side.get(dx) - dx_before
    return got, want


def same_bits(one: Results, other: Results) -> None:
    for name, a in one.items():
        assert_same_bits(name, a, other[name])


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


def check_matmul(
    side: Any, transpose_a: bool, transpose_b: bool, mode: tuple[str, str | None]
) -> None:
    """Products of many shapes, with a bias or added to what is there."""
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
