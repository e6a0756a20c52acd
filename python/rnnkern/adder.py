# SPDX-License-Identifier: Apache-2.0
"""A model that learns to add from examples of sums, as ``535+61`` and ``596``.

A question is read and an answer given in natural order and length. Inside, see ``Encoding``, both
numbers are filled with zeros to the same number of digits, the question is reversed and the answer
is produced from its last digit, as one adds on paper.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import boolean, choice, finite_float, positive_int
from rnnkern.clip import clip_grad_norm
from rnnkern.device import get_device
from rnnkern.losses import softmax_cross_entropy
from rnnkern.optim import Adam
from rnnkern.progress import Progress
from rnnkern.seq2seq import Seq2Seq
from rnnkern.serialize import Checkpoint, load_checkpoint, refusal, save

Ints = NDArray[np.int64]

CELLS: dict[str, tuple[str, dict[str, str]]] = {
    "rnn": ("RNN", {}),
    "simplified-gru": ("SimplifiedGRU", {}),
    "gru": ("GRU", {"reset": "before"}),
    "gru-after": ("GRU", {"reset": "after"}),
    "lstm": ("LSTM", {}),
}
HELD_OUT_SAMPLE = 20_000  # pairs answered at the end of a run and by ``evaluate``
_QUICK_SAMPLE = 1_000  # pairs answered now and then during a run
_ANSWER_BATCH = 2048  # pairs answered at once
_EXAMPLES = 10  # wrong answers that a score keeps
_LOSS_DECAY = 0.99  # of the running mean that is shown
_EXTREME, _CHOICE = 4, 16  # of the questions that training draws, see ``Pairs.batch``
_WARM_UP = 0.02  # share of the run in which the learning rate rises


@dataclass(frozen=True)
class Settings:
    """What decides a training run; a resumed run keeps them.

    Attributes:
        digits: The most digits of a number, 1 to 6.
        cell: One of ``CELLS``, for the encoder and the decoder.
        hidden: Hidden size.
        layers: Stacked layers of the encoder and of the decoder.
        bidirectional: Whether the encoder reads both ways; the decoder is then twice as wide.
        steps: Steps of the whole run.
        minutes: Minutes of the whole run; the steps do not matter then.
        batch: Questions per step.
        lr: The highest learning rate of the run.
        clip: The bound on the norm of the gradients.
        compute: How the cells' products are done: ``None`` for float32, or ``"bfloat16"``.
        seed: Seed of the initial values and of the order of the questions.
        share: The share of all pairs that training draws from; the others are held out.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A value out of range.

    """

    digits: int = 3
    cell: str = "lstm"
    hidden: int = 128
    layers: int = 1
    bidirectional: bool = False
    steps: int = 5000
    minutes: float | None = None
    batch: int = 256
    lr: float = 6e-3
    clip: float = 1.0
    compute: str | None = None
    seed: int = 0
    share: float = 0.2

    def __post_init__(self) -> None:
        if positive_int("digits", self.digits) > 6:
            raise ValueError(f"digits must be at most 6, got {self.digits}")
        boolean("bidirectional", self.bidirectional)
        choice("cell", self.cell, tuple(CELLS))
        choice("compute", self.compute, (None, "bfloat16"))
        for name in ("hidden", "layers", "steps", "batch"):
            positive_int(name, getattr(self, name))
        if positive_int("seed", self.seed, minimum=0) >= 1 << 63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        finite_float("lr", self.lr, minimum=0.0, exclusive=True)
        finite_float("clip", self.clip, minimum=0.0, exclusive=True)
        finite_float("share", self.share, minimum=0.0, maximum=1.0, exclusive=True)
        if self.minutes is not None:
            finite_float("minutes", self.minutes, minimum=0.0, exclusive=True)


class Encoding:
    """Questions and answers as the model sees them: the one place that knows.

    ``61+535`` of up to 3 digits is filled to ``061+535`` and read from its end, ``535+160``; its
    answer ``0596`` is produced from its end, ``6950``. So every sequence of a model is of one
    length, every place of a number keeps its place in the sequence, and each carry comes before
    the digit that needs it.
    """

    PLUS = 10  # in questions
    START = 10  # in answers
    VOCABULARY = 11

    def __init__(self, digits: int) -> None:
        self.digits = digits
        self._places = 10 ** np.arange(digits + 1, dtype=np.int64)[:, np.newaxis]

    def questions(self, a: Ints, b: Ints) -> Ints:
        """Tokens (2·digits + 1, B) of the questions ``a+b``, for numbers (B,)."""
        tokens = np.empty((2 * self.digits + 1, len(a)), np.int64)
        tokens[: self.digits] = b // self._places[:-1] % 10
        tokens[self.digits] = self.PLUS
        tokens[self.digits + 1 :] = a // self._places[:-1] % 10
        return tokens

    def answers(self, total: Ints) -> Ints:
        """Tokens (digits + 1, B) of the sums (B,)."""
        return total // self._places % 10

    def fed(self, answers: Ints) -> Ints:
        """What the decoder is fed to learn ``answers``: START, then all but the last."""
        return np.concatenate([np.full_like(answers[:1], self.START), answers[:-1]])

    def totals(self, tokens: Ints, lengths: Ints) -> Ints:
        """The sums (B,) that answers (T, B) of these lengths (B,) spell."""
        digits = np.where(np.arange(len(tokens))[:, np.newaxis] < lengths, tokens, 0)
        totals: Ints = (digits * self._places[: len(tokens)]).sum(axis=0)
        return totals


class Pairs:
    """All pairs of numbers of up to ``digits`` digits, shuffled once and for all.

    The first ``trained`` of the shuffled order are those that training draws from; the others are
    held out. The order depends on ``digits`` alone. Pairs are ordered: ``1+2`` may be held out
    where ``2+1`` is not.
    """

    _KEY = 535_061
    _ROUNDS = 4

    def __init__(self, digits: int, share: float) -> None:
        self._limit = 10**digits
        self.count = self._limit**2
        self.trained = int(self.count * share)
        if not 0 < self.trained < self.count:
            raise ValueError(f"share {share} of {self.count} pairs leaves none to learn or to hold")
        # Raw bits, because NumPy promises to keep those the same in every version.
        bits = np.random.Philox(key=self._KEY).random_raw(self._ROUNDS * self._limit)
        table = (bits % np.uint64(self._limit)).astype(np.int64)
        self._rounds = table.reshape(self._ROUNDS, self._limit)

    def at(self, index: Ints) -> tuple[Ints, Ints]:
        """The two numbers of the pairs at these places, 0..count-1, of the shuffled order.

        A Feistel network: each round shifts one number by a random function of the other, which
        can be undone, so that no two places hold the same pair.
        """
        a, b = np.divmod(index, self._limit)
        for function in self._rounds:
            a, b = b, (a + function[b]) % self._limit
        return a, b

    def batch(self, size: int, seed: int, step: int) -> tuple[Ints, Ints]:
        """Pairs to learn from; the same for the same seed and step.

        Most are drawn evenly. One in ``_EXTREME`` is chosen of ``_CHOICE``: for half of them the
        pair with the smallest number, for the others the one whose numbers are both large. Numbers
        with fewer digits are rare, and so are carries all the way, and what a trained model gets
        wrong are sums of these.
        """
        chosen = size // _EXTREME
        even = size - chosen
        key = np.array([seed, step], np.uint64)
        bits = np.random.Philox(key=key).random_raw(even + _CHOICE * chosen)
        a, b = self.at((bits % np.uint64(self.trained)).astype(np.int64))
        smaller = np.minimum(a, b)[even:].reshape(chosen, _CHOICE)
        half = chosen // 2
        choice = np.append(smaller[:half].argmin(axis=1), smaller[half:].argmax(axis=1))
        taken = np.append(np.arange(even), even + _CHOICE * np.arange(chosen) + choice)
        return a[taken], b[taken]

    def held_out(self, size: int) -> tuple[Ints, Ints]:
        """``size`` different held-out pairs, or all there are when those are fewer."""
        available = self.count - self.trained
        size = min(size, available)
        return self.at(self.trained + np.arange(size, dtype=np.int64) * (available // size))


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
        cell, options = CELLS[settings.cell]
        arguments: dict[str, Any] = {
            "source_vocab": Encoding.VOCABULARY,
            "target_vocab": Encoding.VOCABULARY,
            "hidden_size": settings.hidden,
            "cell": cell,
            "cell_options": options,
            "decoder_cell": None,
            "decoder_options": None,
            "num_layers": settings.layers,
            "bidirectional": settings.bidirectional,
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

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "cpu") -> Adder:
        """The adder of a checkpoint, on the device asked for.

        Raises:
            FormatError: The file is not a checkpoint of an adder.
            ValueError: The device cannot be used.
            OSError: The file cannot be read.

        """
        return Training.load(path, device=device).adder

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


class Training:
    """A run: an adder, its optimizer and how far it is.

    The batch of a step and its learning rate follow from the settings and the step, so that a run
    resumed from any checkpoint ends bit for bit as the uninterrupted one. Where a time is set the
    learning rate follows the clock, and no two runs are quite the same.

    Attributes:
        adder: What is trained.
        optimizer: Its Adam.
        step: Steps taken.
        seconds: Time used, interrupted parts left out.
        loss: Running mean of the loss in nats per digit of the answer; NaN at first.
        history: One (step, seconds, loss, share of held-out answers right) per report.

    """

    def __init__(self, adder: Adder) -> None:
        self.adder = adder
        self.optimizer = Adam(adder.model.params, adder.settings.lr)
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.history: list[tuple[float, float, float, float]] = []

    @property
    def fraction(self) -> float:
        """How much of the run is done; 1 or a little more at its end."""
        settings = self.adder.settings
        if settings.minutes is not None:
            return self.seconds / (60.0 * settings.minutes)
        return self.step / settings.steps

    def advance(self) -> None:
        """Take one step.

        Raises:
            ArithmeticError: The gradients are no longer finite; nothing was changed.

        """
        adder, settings = self.adder, self.adder.settings
        a, b = adder.pairs.batch(settings.batch, settings.seed, self.step)
        answers = adder.encoding.answers(a + b)
        put = adder.device.put
        logits, tape = adder.model.forward(
            put(adder.encoding.questions(a, b)), None, put(adder.encoding.fed(answers))
        )
        mean, dlogits = softmax_cross_entropy(logits, put(answers))
        grads = tape.backward(dlogits)
        if not math.isfinite(clip_grad_norm(grads, settings.clip)):
            raise ArithmeticError(
                f"training diverged in step {self.step}: the gradients are not finite; "
                f"a learning rate below {settings.lr} may help"
            )
        self.optimizer.step(grads, settings.lr * _schedule(self.fraction))
        loss = float(mean)
        self.loss = loss if self.step == 0 else self.loss + (1.0 - _LOSS_DECAY) * (loss - self.loss)
        self.step += 1

    def report(self) -> str:
        """Look at some held-out pairs; note the result in the history, and tell it in a line."""
        a, b = self.adder.pairs.held_out(_QUICK_SAMPLE)
        answers = self.adder.add(a, b)
        right = answers == a + b
        accuracy = float(right.mean())
        self.history.append((self.step, self.seconds, self.loss, accuracy))
        examples = "   ".join(
            f"{a[i]}+{b[i]}={answers[i]} {'right' if right[i] else 'wrong'}"
            for i in (self.step % len(a), (self.step + len(a) // 2) % len(a))
        )
        return (
            f"step {self.step:6}  {self.seconds:6.1f} s  loss {self.loss:.4f}  "
            f"held out {accuracy:6.1%}  {examples}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically: the run goes on from it, and ``Adder.load`` reads it.

        Raises:
            OSError: The file cannot be written.

        """
        save(
            path,
            self.adder.model,
            optimizer=self.optimizer,
            extra={
                "run": np.array([self.step, self.seconds, self.loss]),
                "history": np.array(self.history).reshape(-1, 4),
            },
            notes={"adder": json.dumps(dataclasses.asdict(self.adder.settings))},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "cpu") -> Training:
        """The run of a checkpoint, to go on on the device asked for.

        Raises:
            FormatError: The file is not a checkpoint of an adder.
            ValueError: The device cannot be used.
            OSError: The file cannot be read.

        """
        found = load_checkpoint(path, device=device)
        if "adder" not in found.notes or not isinstance(found.model, Seq2Seq):
            raise refusal(path, "is not a checkpoint of an adder")
        try:
            training = cls(Adder(Settings(**json.loads(found.notes["adder"])), found.model))
            training._resume(found)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise refusal(path, f"is not a checkpoint of an adder: {error}") from error
        return training

    def _resume(self, found: Checkpoint) -> None:
        """Be where the run was whose checkpoint this is."""
        # Version 0.1 kept the optimizer's arrays among the others.
        state = found.optimizer or {
            name.removeprefix("adam."): array
            for name, array in found.extra.items()
            if name.startswith("adam.")
        }
        self.optimizer.load_state_dict(state)
        step, self.seconds, self.loss = found.extra["run"].tolist()
        self.step = int(step)
        if self.step != step or self.optimizer.steps != step:
            raise ValueError(f"its run is in step {step}, its optimizer in {self.optimizer.steps}")
        finite_float("seconds", self.seconds, minimum=0.0)
        self.history = [
            (s, t, loss, share) for s, t, loss, share in found.extra["history"].tolist()
        ]


