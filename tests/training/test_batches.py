# SPDX-License-Identifier: Apache-2.0
"""Batches hold every sequence once, padded, in an order that follows from seed and epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk


def sequences(count: int = 23, features: int = 0, seed: int = 0) -> list[Any]:
    """Of lengths 0 to 8; the first token, or number, of each tells which one it is."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(rng.integers(0 if i else 1, 9))
        row = rng.standard_normal((length, features)) if features else rng.integers(1, 5, length)
        if length:
            row[0] = 100 + i
        rows.append(row)
    return rows


@pytest.mark.parametrize("features", [0, 3])
@pytest.mark.parametrize("bucket", [1, 2, 100])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sequence_is_there_once(shuffle: bool, bucket: int, features: int) -> None:
    rows = sequences(features=features)
    data = rk.batches(rows, np.arange(23), 5, shuffle=shuffle, seed=1, bucket=bucket, pad=-1)
    assert len(data) == 5
    seen = []
    for x, lengths, targets in data:
        assert x.flags.c_contiguous
        assert x.dtype == (np.float32 if features else np.int64)
        assert x.shape[:2] == (lengths.max(), len(lengths))
        for b, row in enumerate(targets):
            np.testing.assert_array_equal(x[: lengths[b], b], rows[row].astype(x.dtype))
            assert (x[lengths[b] :, b] == -1).all()
        seen += targets.tolist()
    assert sorted(seen) == list(range(23))
    assert (seen == list(range(23))) == (not shuffle and bucket == 1)


def test_an_epoch_follows_from_its_number() -> None:
    data = rk.batches(sequences(), np.arange(23), 5, shuffle=True, seed=3, bucket=2)
    again = rk.batches(sequences(), np.arange(23), 5, shuffle=True, seed=3, bucket=2)
    first, second = ([t.tolist() for _, _, t in data] for _ in range(2))
    assert first != second
    assert [t.tolist() for _, _, t in again.epoch(1)] == second
    assert [t.tolist() for _, _, t in again.epoch(1, start=3)] == second[3:]
    assert [t.tolist() for _, _, t in again] == first  # asking for one does not begin it
    other = rk.batches(sequences(), np.arange(23), 5, shuffle=True, seed=4, bucket=2)
    assert [t.tolist() for _, _, t in other] != first


def test_buckets_hold_rows_of_like_lengths() -> None:
    rng = np.random.default_rng(0)
    rows = [np.ones(n, np.int64) for n in rng.integers(1, 200, 320)]
    padding = {}
    for bucket in (1, 5):
        data = rk.batches(rows, batch_size=16, shuffle=True, seed=0, bucket=bucket)
        cells = [(x.size, int(lengths.sum())) for x, lengths, _ in data]
        padding[bucket] = sum(size - live for size, live in cells) / sum(s for s, _ in cells)
        steps = [len(x) for x, _, _ in data]
        assert steps != sorted(steps)  # batches come in any order
    assert padding[1] > 0.35
    assert padding[5] < 0.2


def test_targets_of_steps_are_padded_and_those_of_rows_are_not() -> None:
    x = sequences(4)
    for targets, shape in (
        ([np.arange(len(row)) for row in x], "TB"),  # a class a step
        ([np.ones((len(row), 2)) for row in x], "TB2"),  # numbers a step
        ([0, 1, 2, 3], "B"),  # a class a row
        (np.ones((4, 2)), "B2"),  # numbers a row
        ([[0.5, 1.0]] * 4, "B2"),
    ):
        steps = max(len(row) for row in x)
        _, lengths, got = next(iter(rk.batches(x, targets, 4, target_pad=7)))
        sizes = {"T": steps, "B": 4, "2": 2}
        assert got.shape == tuple(sizes[letter] for letter in shape)
        if "T" in shape:
            assert (got[:, np.argmin(lengths)][min(lengths) :] == 7).all()
    answers = [[1, 2], [3], [], [4, 5, 6]]  # of another length than what is read
    _, _, got = next(iter(rk.batches(x, answers, 4, target_pad=9)))
    assert got.T.tolist() == [[1, 2, 9], [3, 9, 9], [9, 9, 9], [4, 5, 6]]


def test_one_array_has_lengths_where_they_are_given() -> None:
    x = np.arange(24).reshape(4, 6)
    batch, lengths, targets = next(iter(rk.batches(x, x % 2, 2)))
    assert lengths is None
    np.testing.assert_array_equal(batch, x[:2].T)
    np.testing.assert_array_equal(targets, x[:2].T % 2)
    batch, lengths, targets = next(iter(rk.batches(x, x % 2, 2, lengths=[3, 1, 6, 2])))
    assert lengths.tolist() == [3, 1]
    np.testing.assert_array_equal(batch, x[:2, :3].T)
    np.testing.assert_array_equal(targets, x[:2, :3].T % 2)


def test_batch_first_and_dtype_and_drop_last() -> None:
    data = rk.batches(
        sequences(features=2),
        [np.ones((len(row), 1)) for row in sequences(features=2)],
        5,
        batch_first=True,
        dtype="float64",
        drop_last=True,
    )
    got = list(data)
    assert len(got) == len(data) == 4
    for x, lengths, targets in got:
        assert x.dtype == targets.dtype == np.float64
        assert x.shape == (5, lengths.max(), 2)
        assert targets.shape == (5, lengths.max(), 1)


