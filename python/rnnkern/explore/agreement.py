# SPDX-License-Identifier: Apache-2.0
"""Was or were: the verb agrees with a noun far back, past nouns of the other number."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern.cells import CELLS
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import draw_shares, new_figure
from rnnkern.explore.result import Result, spread
from rnnkern.explore.run import Experiment, Run
from rnnkern.explore.sentences import Vocabulary, collect, pick, split_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOUNS = {
    noun: noun + "s"
    for noun in split_words("cat dog boy girl horse farmer king house garden tower river table")
}
_NUMBER = {form: plural for pair in _NOUNS.items() for plural, form in enumerate(pair)}
_FORMS = tuple(_NOUNS), tuple(_NOUNS.values())  # singular, plural
_VERBS = split_words("saw chased liked heard followed found missed painted")
_PREPOSITIONS = split_words("near behind beside above under")
VOCABULARY = Vocabulary([*_NUMBER, *_VERBS, *_PREPOSITIONS, "the", "which", "already", ","])
_INTRODUCED = 0.25  # share of the sentences that begin with another phrase than the subject

_HIDDEN = 32
_BATCH = 64
_LR, _QUICK_LR = 5e-3, 1e-2
_STEPS, _QUICK_STEPS = 600, 250
_POOL, _QUICK_POOL = 12_000, 3_000  # sentences that training draws from
_TRAINED = 3  # nouns between subject and verb, at most, in training
_LONGEST = 10  # and in what is asked
_ASKED, _QUICK_ASKED = 200, 60  # sentences of each number of nouns
_DISTANCES = ((1, 7), (8, 15), (16, 22), (23, 32), (33, 45), (46, 60))
_ATTRACTED = 5  # nouns between subject and verb where attractors are counted
_BEGINNINGS = "plain", "introduced"
_NEAREST = "nearest noun"  # the baseline that takes the number of the last noun


@dataclass(frozen=True)
class Sentence:
    """A sentence up to its verb.

    Attributes:
        words: All before the verb.
        plural: 1 where the verb is "were", 0 where it is "was".
        distance: Words from the subject to the verb; 1 when they are neighbours.
        attractors: Nouns between subject and verb of the other number than the subject's.
        nearest: 1 where the last noun before the verb is plural, else 0.
        introduced: Whether another noun comes before the subject.

    """

    words: tuple[str, ...]
    plural: int
    distance: int
    attractors: int
    nearest: int
    introduced: bool


def draw(random: np.random.Generator, nouns: int, attractors: int | None = None) -> Sentence:
    """A random sentence with ``nouns`` nouns between its subject and its verb.

    "near the tower, the cats, which the dog beside the houses saw, were": every verb inside is of
    the past and the same for both numbers, so that the subject alone decides. ``attractors`` says
    how many of the nouns are of the other number; ``None`` leaves each to chance.
    """
    plural = int(random.integers(2))
    others = random.random(nouns) < 0.5
    if attractors is not None:
        others = random.permutation(nouns) < attractors
    numbers = [1 - plural if other else plural for other in others]
    introduction: list[str] = []
    if random.random() < _INTRODUCED:
        introduction = [pick(random, _PREPOSITIONS), *_noun(random, int(random.integers(2))), ","]
    between = _modifiers(random, iter(numbers), nouns)
    return Sentence(
        words=(*introduction, *_noun(random, plural), *between),
        plural=plural,
        distance=len(between) + 1,
        attractors=int(others.sum()),
        nearest=(numbers or [plural])[-1],
        introduced=bool(introduction),
    )


def _noun(random: np.random.Generator, plural: int) -> list[str]:
    return ["the", pick(random, _FORMS[plural])]


def _modifiers(random: np.random.Generator, numbers: Iterator[int], nouns: int) -> list[str]:
    """What is said of a noun, in which ``nouns`` further ones of these numbers come."""
    if nouns == 0:
        return []
    kind = random.integers(3)
    noun = _noun(random, next(numbers))
    verb = ["already"] * int(random.integers(2)) + [pick(random, _VERBS)]
    inner = _modifiers(random, numbers, nouns - 1)
    if kind == 0:
        return [pick(random, _PREPOSITIONS), *noun, *inner]
    if kind == 1:
        closed = inner[:-1] if inner[-1:] == [","] else inner
        return [",", "which", *verb, *noun, *closed, ","]
    return [",", "which", *noun, *inner, *verb, ","]


def trained_on(seed: int, count: int) -> list[Sentence]:
    """Sentences to learn from, none of them held out."""
    random = np.random.default_rng([seed, 0])
    return collect(
        lambda: draw(random, int(random.integers(_TRAINED + 1))),
        count,
        lambda sentence: sentence.words,
        held_out=False,
    )


def asked(seed: int, count: int, nouns: int, attractors: int | None = None) -> list[Sentence]:
    """Held-out sentences, drawn as by ``draw``."""
    random = np.random.default_rng([seed, 1, nouns, 0 if attractors is None else 1 + attractors])
    return collect(
        lambda: draw(random, nouns, attractors),
        count,
        lambda sentence: sentence.words,
        held_out=True,
    )


def batch_of(sentences: Sequence[Sentence]) -> Batch:
    """Tokens, lengths and the verb's number of each."""
    tokens, lengths = VOCABULARY.tokens([sentence.words for sentence in sentences])
    return Batch(tokens, np.array([s.plural for s in sentences], np.int64), lengths)


