# SPDX-License-Identifier: Apache-2.0
"""The adder: a sequence-to-sequence model that answers sums."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkern.adder.settings import Settings
from rnnkern.adder.task import Encoding, Ints, Pairs
from rnnkern.cells import CELLS
from rnnkern.devices import get_device
from rnnkern.models.seq2seq import Seq2Seq
from rnnkern.progress import Progress

_ANSWER_BATCH = 2048  # pairs answered at once
_EXAMPLES = 10  # wrong answers that a score keeps


@dataclass(frozen=True)
class Score:
    """Whole answers right, of how many, and the first wrong ones."""

    right: int = 0
    total: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)

    def __add__(self, other: Score) -> Score:
        return Score(
            self.right + other.right,
            self.total + other.total,
            (self.wrong + other.wrong)[:_EXAMPLES],
        )

    def __str__(self) -> str:
        # Rounded down: 100% is said of all right alone.
        percent = self.right * 1_000_000 // self.total / 10_000
        return f"{self.right:,} of {self.total:,} right ({percent:.4f}%)"


class Adder:
    """A model that answers sums.

    Attributes:
        settings: Those it was, or is being, trained with.
        model: The ``Seq2Seq``; ``device`` is where it runs.
        pairs: The pairs of numbers it is for.

    Raises:
        ValueError: A model is given that is not as the settings say.

    """

    def __init__(
        self, settings: Settings, model: Seq2Seq | None = None, *, device: str = "cpu"
    ) -> None:
        cell = CELLS[settings.cell]
        arguments: dict[str, Any] = {
            "source_vocab": Encoding.VOCABULARY,
            "target_vocab": Encoding.VOCABULARY,
            "hidden_size": settings.hidden,
            "cell": cell.layer.__name__,
            "cell_options": dict(cell.options),
            "decoder_cell": None,
            "decoder_options": None,
            "num_layers": settings.layers,
            "bidirectional": settings.bidirectional,
            "attention": "dot" if settings.attention else None,
            "dropout": 0.0,
            "dtype": "float32",
            "compute": settings.compute,
            "seed": settings.seed,
            "bos": Encoding.START,
            "eos": Encoding.START,
        }
        if model is not None:
            for name, value in arguments.items():
                if model.config()[name] != value:
                    raise ValueError(
                        f"model must have {name}={value!r}, as the settings say, got "
                        f"{model.config()[name]!r}"
                    )
        self.settings = settings
        self.encoding = Encoding(settings.digits)
        self.pairs = Pairs(settings.digits, settings.share)
        self.model = model or Seq2Seq(**arguments, device=device)
        self.device = get_device(self.model.device)

    def ask(self, question: str) -> int:
        """The model's answer to a question such as ``"535+61"``.

        Raises:
            ValueError: The question is not two numbers of at most ``settings.digits`` digits.

        """
        number = rf"\s*([0-9]{{1,{self.settings.digits}}})\s*"
        match = re.fullmatch(rf"{number}\+{number}", question)
        if match is None:
            raise ValueError(
                f"the question must be two numbers of at most {self.settings.digits} digits, "
                f"as in 5+{10**self.settings.digits - 1}, got {question!r}"
            )
        a, b = (np.array([int(n)], np.int64) for n in match.groups())
        return int(self.add(a, b)[0])

    def add(self, a: Ints, b: Ints) -> Ints:
        """The model's answers (B,) to the questions ``a+b``, right or wrong."""
        answers = np.empty(len(a), np.int64)
        for start in range(0, len(a), _ANSWER_BATCH):
            part = slice(start, start + _ANSWER_BATCH)
            questions = self.device.put(self.encoding.questions(a[part], b[part]))
            tokens, lengths = self.model.greedy(questions, None, self.settings.digits + 1)
            answers[part] = self.encoding.totals(self.device.get(tokens), self.device.get(lengths))
        return answers

    def evaluate(self, a: Ints, b: Ints) -> Score:
        """Ask all the questions ``a+b``."""
        answers = self.add(a, b)
        wrong = np.flatnonzero(answers != a + b)
        return Score(
            len(a) - len(wrong),
            len(a),
            [f"{a[i]}+{b[i]}={answers[i]} ({a[i] + b[i]})" for i in wrong[:_EXAMPLES]],
        )

    def evaluate_all(self, progress: Progress) -> tuple[Score, Score]:
        """Ask every question there is: the score of those trained on, and of those held out."""
        scores = []
        for first, last in ((0, self.pairs.trained), (self.pairs.trained, self.pairs.count)):
            score = Score()
            for start in range(first, last, _ANSWER_BATCH):
                index = np.arange(start, min(start + _ANSWER_BATCH, last), dtype=np.int64)
                score += self.evaluate(*self.pairs.at(index))
                progress.show(start / self.pairs.count, f"{start:,} of {self.pairs.count:,} pairs")
            scores.append(score)
        return scores[0], scores[1]
