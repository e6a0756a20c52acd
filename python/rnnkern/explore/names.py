# SPDX-License-Identifier: Apache-2.0
"""Teddy, a person or a thing: the word that decides may come before the name or after it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern.cells import CELLS
from rnnkern.explore.budget import equal_units
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import BLUE, VERMILION, new_figure
from rnnkern.explore.result import Result, spread
from rnnkern.explore.run import Experiment, Run
from rnnkern.explore.sentences import Vocabulary, collect, pick, split_words
from rnnkern.models.summary import num_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = split_words("teddy rose amber bill penny pearl mark ruby jasmine violet")
# What decides: of a thing first, of a person second.
_BEFORE = (
    split_words("parcel toy shop basket auction drawer"),
    split_words("uncle doctor captain visitor guest singer"),
)
_AFTER = (
    split_words("bears prices melted rusted shattered arrived"),
    split_words("roosevelt smiled sang married laughed answered"),
)
_OPENINGS = tuple(
    split_words(text)
    for text in ("he said ,", "yesterday we heard that", "they wrote ,", "as you know ,")
)
_FILLERS = split_words("really again indeed surely today then once")
_MENTIONED = ("was", "mentioned")
VOCABULARY = Vocabulary(
    [
        *_NAMES,
        *(word for words in (*_BEFORE, *_AFTER, *_OPENINGS) for word in words),
        *_FILLERS,
        *_MENTIONED,
        *("the", "came", "up", ",", "."),
    ]
)

_PARAMETERS = 6000
_BATCH = 64
_LR = 1e-2
_STEPS, _QUICK_STEPS = 300, 60
_POOL, _QUICK_POOL = 8000, 3000  # sentences that training draws from
_ASKED = 1000  # held-out sentences of each kind
_READS = {"forward": False, "both ways": True}
_CUES = ("before", "after")


@dataclass(frozen=True)
class Sentence:
    """A sentence with one name in it.

    Attributes:
        words: All of it.
        person: 1 where the name is a person's, 0 where it is a thing's.
        name: The name's place in the words.
        cue: The place of the one word that decides.

    """

    words: tuple[str, ...]
    person: int
    name: int
    cue: int


def draw(random: np.random.Generator, cue: str) -> Sentence:
    """A random sentence whose deciding word comes "before" or "after" the name.

    "they wrote, the captain came up, indeed Teddy was mentioned", or "he said, Teddy surely
    smiled": up to three words that say nothing stand between the two.
    """
    person = int(random.integers(2))
    before = list(pick(random, _OPENINGS))
    after = _fillers(random)
    name = [pick(random, _NAMES)]
    if cue == "before":
        decides = pick(random, _BEFORE[person])
        before += ["the", decides, "came", "up", ",", *_fillers(random)]
        after = [*_MENTIONED, *after, "."]
    else:
        decides = pick(random, _AFTER[person])
        before += _fillers(random)
        after = [*after, decides, *_fillers(random), "."]
    words = (*before, *name, *after)
    return Sentence(words, person, len(before), words.index(decides))


def _fillers(random: np.random.Generator) -> list[str]:
    return [pick(random, _FILLERS) for _ in range(random.integers(4))]


def trained_on(seed: int, count: int) -> list[Sentence]:
    """Sentences to learn from, half of them of each kind, none of them held out."""
    return _sentences(np.random.default_rng([seed, 0]), count, _CUES, held_out=False)


def asked(seed: int, count: int, cue: str) -> list[Sentence]:
    """Held-out sentences with the deciding word "before" or "after" the name."""
    return _sentences(np.random.default_rng([seed, 1]), count, (cue,), held_out=True)


def _sentences(
    random: np.random.Generator, count: int, cues: Sequence[str], held_out: bool
) -> list[Sentence]:
    return collect(lambda: draw(random, pick(random, cues)), count, lambda s: s.words, held_out)


def batch_of(sentences: Sequence[Sentence]) -> Batch:
    """Tokens and lengths; the class of the name counts, at its step."""
    tokens, lengths = VOCABULARY.tokens([sentence.words for sentence in sentences])
    targets, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    steps, columns = [sentence.name for sentence in sentences], np.arange(len(sentences))
    targets[steps, columns] = [sentence.person for sentence in sentences]
    mask[steps, columns] = True
    return Batch(tokens, targets, lengths, mask)


def measure(run: Run) -> Result:
    """Tell persons from things, reading forward only or both ways.

    Returns:
        Per cell, direction and seed the share of right tags in per cent where the deciding word
        comes before the name and where it comes after.

    """
    steps, pool = run.pick((_STEPS, _POOL), (_QUICK_STEPS, _QUICK_POOL))
    run.expect(len(run.seeds) * len(run.cells) * len(_READS) * steps)
    rows: list[dict[str, Any]] = []
    for seed in run.seeds:
        learned = trained_on(seed, pool)
        questions = {cue: batch_of(asked(seed, _ASKED, cue)) for cue in _CUES}
        for cell in run.cells:
            for reads, units in _units(cell).items():
                model = _model(cell, reads, units, seed)
                run.train(
                    model,
                    functools.partial(_part, learned),
                    steps,
                    rng=np.random.default_rng([seed, 2]),
                    text=f"{cell}, {reads}, seed {seed}",
                    decay=0.5,
                )
                row: dict[str, Any] = {"cell": cell, "reads": reads, "units": units}
                row |= {"parameters": num_parameters(model), "seed": seed}
                rows.append(row | {c: 100.0 * model.accuracy(b) for c, b in questions.items()})
    rows.sort(key=lambda row: run.cells.index(row["cell"]))
    return Result(
        name="names",
        title="names rightly tagged as a person's or a thing's, in % of held-out sentences",
        settings={
            "parameters": _PARAMETERS,
            "steps": steps,
            "batch": _BATCH,
            "lr": _LR,
            "trained sentences": pool,
            "asked sentences of a kind": _ASKED,
        },
        measures=dict.fromkeys(_CUES, ".1f"),
        rows=rows,
        notes=(
            "before, after: where the word that decides stands, seen from the name.",
            "Who reads forward only has not seen a word that comes after: 50% is chance.",
        ),
    )


def figure(result: Result) -> Figure:
    """Accuracy of each cell, forward and both ways, by where the deciding word stands."""
    drawn = new_figure(10, 4.2)
    cells = result.cells()
    styles = {"forward": (VERMILION, "o", -0.12), "both ways": (BLUE, "s", 0.12)}
    panels = drawn.subplots(1, 2, sharey=True)
    for axes, cue in zip(panels, _CUES, strict=True):
        for reads, (color, marker, shift) in styles.items():
            scores = [spread(result.values(cue, cell=cell, reads=reads)) for cell in cells]
            axes.errorbar(
                np.arange(len(cells)) + shift,
                [s.median for s in scores],
                yerr=[[s.median - s.low for s in scores], [s.high - s.median for s in scores]],
                color=color,
                marker=marker,
                linestyle="none",
                capsize=4,
                label=reads,
            )
        axes.axhline(50.0, color="0.5", linewidth=1, linestyle=":", label="chance")
        axes.set_title(f"the deciding word comes {cue} the name", fontsize=10)
        axes.set_xticks(
            range(len(cells)), [CELLS[cell].label.replace(" ", "\n", 1) for cell in cells]
        )
        axes.set_ylim(35, 103)
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("right tags (%)")
    over = (
        f"; bars: least to greatest of {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    )
    drawn.suptitle(f"Teddy, a person or a thing? held-out sentences{over}")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def _model(cell: str, reads: str, units: int, seed: int) -> Model:
    return Model(
        cell,
        len(VOCABULARY),
        units,
        2,
        lr=_LR,
        seed=seed,
        bidirectional=_READS[reads],
    )


def _units(cell: str) -> dict[str, int]:
    """The hidden size of each direction."""
    counts = [functools.partial(_parameters, cell, reads) for reads in _READS]
    return dict(zip(_READS, equal_units(counts, _PARAMETERS), strict=True))


def _parameters(cell: str, reads: str, units: int) -> int:
    return num_parameters(_model(cell, reads, units, 0))


def _part(learned: Sequence[Sentence], random: np.random.Generator) -> Batch:
    return batch_of([pick(random, learned) for _ in range(_BATCH)])


names = Experiment(
    "names", "Teddy the person or the bear, by a word before or after", measure, figure
)
