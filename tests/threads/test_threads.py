# SPDX-License-Identifier: Apache-2.0
"""The number of threads changes no bit, nor does a change of it, and layers are shared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from rnnkern import _core

from support.compare import assert_close, assert_same_bits
from support.layers import (
    CELLS,
    DTYPES,
    make,
    run_all,
)
from support.reference import Array
from support.threads import check_same_bits, using_threads

# steps, batch, inputs, hidden: sizes that are shared by rows, shared by units (the last, also where
# a step has no product) and not at all; rows and units that tiles divide and do not; rows so many
# that they are summed part by part.
SIZES = [
    (12, 37, 40, 65),
    (8, 15, 10, 129),
    (4, 64, 16, 64),
    (12, 1, 7, 33),
    (5, 3, 40, 129),
    (40, 3, 150, 70),
]
MANY_ROWS = (35, 1000, 3, 5)


def problem(cell: str, size: tuple[int, int, int, int], dtype: str) -> tuple[Any, Array, Array]:
    """A stacked bidirectional layer with dropout, its input and ragged lengths."""
    steps, batch, inputs, hidden = size
    rng = np.random.default_rng(4)
    layer = make(cell, inputs, hidden, 2, bidirectional=True, dropout=0.3, dtype=dtype)
    x = rng.standard_normal((steps, batch, inputs)).astype(dtype)
    return layer, x, rng.integers(0, steps + 1, batch)


@pytest.mark.parametrize("size", [*SIZES, MANY_ROWS], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_for_any_number_of_threads(
    cell: str, dtype: str, size: tuple[int, int, int, int]
) -> None:
    layer, x, lengths = problem(cell, size, dtype)
    tokens = np.random.default_rng(6).integers(0, size[2], x.shape[:2])
    check_same_bits(
        lambda: [
            *run_all(layer, cell, x, lengths, 7),
            *run_all(layer, cell, x, None, 7),
            *run_all(layer, cell, tokens, lengths, 7),
        ],
        threads=(2, 4),
        teams=(),
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_when_the_team_changes_in_the_middle(
    cell: str, size: tuple[int, int, int, int]
) -> None:
    layer, x, lengths = problem(cell, size, "float32")
    tokens = np.random.default_rng(6).integers(0, size[2], x.shape[:2])
    check_same_bits(
        lambda: run_all(layer, cell, x, lengths, 7) + run_all(layer, cell, tokens, lengths, 7),
        teams=([1], [4, 1, 3, 2]),
    )


def test_same_bits_when_the_team_changes_between_chunks() -> None:
    """Long enough for several runs of steps, by rows of the batch and by units."""
    for size in [(40, 40, 8, 24), (1100, 1, 3, 70)]:
        layer, x, _ = problem("gru_before", size, "float32")
        compute = partial(run_all, layer, "gru_before", x, None, 7)
        check_same_bits(compute, teams=[[3, 2, 4, 1]])


@pytest.mark.parametrize("cell", CELLS)
def test_the_sizes_above_are_shared_in_every_way(cell: str) -> None:
    with using_threads(4):
        plans = [make(cell, i, h).plan(steps, batch) for steps, batch, i, h in SIZES]
    assert {(p["row_groups"] > 1, p["unit_groups"] > 1) for p in plans} == {
        (True, False),
        (False, True),
        (False, False),
    }
    assert all(p["threads"] == p["row_groups"] * p["unit_groups"] for p in plans)
    assert all(p["reason"] for p in plans)


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_a_run_repeats_itself(size: tuple[int, int, int, int]) -> None:
    layer, x, lengths = problem("lstm", size, "float32")
    with using_threads(4):
        first = run_all(layer, "lstm", x, lengths, 7)
        for _ in range(10):
            for got, want in zip(run_all(layer, "lstm", x, lengths, 7), first, strict=True):
                assert_same_bits("again", got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (7, 200, 33), (129, 100, 65), (300, 17, 400)], ids=str
)
def test_matrix_product_has_the_same_bits(sizes: tuple[int, int, int], dtype: str) -> None:
    rows, columns, depth = sizes
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, depth)).astype(dtype)
    b = rng.standard_normal((depth, columns)).astype(dtype)
    bias = rng.standard_normal(columns).astype(dtype)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            plain = _core.matmul(a, b, bias=bias)
            turned = _core.matmul(a.T.copy(), b, transpose_a=True)
            added = np.ones((rows, columns), dtype)
            _core.matmul(a, b.T.copy(), out=added, transpose_b=True, accumulate=True)
        results.append((plain, turned, added))
        for got, want in [(plain, exact + bias), (turned, exact), (added, exact + 1.0)]:
            assert_close("product", got, want, {"float32": 1e-6, "float64": 1e-14}[dtype])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits("product", got, want)


def test_two_layers_shared_by_eight_threads() -> None:
    """Each thread uses both layers, on inputs of its own, and gets what it would get alone."""
    tasks = []
    for cell, size in [("lstm", SIZES[0]), ("gru_before", SIZES[2])]:
        layer, x, lengths = problem(cell, size, "float32")
        tasks += [(layer, cell, np.roll(x, k, axis=1), np.roll(lengths, k), k) for k in range(8)]
    want = [run_all(*task) for task in tasks]
    barrier = Barrier(8)

    def work(first: int) -> list[tuple[int, list[Array]]]:
        barrier.wait(timeout=60)
        order = [(first + k) % len(tasks) for k in range(len(tasks))]
        return [(k, run_all(*tasks[k])) for k in order]

    with ThreadPoolExecutor(8) as pool:
        for done in pool.map(work, range(0, 16, 2)):
            for k, got in done:
                for g, w in zip(got, want[k], strict=True):
                    assert_same_bits(f"task {k}", g, w)