def measure(run: Run) -> Result:
    """Choose "was" or "were" after sentences longer than any trained on.

    Returns:
        Per cell and seed the share of right verbs in per cent, by the distance of the verb from
        its subject in words and, among sentences with five nouns between the two, by how many of
        those are of the other number.

    """
    steps, lr = run.pick((_STEPS, _LR), (_QUICK_STEPS, _QUICK_LR))
    pool, count = run.pick((_POOL, _ASKED), (_QUICK_POOL, _QUICK_ASKED))
    run.expect(len(run.seeds) * len(run.cells) * steps)
    rows: list[dict[str, Any]] = []
    longest = 0
    for seed in run.seeds:
        learned = trained_on(seed, pool)
        longest = max(longest, *(sentence.distance for sentence in learned))
        whole = batch_of(learned)
        questions = _questions(seed, count)
        rows.append(
            {"cell": _NEAREST, "seed": seed}
            | {
                name: _percent([s.nearest == s.plural for s in sentences])
                for name, sentences in questions.items()
            }
        )
        for cell in run.cells:
            model = Model(cell, len(VOCABULARY), _HIDDEN, 2, readout="last", lr=lr, seed=seed)
            run.train(
                model,
                functools.partial(_part, whole),
                steps,
                rng=np.random.default_rng([seed, 2]),
                text=f"{cell}, seed {seed}",
                decay=0.5,
            )
            row: dict[str, Any] = {"cell": cell, "seed": seed}
            for name, sentences in questions.items():
                row[name] = 100.0 * model.accuracy(batch_of(sentences))
            rows.append(row)
    rows.sort(key=lambda row: [*run.cells, _NEAREST].index(row["cell"]))
    return Result(
        name="agreement",
        title="right verbs, was or were, in % of held-out sentences",
        settings={
            "hidden": _HIDDEN,
            "steps": steps,
            "batch": _BATCH,
            "lr": lr,
            "trained sentences": pool,
            "longest trained distance": longest,
            "asked sentences of a kind": count,
        },
        measures=dict.fromkeys((*_names(_DISTANCES), *_attractor_names(), *_BEGINNINGS), ".0f"),
        rows=rows,
        notes=(
            f"a-b w: the verb comes a to b words after its subject; trained up to {longest}.",
            f"n of {_ATTRACTED}: of {_ATTRACTED} nouns between subject and verb, n are of the "
            "other number; all of these sentences have more nouns than the trained ones.",
            'introduced: a noun comes before the subject, as in "near the tower, the cats"; plain: '
            "none does; both of the distances that are longer than trained.",
            f"{_NEAREST}: what one would score who looks at the last noun alone.",
        ),
    )


def figure(result: Result) -> Figure:
    """Accuracy by distance, by the number of attractors, and by how a sentence begins."""
    drawn = new_figure(12, 3.8)
    cells = result.cells()
    labels = [_NEAREST if cell == _NEAREST else CELLS[cell].label for cell in cells]
    longest = result.settings["longest trained distance"]
    panels = drawn.subplots(1, 3, width_ratios=[6, 6, 2])
    for axes, names, columns, title in (
        (
            panels[0],
            _names(_DISTANCES),
            [f"{low}–{high}" for low, high in _DISTANCES],
            f"by the words from subject to verb (trained: up to {longest})",
        ),
        (
            panels[1],
            _attractor_names(),
            [str(n) for n in range(_ATTRACTED + 1)],
            f"by the nouns of the other number between, of {_ATTRACTED}",
        ),
        (panels[2], list(_BEGINNINGS), ["none", "one"], "by the nouns before"),
    ):
        medians = [[spread(result.values(n, cell=cell)).median for n in names] for cell in cells]
        rows = labels if axes is panels[0] else [""] * len(labels)
        draw_shares(axes, medians, rows, columns, chance=50.0, best=100.0)
        axes.set_title(title, fontsize=10)
    seeds = f", median of {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    drawn.suptitle(
        f"was or were? right verbs in held-out sentences, in %{seeds}; a coin has 50 (orange)"
    )
    return drawn


def _questions(seed: int, count: int) -> dict[str, list[Sentence]]:
    """Held-out sentences by what is measured of them."""
    of_all = [s for nouns in range(_LONGEST + 1) for s in asked(seed, count, nouns)]
    by_distance = {
        name: [s for s in of_all if low <= s.distance <= high]
        for name, (low, high) in zip(_names(_DISTANCES), _DISTANCES, strict=True)
    }
    by_attractors = {
        name: asked(seed, count, _ATTRACTED, n) for n, name in enumerate(_attractor_names())
    }
    longer = [s for s in of_all if s.distance >= _DISTANCES[-3][0]]
    by_beginning = {
        name: [s for s in longer if s.introduced == introduced]
        for introduced, name in enumerate(_BEGINNINGS)
    }
    return by_distance | by_attractors | by_beginning


def _names(ranges: Sequence[tuple[int, int]]) -> list[str]:
    return [f"{low}-{high} w" for low, high in ranges]


def _attractor_names() -> list[str]:
    return [f"{n} of {_ATTRACTED}" for n in range(_ATTRACTED + 1)]


def _part(whole: Batch, random: np.random.Generator) -> Batch:
    """A batch of the sentences that are learned from."""
    assert whole.lengths is not None
    chosen = random.integers(whole.x.shape[1], size=_BATCH)
    lengths = whole.lengths[chosen]
    return Batch(whole.x[: lengths.max(), chosen], whole.targets[chosen], lengths)


def _percent(right: Sequence[bool]) -> float:
    return 100.0 * sum(right) / len(right)


agreement = Experiment(
    "agreement", "was or were, by the number of a noun far back", measure, figure
)
