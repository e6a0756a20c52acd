# SPDX-License-Identifier: Apache-2.0
"""The adder's questions, answers and pairs of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern.adder import Encoding, Pairs


def numbers(*values: int) -> Any:
    return np.array(values, np.int64)


def test_questions_and_answers_are_encoded_as_documented() -> None:
    encoding = Encoding(3)
    # 061+535 from its end; 0596 from its end.
    assert encoding.questions(numbers(61), numbers(535))[:, 0].tolist() == [5, 3, 5, 10, 1, 6, 0]
    assert encoding.questions(numbers(12), numbers(345))[:, 0].tolist() == [5, 4, 3, 10, 2, 1, 0]
    answers = encoding.answers(numbers(596))
    assert answers[:, 0].tolist() == [6, 9, 5, 0]
    assert encoding.fed(answers)[:, 0].tolist() == [10, 6, 9, 5]


@pytest.mark.parametrize("digits", [1, 3, 6])
def test_answers_are_read_back(digits: int) -> None:
    encoding = Encoding(digits)
    totals = np.unique(np.linspace(0, 2 * 10**digits - 2, 1999).astype(np.int64))
    tokens = encoding.answers(totals)
    assert tokens.max() <= 9
    whole = np.full(len(totals), digits + 1)
    np.testing.assert_array_equal(encoding.totals(tokens, whole), totals)
    # What comes after an answer's end does not count.
    tokens[1:] = 9
    ended = np.ones(len(totals), np.int64)
    np.testing.assert_array_equal(encoding.totals(tokens, ended), totals % 10)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_every_pair_comes_exactly_once(digits: int) -> None:
    pairs = Pairs(digits, 0.2)
    a, b = pairs.at(np.arange(pairs.count))
    limit = 10**digits
    assert pairs.count == limit**2
    assert pairs.trained * 5 == pairs.count
    assert a.min() == b.min() == 0
    assert a.max() == b.max() == limit - 1
    assert len(np.unique(a * limit + b)) == pairs.count


def test_pairs_of_many_digits_come_once() -> None:
    pairs = Pairs(5, 0.2)
    assert pairs.count == 10**10
    index = np.arange(0, pairs.count, 99_991)
    a, b = pairs.at(index)
    assert len(np.unique(a * 10**5 + b)) == len(index)
    # Shuffled well: every digit of every place about as often as any other.
    for numbers_ in (a, b):
        for place in range(5):
            counts = np.bincount(numbers_ // 10**place % 10, minlength=10)
            assert np.all(np.abs(counts - len(index) / 10) < 5 * np.sqrt(len(index) / 10))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_training_never_sees_a_held_out_pair() -> None:
    pairs = Pairs(2, 0.2)
    a, b = pairs.at(np.arange(pairs.trained))
    trained = set((a * 100 + b).tolist())
    assert len(trained) == 2000
    seen = set()
    for step in range(300):
        a, b = pairs.batch(64, 0, step)
        seen |= set((a * 100 + b).tolist())
    assert seen <= trained
    assert len(seen) > 0.99 * len(trained)
    a, b = pairs.held_out(3000)
    held_out = set((a * 100 + b).tolist())
    assert len(held_out) == 3000
    assert not held_out & trained
    assert len(pairs.held_out(10**6)[0]) == 8000


def test_batches_follow_seed_and_step_alone() -> None:
    first, again = Pairs(3, 0.2), Pairs(3, 0.2)
    kept = {(s, t): first.batch(64, s, t)[0].tobytes() for s in (0, 1) for t in (0, 1, 2)}
    assert len(set(kept.values())) == 6
    for (seed, step), content in kept.items():
        assert again.batch(64, seed, step)[0].tobytes() == content


def test_batches_have_more_of_the_extremes() -> None:
    pairs = Pairs(3, 0.2)
    a, b = (
        np.concatenate(n) for n in zip(*(pairs.batch(256, 0, t) for t in range(200)), strict=True)
    )
    assert a.shape == b.shape == (200 * 256,)
    smaller = np.minimum(a, b)
    # 2% of all pairs have a number of one digit, and 28% of those that are the smallest of 16.
    assert 0.045 < np.mean(smaller < 10) < 0.06
    # 0.25% of all pairs have two numbers from 950 on, and 4% of those that are the largest of 16.
    assert 0.005 < np.mean(smaller >= 950) < 0.009
    # Three in four are drawn evenly.
    middle = np.mean((smaller >= 250) & (smaller < 500))
    assert 0.75 < middle / 0.3125 < 0.9
    assert len(pairs.batch(3, 0, 0)[0]) == 3


def test_the_split_is_the_same_for_ever() -> None:
    # A model's held-out pairs must stay held out: these numbers must never change.
    a, b = Pairs(3, 0.2).at(numbers(0, 199_999, 200_000, 999_999))
    assert list(zip(a.tolist(), b.tolist(), strict=True)) == [
        (588, 56),
        (721, 569),
        (917, 539),
        (433, 641),
    ]
