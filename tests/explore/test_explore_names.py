# SPDX-License-Identifier: Apache-2.0
"""The names program: its sentences, and that only reading both ways tells what comes after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rnnkern.explore import names
from rnnkern.explore.names import VOCABULARY, Sentence, asked, batch_of, trained_on
from rnnkern.explore.result import Result

from support.experiments import check_picture, check_refusals, written

PERSONS = {"uncle", "doctor", "captain", "visitor", "guest", "singer"}
PERSONS |= {"roosevelt", "smiled", "sang", "married", "laughed", "answered"}
THINGS = {"parcel", "toy", "shop", "basket", "auction", "drawer"}
THINGS |= {"bears", "prices", "melted", "rusted", "shattered", "arrived"}
NAMES = {"teddy", "rose", "amber", "bill", "penny", "pearl", "mark", "ruby", "jasmine", "violet"}


@pytest.fixture(scope="module")
def result() -> Result:
    return names(cells=("gru",), quick=True)


@pytest.mark.parametrize("cue", ["before", "after"])
def test_one_word_decides_and_stands_where_it_should(cue: str) -> None:
    sentences = asked(2, 300, cue)
    for sentence in sentences:
        decide = [k for k, word in enumerate(sentence.words) if word in PERSONS | THINGS]
        assert decide == [sentence.cue]
        assert sentence.person == (sentence.words[sentence.cue] in PERSONS)
        assert [k for k, w in enumerate(sentence.words) if w in NAMES] == [sentence.name]
        assert (sentence.cue < sentence.name) == (cue == "before")
    nearest = 4 if cue == "before" else 1  # "came up," is always said of the first noun
    assert {abs(s.cue - s.name) for s in sentences} == set(range(nearest, nearest + 4))
    assert 0.4 < np.mean([s.person for s in sentences]) < 0.6


def test_held_out_sentences_are_not_trained_on() -> None:
    trained = {s.words for s in trained_on(0, 2000)}
    assert trained.isdisjoint(s.words for cue in ("before", "after") for s in asked(0, 500, cue))


def test_the_same_seed_gives_the_same_sentences() -> None:
    assert trained_on(5, 50) == trained_on(5, 50)
    assert trained_on(5, 50) != trained_on(6, 50)


def test_a_batch_counts_the_name_alone() -> None:
    sentences = trained_on(0, 20)
    batch = batch_of(sentences)
    assert batch.mask is not None
    assert batch.lengths is not None
    for column, sentence in enumerate(sentences):
        tokens = batch.x[: batch.lengths[column], column]
        assert tuple(VOCABULARY.words[k] for k in tokens) == sentence.words
        assert np.flatnonzero(batch.mask[:, column]).tolist() == [sentence.name]
        assert batch.targets[sentence.name, column] == sentence.person


def test_until_the_name_nothing_tells_what_an_after_cue_decides() -> None:
    def beginning(sentence: Sentence) -> set[str]:
        return set(sentence.words[: sentence.name + 1])

    of_persons, of_things = (
        set.union(*(beginning(s) for s in asked(0, 600, "after") if s.person == person))
        for person in (1, 0)
    )
    assert of_persons == of_things


def test_only_both_ways_tells_what_comes_after(result: Result) -> None:
    (forward,) = (row for row in result.rows if row["reads"] == "forward")
    (both,) = (row for row in result.rows if row["reads"] == "both ways")
    assert both["before"] >= 99.0
    assert both["after"] >= 99.0
    assert forward["before"] >= 99.0
    assert 43.0 <= forward["after"] <= 57.0


def test_parameters_are_alike(result: Result) -> None:
    forward, both = (row["parameters"] for row in result.rows)
    assert abs(forward / both - 1.0) < 0.03


def test_numbers_table_and_picture(result: Result, tmp_path: Path) -> None:
    numbers = written(result, "names", tmp_path)
    assert [(row["cell"], row["reads"]) for row in numbers["rows"]] == [
        ("gru", "forward"),
        ("gru", "both ways"),
    ]
    assert "after" in result.table()
    check_picture(result, tmp_path)


def test_wrong_arguments() -> None:
    check_refusals(names)
