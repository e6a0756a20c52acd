# SPDX-License-Identifier: Apache-2.0
"""The depth program: its brackets, equal numbers of parameters, and what layers are good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rnnkern.cells import CELLS
from rnnkern.explore import depth
from rnnkern.explore.budget import equal_units
from rnnkern.explore.depth import (
    CLOSING,
    KINDS,
    NESTED,
    SMUDGED_CLOSING,
    SMUDGED_OPENING,
    TOKENS,
    draw,
    learned,
    units_of,
)
from rnnkern.explore.model import Model
from rnnkern.explore.result import Result
from rnnkern.explore.run import Run
from rnnkern.models.summary import num_parameters

from support.experiments import check_picture, check_refusals, written

RUN = Run(cells=["rnn"])


@pytest.fixture(scope="module")
def result() -> Result:
    return depth(cells=("simplified-gru",), quick=True)


@pytest.mark.parametrize("length", [6, 24])
def test_brackets_are_balanced_and_their_kinds_can_be_told(length: int) -> None:
    batch = draw(np.random.default_rng(0), 200, length)
    assert batch.mask is not None
    assert batch.x.shape == batch.targets.shape == batch.mask.shape == (2 * length, 200)
    assert not batch.mask[0::2].any()
    smudged = {SMUDGED_OPENING: 0, SMUDGED_CLOSING: 0}
    deepest = 0
    for first, second, kinds, counted in zip(
        batch.x[0::2].T, batch.x[1::2].T, batch.targets[1::2].T, batch.mask[1::2].T, strict=True
    ):
        stack: list[tuple[int, bool]] = []
        for letter, token, kind, counts in zip(first, second, kinds, counted, strict=True):
            assert 0 <= letter < KINDS
            assert counts == (token in smudged)
            if counts:
                smudged[token] += 1
            else:
                assert kind == (letter + token) % KINDS
            if CLOSING <= token < SMUDGED_OPENING or token == SMUDGED_CLOSING:
                of_opening, was_smudged = stack.pop()
                assert of_opening == kind
                assert not (was_smudged and counts)
            else:
                stack.append((kind, counts))
                deepest = max(deepest, len(stack))
        assert stack == []
    assert deepest == min(NESTED, length // 2)
    assert all(count > 0.05 * length * 200 for count in smudged.values())


def test_kinds_of_smudged_brackets_cannot_be_guessed() -> None:
    batch = draw(np.random.default_rng(1), 2000)
    shares = np.bincount(batch.targets[batch.mask]) / batch.mask.sum()  # type: ignore[union-attr]
    np.testing.assert_allclose(shares, 1.0 / KINDS, atol=0.02)


def test_the_same_seed_gives_the_same_brackets() -> None:
    one, same, other = (draw(np.random.default_rng(seed), 5).x for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_asked_brackets_are_not_trained_on() -> None:
    trained, asked = (draw(np.random.default_rng([0, stream]), 3000).x.T for stream in (0, 1))
    assert {row.tobytes() for row in trained}.isdisjoint(row.tobytes() for row in asked)


@pytest.mark.parametrize("cell", list(CELLS))
def test_numbers_of_parameters_are_alike(cell: str) -> None:
    counts = [
        num_parameters(
            Model(cell, TOKENS, units, KINDS, num_layers=layers, bidirectional=reads == "both ways")
        )
        for (reads, layers), units in units_of(cell, 8000).items()
    ]
    assert len(counts) == 6
    assert max(counts) / min(counts) < 1.08
    assert 0.85 * 8000 < min(counts) < max(counts) < 1.15 * 8000


def test_equal_units_finds_an_exact_fit() -> None:
    assert equal_units([lambda n: 10 * n, lambda n: 25 * n, lambda n: n * n], 100) == [10, 4, 10]


def test_the_simple_rnn_needs_layers() -> None:
    units = units_of("rnn", 4000)
    (_, one), (_, three) = (
        learned(RUN, "rnn", "both ways", layers, units["both ways", layers], 0, 300, 6)
        for layers in (1, 3)
    )
    assert one["opening"] >= 67.0
    assert three["opening"] <= 62.0


def test_what_comes_after_is_told_both_ways_alone() -> None:
    units = units_of("gru", 4000)
    (_, forward), (_, both) = (
        learned(RUN, "gru", reads, 1, units[reads, 1], 0, 250, 6)
        for reads in ("forward", "both ways")
    )
    assert 65.0 <= forward["opening"] <= 85.0
    assert forward["closing"] <= 45.0
    assert both["opening"] <= 35.0


def test_numbers_table_and_picture(result: Result, tmp_path: Path) -> None:
    numbers = written(result, "depth", tmp_path)
    assert [(row["reads"], row["layers"]) for row in numbers["rows"]] == [
        (reads, layers) for reads in ("forward", "both ways") for layers in (1, 2, 3)
    ]
    assert "closing" in result.table()
    check_picture(result, tmp_path)


def test_wrong_arguments() -> None:
    check_refusals(depth)
