# SPDX-License-Identifier: Apache-2.0
"""The review program: its reviews, and that the words that decide move a gated cell most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnkern.explore import review
from rnnkern.explore.model import Model
from rnnkern.explore.result import Result
from rnnkern.explore.review import (
    VOCABULARY,
    Review,
    asked,
    batch_of,
    movement,
    shown,
    trained_on,
)

from support.experiments import check_picture, check_refusals, written

PRAISE = {"superb", "gripping", "lovely", "brilliant", "charming", "moving"}
BLAME = {"dull", "awful", "clumsy", "boring", "tedious", "shallow"}


NUMBERS = ("right", "right with not", "ratio", "gate ratio")


@pytest.fixture(scope="module")
def result() -> Result:
    return review(cells=("rnn", "gru"), seeds=3, quick=True)


def check(one: Review) -> None:
    """What a review says of itself, from its words alone: a "not" turns its own sentence round."""
    score, deciding = 0, []
    for sentence in " ".join(one.words).split("."):
        words = sentence.split()
        polar = [w for w in words if w in PRAISE | BLAME]
        deciding += [bool(polar) and w in {"not", *polar} for w in words] + [False]
        if polar:
            (word,) = polar
            score += (1 if word in PRAISE else -1) * (-1 if "not" in words else 1)
    assert score % 2 == 1
    assert one.positive == (score > 0)
    assert list(one.deciding) == deciding[:-1]  # nothing follows the last full stop


def test_labels_follow_from_the_words() -> None:
    reviews = trained_on(3, 400)
    for one in reviews:
        check(one)
    assert 0.4 < np.mean([one.positive for one in reviews]) < 0.6
    assert any(one.negated for one in reviews)
    assert any("not" in one.words and not one.negated for one in reviews)
    assert np.mean([np.mean(one.deciding) for one in reviews]) < 0.15  # few words decide


def test_held_out_reviews_are_not_trained_on() -> None:
    trained = {one.words for one in trained_on(0, 1500)}
    assert trained.isdisjoint(one.words for one in asked(0, 500))
    assert shown(0).words not in trained


def test_the_same_seed_gives_the_same_reviews() -> None:
    assert trained_on(5, 50) == trained_on(5, 50)
    assert trained_on(5, 50) != trained_on(6, 50)
    assert shown(5) == shown(5)


def test_the_review_shown_has_a_deciding_not_and_three_opinions() -> None:
    for seed in range(5):
        one = shown(seed)
        check(one)
        assert one.negated
        assert sum(word in PRAISE | BLAME for word in one.words) == 3


def test_movement_is_the_change_of_the_state() -> None:
    reviews = trained_on(0, 7)
    batch = batch_of(reviews)
    assert batch.lengths is not None
    model = Model("gru", len(VOCABULARY), 5, 2, readout="last", dtype="float64")
    moved, gate = movement(model, batch)
    assert gate is not None
    assert gate.shape == (*batch.x.shape, 5)
    state: Any = np.zeros((1, 1, 5))
    for t, token in enumerate(batch.x[: batch.lengths[2], 2]):
        _, after = model.recurrent(np.array([[token]]), state)
        assert moved[t, 2] == pytest.approx(np.linalg.norm(after - state), rel=1e-9)
        state = after


def test_movement_has_no_gate_where_the_cell_has_none() -> None:
    model = Model("rnn", len(VOCABULARY), 5, 2, readout="last")
    assert movement(model, batch_of(trained_on(0, 3)))[1] is None


def test_words_that_decide_move_the_gru_and_open_its_gate(result: Result) -> None:
    rnn, gru = (
        {
            name: np.mean([row[name] for row in result.rows if row["cell"] == cell])
            for name in NUMBERS
        }
        for cell in ("rnn", "gru")
    )
    assert gru["right"] >= 90.0
    assert gru["right with not"] >= 85.0
    assert gru["ratio"] >= 1.7
    assert gru["gate ratio"] >= 1.2
    assert rnn["ratio"] <= 1.5
    assert rnn["right"] <= gru["right"] - 15.0


def test_numbers_table_and_picture(result: Result, tmp_path: Path) -> None:
    numbers = written(result, "review", tmp_path)
    assert [row["cell"] for row in numbers["rows"]] == ["rnn"] * 3 + ["gru"] * 3
    rnn, gru = numbers["curves"]
    assert len(gru["words"]) == len(gru["moved"]) == len(gru["gate"]) == len(gru["deciding"])
    assert rnn["gate"] == []
    assert "gate ratio" in result.table()
    check_picture(result, tmp_path)


def test_wrong_arguments() -> None:
    check_refusals(review)