def test_a_seed_of_none_is_drawn_once() -> None:
    rows = np.arange(64)[:, None]
    data = rk.batches(rows, batch_size=64, shuffle=True)
    assert next(data.epoch(0)).x.tolist() == next(data.epoch(0)).x.tolist()
    assert next(data.epoch(0)).x.tolist() != next(data.epoch(1)).x.tolist()
    other = rk.batches(rows, batch_size=64, shuffle=True)
    assert next(data.epoch(0)).x.tolist() != next(other.epoch(0)).x.tolist()


def test_batches_say_what_they_are() -> None:
    data = rk.batches(sequences(), batch_size=5, shuffle=True, seed=1, bucket=2)
    text = "Batches(23 sequences of 0 to 8 steps, batch_size=5, shuffle=True, seed=1, bucket=2)"
    assert repr(data) == text
    same = rk.batches(np.zeros((4, 6), int), seed=3)
    assert repr(same) == "Batches(4 sequences of 6 steps, batch_size=32, shuffle=False, seed=3)"


@pytest.mark.parametrize("batch_first", [False, True])
def test_unpad_is_the_way_back(batch_first: bool) -> None:
    rng = np.random.default_rng(0)
    for rows in ([[1, 2, 3], [4], []], [rng.random((n, 2)) for n in (0, 4, 2)]):
        padded, lengths = rk.pad(rows, batch_first=batch_first)
        found = rk.unpad(padded, lengths, batch_first=batch_first)
        padded[...] = 9
        assert [row.tolist() for row in found] == [np.asarray(row).tolist() for row in rows]
    assert rk.unpad(np.zeros((3, 0)), np.zeros(0, int)) == []
    with pytest.raises(ValueError, match=r"axes of steps and of rows, got shape \(3,\)"):
        rk.unpad(np.zeros(3), [3])
    with pytest.raises(ValueError, match=r"lengths must lie in 0\.\.3, got 1\.\.4"):
        rk.unpad(np.zeros((3, 2)), [1, 4])
    with pytest.raises(ValueError, match=r"lengths must be integers \(2,\), got int64 of shape"):
        rk.unpad(np.zeros((3, 2)), [1, 2, 3])
    with pytest.raises(TypeError, match="batch_first must be True or False"):
        rk.unpad(np.zeros((3, 2)), [1, 2], batch_first=2)  # type: ignore[arg-type]


def test_pad() -> None:
    x, lengths = rk.pad([[1, 2, 3], [4]], value=-1)
    assert x.tolist() == [[1, 4], [2, -1], [3, -1]]
    assert lengths.tolist() == [3, 1]
    x, lengths = rk.pad([np.ones((2, 3)), np.zeros((4, 3))], batch_first=True)
    assert x.shape == (2, 4, 3)
    assert x.sum() == 6.0
    with pytest.raises(ValueError, match="sequences must hold arrays with an axis of steps"):
        rk.pad([])


ROWS = [[1, 2], [3]]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([],), {}, ValueError, "x must hold at least one sequence"),
        ((5,), {}, ValueError, "x must have one item for each sequence, got 5"),
        ((np.ones((4, 3)),), {}, ValueError, r"x\[..., None\] makes one feature a step"),
        ((np.ones((4, 3, 2), int),), {}, ValueError, r"x must hold sequences .*got \(3, 2\)"),
        ((["ab"],), {}, TypeError, r"x\[0\] must be an array of numbers, got the text 'ab'"),
        (([[1], [0.5]],), {}, TypeError, "x must be all integers or all floats"),
        (([np.ones((2, 2)), np.ones((2, 3))],), {}, ValueError, r"x\[1\] of shape \(2, 3\)"),
        ((ROWS, [1]), {}, ValueError, "targets must have one for each x, 2, got 1"),
        ((ROWS, [0.5, 1.0]), {}, ValueError, r"targets\[:, None\] makes rows of one number"),
        ((ROWS, None, 0), {}, ValueError, "batch_size must be a positive integer, got 0"),
        ((ROWS,), {"bucket": 0}, ValueError, "bucket must be a positive integer"),
        ((ROWS,), {"seed": -1}, ValueError, "seed must be an integer of at least 0"),
        ((ROWS,), {"shuffle": 1}, TypeError, "shuffle must be True or False"),
        ((ROWS,), {"lengths": [1, 1]}, ValueError, "lengths are for an x that is one array"),
        ((np.ones((2, 3), int),), {"lengths": [4, 1]}, ValueError, r"lengths must lie in 0\.\.3"),
        ((np.ones((2, 3), int),), {"lengths": [1]}, ValueError, r"lengths must be integers \(2,\)"),
        ((np.ones((2, 3), int),), {"lengths": [1.0, 2.0]}, ValueError, "got float64"),
        ((ROWS,), {"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64'"),
    ],
)
def test_bad_arguments_are_named(
    arguments: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rk.batches(*arguments, **options)
