# SPDX-License-Identifier: Apache-2.0
"""The agreement program: its sentences, and that a gated cell is not led astray by attractors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rnnkern.explore import agreement
from rnnkern.explore.agreement import VOCABULARY, Sentence, asked, batch_of, trained_on
from rnnkern.explore.result import Result

from support.experiments import check_picture, check_refusals, written

# Of the grammar's words these alone end in s without being a plural.
NOUN_BEFORE = {"near", "behind", "beside", "above", "under"}


@pytest.fixture(scope="module")
def result() -> Result:
    return agreement(cells=("rnn", "gru"), quick=True)


def nouns(words: tuple[str, ...]) -> list[int]:
    """The places of the nouns: behind each "the"."""
    return [k + 1 for k, word in enumerate(words) if word == "the"]


def check(sentence: Sentence) -> None:
    """What a sentence says of itself, from its words alone."""
    words, places = sentence.words, nouns(sentence.words)
    subject, *between = places[1:] if words[0] in NOUN_BEFORE else places
    plural = words[subject].endswith("s")
    assert sentence.plural == plural
    assert sentence.introduced == (words[0] in NOUN_BEFORE)
    assert sentence.distance == len(words) - subject
    assert sentence.attractors == sum(words[k].endswith("s") != plural for k in between)
    assert sentence.nearest == words[([subject, *between])[-1]].endswith("s")


def test_labels_follow_from_the_words() -> None:
    sentences = trained_on(3, 300) + asked(3, 100, 7)
    for sentence in sentences:
        check(sentence)
    assert {s.plural for s in sentences} == {0, 1}
    assert {s.introduced for s in sentences} == {False, True}


@pytest.mark.parametrize("attractors", range(6))
def test_attractors_are_as_many_as_asked_for(attractors: int) -> None:
    sentences = asked(0, 30, 5, attractors)
    assert {s.attractors for s in sentences} == {attractors}
    for sentence in sentences:
        check(sentence)


def test_held_out_sentences_are_not_trained_on() -> None:
    trained = {s.words for s in trained_on(0, 2000)}
    assert trained.isdisjoint(s.words for n in range(4) for s in asked(0, 100, n))


def test_sentences_with_more_nouns_than_trained_include_longer_distances() -> None:
    trained = max(s.distance for s in trained_on(0, 2000))
    assert min(s.distance for s in asked(0, 100, 10)) > trained


def test_the_same_seed_gives_the_same_sentences() -> None:
    assert trained_on(5, 50) == trained_on(5, 50)
    assert trained_on(5, 50) != trained_on(6, 50)


def test_a_batch_spells_its_sentences() -> None:
    sentences = trained_on(0, 20)
    batch = batch_of(sentences)
    assert batch.lengths is not None
    for column, sentence in enumerate(sentences):
        tokens = batch.x[: batch.lengths[column], column]
        assert tuple(VOCABULARY.words[k] for k in tokens) == sentence.words
        assert batch.targets[column] == sentence.plural


def test_the_gru_is_not_led_astray_where_the_nearest_noun_misleads(result: Result) -> None:
    (gru,) = (row for row in result.rows if row["cell"] == "gru")
    (nearest,) = (row for row in result.rows if row["cell"] == "nearest noun")
    assert nearest["5 of 5"] == 0.0
    assert nearest["0 of 5"] == 100.0
    assert gru["5 of 5"] >= 95.0
    assert gru["46-60 w"] >= 95.0  # more than twice the longest distance trained on
    assert gru["introduced"] >= 95.0


def test_the_simple_rnn_trips_over_a_noun_before_the_subject(result: Result) -> None:
    (rnn,) = (row for row in result.rows if row["cell"] == "rnn")
    assert rnn["plain"] >= rnn["introduced"] + 15.0


def test_numbers_table_and_picture(result: Result, tmp_path: Path) -> None:
    numbers = written(result, "agreement", tmp_path)
    assert [row["cell"] for row in numbers["rows"]] == ["rnn", "gru", "nearest noun"]
    assert all(0.0 <= row[m] <= 100.0 for row in result.rows for m in result.measures)
    assert "5 of 5" in result.table()
    check_picture(result, tmp_path)


def test_wrong_arguments() -> None:
    check_refusals(agreement)
    with pytest.raises(TypeError, match="quick must be True or False"):
        agreement(quick=np.int64(1))
