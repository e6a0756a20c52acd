# SPDX-License-Identifier: Apache-2.0
"""Reviews in which a few words decide among many, and how far each word moves the state."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.cells import CELLS
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import BLACK, VERMILION, new_figure
from rnnkern.explore.result import Result
from rnnkern.explore.run import Experiment, Run
from rnnkern.explore.sentences import Vocabulary, collect, is_held_out, pick, split_words
from rnnkern.explore.ways import way_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GOOD = split_words("superb gripping lovely brilliant charming moving")
_BAD = split_words("dull awful clumsy boring tedious shallow")
_PLAIN = split_words("long french loud short modern quiet")
_POLARITY = dict.fromkeys(_GOOD, 1) | dict.fromkeys(_BAD, -1)
_DEGREES = split_words("very quite really rather")
_THINGS = split_words("plot acting music ending camera cast story dialogue")
_PEOPLE = split_words("we they i people")
_ACTS = split_words("sat waited arrived talked paid slept ate")
_PLACES = tuple(
    split_words(text)
    for text in ("near the door", "in the old hall", "by the river", "behind my brother")
)
_TIMES = tuple(
    split_words(text)
    for text in ("on monday", "last week", "for two hours", "before lunch", "in march")
)
VOCABULARY = Vocabulary(
    [
        *(*_POLARITY, *_PLAIN, *_DEGREES, *_THINGS, *_PEOPLE, *_ACTS),
        *(word for phrase in (*_PLACES, *_TIMES) for word in phrase),
        *("the", "was", "not", "did", "."),
    ]
)
_NEGATED = 0.3  # share of the opinions, and of the other sentences, with a "not"
_OPINIONS = (1, 3)  # odd, so that one side has more

_HIDDEN = 32
_BATCH = 64
_LR, _QUICK_LR = 5e-3, 2e-2
_FORGET_BIAS = 1.0  # of the LSTM, as Jozefowicz et al. (2015) advise
_STEPS, _QUICK_STEPS = 800, 250
_POOL, _QUICK_POOL = 8000, 3000  # reviews that training draws from
_ASKED, _QUICK_ASKED = 1000, 300  # held-out reviews
_SHOWN_WORDS = 36  # of the review in the picture, at most


@dataclass(frozen=True)
class Review:
    """A review.

    Attributes:
        words: All of it.
        positive: 1 where more of its opinions praise than blame, else 0.
        deciding: For each word, whether it is praise, blame or a "not" before one of those.

    """

    words: tuple[str, ...]
    positive: int
    deciding: tuple[bool, ...]

    @property
    def negated(self) -> bool:
        """Whether a "not" turns an opinion round."""
        return any(d and w == "not" for d, w in zip(self.deciding, self.words, strict=True))


def draw(random: np.random.Generator) -> Review:
    """A random review of one or three opinions among three to six sentences that say nothing.

    "The acting was not very gripping." counts as blame. There is a "not" that decides nothing, and
    there are plain words in an opinion's place: "they did not wait", "the music was loud".
    """
    opinions = pick(random, _OPINIONS)
    parts = [_opinion(random) for _ in range(opinions)]
    parts += [(_neutral(random), (), 0) for _ in range(random.integers(3, 7))]
    words: list[str] = []
    deciding: list[bool] = []
    score = 0
    for part in random.permutation(len(parts)):
        sentence, decide, polarity = parts[part]
        words += sentence
        deciding += [word in decide for word in sentence]
        score += polarity
    return Review(tuple(words), int(score > 0), tuple(deciding))


def _opinion(random: np.random.Generator) -> tuple[list[str], tuple[str, ...], int]:
    """A sentence, its words that decide, and 1 for praise or -1 for blame."""
    polar = pick(random, (_GOOD, _BAD)[int(random.integers(2))])
    turned = ["not"] if random.random() < _NEGATED else []
    degree = [pick(random, _DEGREES)] if random.random() < 0.5 else []
    sentence = ["the", pick(random, _THINGS), "was", *turned, *degree, polar, "."]
    return sentence, (polar, "not"), _POLARITY[polar] * (-1 if turned else 1)


def _neutral(random: np.random.Generator) -> list[str]:
    """A sentence that says nothing of good or bad."""
    turned = random.random() < _NEGATED
    if random.random() < 0.3:
        plain = ["not"] * turned + [pick(random, _PLAIN)]
        return ["the", pick(random, _THINGS), "was", *plain, "."]
    did = ["did", "not"] * turned
    where, when = pick(random, _PLACES), pick(random, _TIMES)
    return [pick(random, _PEOPLE), *did, pick(random, _ACTS), *where, *when, "."]


def trained_on(seed: int, count: int) -> list[Review]:
    """Reviews to learn from, none of them held out."""
    random = np.random.default_rng([seed, 0])
    return collect(lambda: draw(random), count, lambda review: review.words, held_out=False)


def asked(seed: int, count: int) -> list[Review]:
    """Held-out reviews."""
    random = np.random.default_rng([seed, 1])
    return collect(lambda: draw(random), count, lambda review: review.words, held_out=True)


def batch_of(reviews: Sequence[Review]) -> Batch:
    """Tokens, lengths and the side of each."""
    tokens, lengths = VOCABULARY.tokens([review.words for review in reviews])
    return Batch(tokens, np.array([r.positive for r in reviews], np.int64), lengths)


def movement(model: Model, batch: Batch) -> tuple[Array, Array | None]:
    """How far each word moves the state, and how open it finds the gate that writes.

    Returns:
        ‖h_t - h_{t-1}‖ (T, B), and that gate (T, B, H); ``None`` for a cell that is not known to
        have one.

    """
    y, _, tape = model.recurrent.forward(batch.x, None, batch.lengths)
    before = np.concatenate([np.zeros_like(y[:1]), y[:-1]])
    way = way_of(model.recurrent)
    gate = None if way is None or way.writes is None else tape.gates()[0][way.writes]
    return np.linalg.norm(y - before, axis=-1), gate


def measure(run: Run) -> Result:
    """Tell praise from blame, and look at which words moved the state.

    Returns:
        Per cell and seed the share of right answers, in all held-out reviews and in those with a
        "not" that decides, in per cent; how far deciding and other words move the state, and the
        ratio of the two; and the ratio of the means of the gate that writes, 1 for the simple RNN,
        which always writes its whole state anew, and ``None`` where that gate is not known. The
        curves hold one review of the first seed, word for word.

    """
    steps, pool = run.pick((_STEPS, _POOL), (_QUICK_STEPS, _QUICK_POOL))
    lr, count = run.pick((_LR, _ASKED), (_QUICK_LR, _QUICK_ASKED))
    run.expect(len(run.seeds) * len(run.cells) * steps)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for seed in run.seeds:
        learned = trained_on(seed, pool)
        questions = asked(seed, count)
        for cell in run.cells:
            model = Model(
                cell,
                len(VOCABULARY),
                _HIDDEN,
                2,
                readout="last",
                lr=lr,
                seed=seed,
                forget_bias=_FORGET_BIAS,
            )
            run.train(
                model,
                functools.partial(_part, learned),
                steps,
                rng=np.random.default_rng([seed, 2]),
                text=f"{cell}, seed {seed}",
                decay=0.5,
            )
            rows.append({"cell": cell, "seed": seed, **_measured(model, questions)})
            if seed == run.seeds[0]:
                curves.append({"cell": cell, "seed": seed, **_example(model, shown(seed))})
    rows.sort(key=lambda row: run.cells.index(row["cell"]))
    return Result(
        name="review",
        title="reviews: right answers in %, and how far words move the state",
        settings={
            "hidden": _HIDDEN,
            "steps": steps,
            "batch": _BATCH,
            "lr": lr,
            "forget_bias": _FORGET_BIAS,
            "trained reviews": pool,
            "asked reviews": count,
        },
        measures={
            "right": ".1f",
            "right with not": ".1f",
            "deciding": ".2f",
            "other": ".2f",
            "ratio": ".1f",
            "gate ratio": ".1f",
        },
        rows=rows,
        curves=curves,
        notes=(
            "deciding, other: the mean of ‖h_t - h_{t-1}‖ over words that decide and over others.",
            "gate ratio: the mean of the gate that writes (u, or the minimal gated unit's f) at "
            "words that decide, over that at others; 1 without such a gate.",
        ),
    )


def figure(result: Result) -> Figure:
    """One review: how far each word moves each cell's state, and the gate that writes it."""
    drawn = new_figure(11, 7)
    above, below = drawn.subplots(2, 1, height_ratios=[1, 2])
    curves = result.curves
    words, deciding = curves[0]["words"], curves[0]["deciding"]
    moved = np.array([np.array(c["moved"]) / max(c["moved"]) for c in curves])
    image = above.imshow(moved, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    drawn.colorbar(image, ax=above, label="‖h$_t$ - h$_{t-1}$‖\n(share of the\nrow's largest)")
    above.set_yticks(range(len(curves)), [CELLS[c["cell"]].label for c in curves])
    _name_words(above, words, deciding)
    gated = [c for c in curves if c["gate"]]
    drawn_gate = next((c for c in gated if c["cell"] == "gru"), gated[0] if gated else None)
    if drawn_gate is None:
        below.set_axis_off()
        return drawn
    gate = np.array(drawn_gate["gate"])
    gate = gate[:, np.argsort(gate[deciding].mean(axis=0))]
    image = below.imshow(gate.T, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    drawn.colorbar(image, ax=below, label="gate (0: state kept, 1: written anew)")
    below.set_ylabel(f"units of the {CELLS[drawn_gate['cell']].label}, sorted")
    _name_words(below, words, deciding)
    drawn.suptitle("what each word of a held-out review does (red, bold: words that decide)")
    return drawn


def _name_words(axes: Axes, words: Sequence[str], deciding: Sequence[bool]) -> None:
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
    for label, decides in zip(axes.get_xticklabels(), deciding, strict=True):
        label.set_color(VERMILION if decides else BLACK)
        label.set_fontweight("bold" if decides else "normal")


def _part(learned: Sequence[Review], random: np.random.Generator) -> Batch:
    return batch_of([pick(random, learned) for _ in range(_BATCH)])


def _measured(model: Model, reviews: Sequence[Review]) -> dict[str, float | None]:
    batch = batch_of(reviews)
    assert batch.lengths is not None
    right = model.predict(batch.x, batch.lengths).argmax(axis=-1) == batch.targets
    moved, gate = movement(model, batch)
    deciding = np.zeros(batch.x.shape, bool)
    for column, one in enumerate(reviews):
        deciding[: len(one.words), column] = one.deciding
    other = ~deciding & (np.arange(len(batch.x))[:, None] < batch.lengths)
    other[0] = False  # the state starts at 0, which says nothing of the word
    at_deciding, at_other = float(moved[deciding].mean()), float(moved[other].mean())
    return {
        "right": 100.0 * float(right.mean()),
        "right with not": 100.0 * float(right[[one.negated for one in reviews]].mean()),
        "deciding": at_deciding,
        "other": at_other,
        "ratio": at_deciding / at_other,
        "gate ratio": _gate_ratio(model, gate, deciding, other),
    }


def _gate_ratio(model: Model, gate: Array | None, deciding: Array, other: Array) -> float | None:
    """Of the means of the gate that writes; None where it is not known which that is."""
    if gate is not None:
        return float(gate[deciding].mean() / gate[other].mean())
    return None if way_of(model.recurrent) is None else 1.0


def shown(seed: int) -> Review:
    """A held-out review with three opinions, one of them turned by a "not", that fits a picture."""
    random = np.random.default_rng([seed, 3])
    while True:
        one = draw(random)
        opinions = sum(word in _POLARITY for word in one.words)
        fits = opinions == max(_OPINIONS) and len(one.words) <= _SHOWN_WORDS
        if fits and one.negated and is_held_out(one.words):
            return one


def _example(model: Model, one: Review) -> dict[str, Any]:
    """What the picture tells of a review, word for word."""
    moved, gate = movement(model, batch_of([one]))
    return {
        "words": list(one.words),
        "deciding": list(one.deciding),
        "moved": moved[:, 0].tolist(),
        "gate": [] if gate is None else gate[:, 0].tolist(),
    }


review = Experiment("review", "reviews of which only a few words matter", measure, figure)