def train(
    training: Training,
    path: str | os.PathLike[str],
    *,
    save_every: float = 10.0,
    report_every: float = 2.0,
) -> Score:
    """Run to the end, printing reports and writing checkpoints; the score on held-out pairs.

    Args:
        training: A new run or a loaded one.
        path: The checkpoint, written at the beginning, now and then, and at the end.
        save_every: Seconds between checkpoints.
        report_every: Seconds between reports.

    Raises:
        ArithmeticError: The training diverged; the last checkpoint is as it was.
        ValueError: An interval is negative, NaN or infinite.
        OSError: The checkpoint cannot be written.

    """
    finite_float("save_every", save_every, minimum=0.0)
    finite_float("report_every", report_every, minimum=0.0)
    training.save(path)
    started = time.perf_counter() - training.seconds
    saved = reported = training.seconds
    with Progress() as progress:
        while training.fraction < 1.0:
            training.advance()
            training.seconds = time.perf_counter() - started
            progress.show(training.fraction, f"step {training.step}  loss {training.loss:.4f}")
            if training.seconds - reported >= report_every:
                progress.line(training.report())
                reported = training.seconds
            if training.seconds - saved >= save_every:
                training.save(path)
                saved = training.seconds
        progress.line(training.report())
    training.save(path)
    return training.adder.evaluate(*training.adder.pairs.held_out(HELD_OUT_SAMPLE))


def _schedule(fraction: float) -> float:
    """The learning rate's share of its highest: a short rise, then a straight fall to 0."""
    if fraction < _WARM_UP:
        return (fraction + 1e-3) / (_WARM_UP + 1e-3)
    return max(0.0, (1.0 - fraction) / (1.0 - _WARM_UP))
