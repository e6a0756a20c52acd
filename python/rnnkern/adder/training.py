# SPDX-License-Identifier: Apache-2.0
"""A training run of the adder: its steps, its reports, its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time

import numpy as np

from rnnkern._checks import finite_float
from rnnkern._safetensors import refusal
from rnnkern.adder.model import Adder, Score
from rnnkern.adder.settings import Settings
from rnnkern.models.seq2seq import Seq2Seq
from rnnkern.progress import Progress
from rnnkern.serialize import Checkpoint, load_checkpoint, save
from rnnkern.training.clip import clip_grad_norm
from rnnkern.training.losses import softmax_cross_entropy
from rnnkern.training.optim import Adam
from rnnkern.training.ranks import Ranks

HELD_OUT_SAMPLE = 20_000  # pairs answered at the end of a run and by ``evaluate``
_QUICK_SAMPLE = 1_000  # pairs answered now and then during a run
_LOSS_DECAY = 0.99  # of the running mean that is shown
_WARM_UP = 0.02  # share of the run in which the learning rate rises


class Training:
    """A run: an adder, its optimizer and how far it is.

    The batch of a step and its learning rate follow from the settings and the step, so that a run
    resumed from any checkpoint ends bit for bit as the uninterrupted one. Where a time is set the
    learning rate follows the clock, and no two runs are quite the same.

    Where several ranks train together each takes its share of every batch, and all have the same
    model after each step.

    Attributes:
        adder: What is trained.
        ranks: With whom.
        optimizer: Its Adam.
        step: Steps taken.
        seconds: Time used, interrupted parts left out.
        loss: Running mean of the loss in nats per digit of the answer; NaN at first.
        history: One (step, seconds, loss, share of held-out answers right) per report.

    """

    def __init__(self, adder: Adder, *, ranks: Ranks | None = None) -> None:
        self.adder = adder
        self.ranks = ranks or Ranks()
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
        part = self.ranks.share(len(a))
        a, b = a[part], b[part]
        answers = adder.encoding.answers(a + b)
        put = adder.device.put
        logits, tape = adder.model.forward(
            put(adder.encoding.questions(a, b)), None, put(adder.encoding.fed(answers))
        )
        mean, dlogits = softmax_cross_entropy(logits, put(answers))
        grads = tape.backward(dlogits)
        (mean,) = self.ranks.average(grads, len(a), [mean])
        if not math.isfinite(clip_grad_norm(grads, settings.clip)):
            raise ArithmeticError(
                f"training diverged in step {self.step}: the gradients are not finite; "
                f"a learning rate below {settings.lr} may help"
            )
        self.optimizer.step(grads, settings.lr * _schedule(self.fraction))
        loss = float(mean)
        self.loss = loss if self.step == 0 else self.loss + (1.0 - _LOSS_DECAY) * (loss - self.loss)
        self.step += 1

    def report(self) -> tuple[str, ...]:
        """Look at some held-out pairs; note the result in the history, and tell it in a line.

        The line, and examples that may follow where it has room.
        """
        a, b = self.adder.pairs.held_out(_QUICK_SAMPLE)
        part = self.ranks.share(len(a))
        answers = np.concatenate(self.ranks.gather(self.adder.add(a[part], b[part])))
        right = answers == a + b
        accuracy = float(right.mean())
        self.history.append((self.step, self.seconds, self.loss, accuracy))
        examples = (
            f"   {a[i]}+{b[i]}={answers[i]} {'right' if right[i] else 'wrong'}"
            for i in (self.step % len(a), (self.step + len(a) // 2) % len(a))
        )
        return (
            f"step {self.step:6} {self.seconds:6.1f} s  loss {self.loss:.4f}  "
            f"held out {accuracy:6.1%}",
            *examples,
        )

    def evaluate(self, count: int) -> Score:
        """Ask `count` held-out questions, or all there are."""
        a, b = self.adder.pairs.held_out(count)
        part = self.ranks.share(len(a))
        return sum(self.ranks.gather(self.adder.evaluate(a[part], b[part])), Score())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically: a run goes on from it (``Training.load``).

        Of several ranks the first writes; any number of them can go on.

        Raises:
            OSError: The file cannot be written.

        """
        if not self.ranks.is_first:
            return
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
    def load(
        cls, path: str | os.PathLike[str], *, device: str = "cpu", ranks: Ranks | None = None
    ) -> Training:
        """The run of a checkpoint, to go on on the device asked for, with any number of ranks.

        The first rank reads the file and tells the others.

        Raises:
            FormatError: The file is not a checkpoint of an adder.
            ValueError: The device cannot be used.
            OSError: The file cannot be read.

        """
        ranks = ranks or Ranks()
        training = cls._read(path, device, ranks) if ranks.is_first else None
        settings, state, run = ranks.first(
            training
            and (
                training.adder.settings,
                training.optimizer.state_dict(),
                (training.step, training.seconds, training.loss, training.history),
            )
        )
        if training is None:
            training = cls(Adder(settings, device=device), ranks=ranks)
            training.optimizer.load_state_dict(state)
            training.step, training.seconds, training.loss, training.history = run
        ranks.broadcast(training.adder.model.params)
        return training

    @classmethod
    def _read(cls, path: str | os.PathLike[str], device: str, ranks: Ranks) -> Training:
        found = load_checkpoint(path, device=device)
        if "adder" not in found.notes or not isinstance(found.model, Seq2Seq):
            raise refusal(path, "is not a checkpoint of an adder")
        try:
            adder = Adder(Settings(**json.loads(found.notes["adder"])), found.model)
            training = cls(adder, ranks=ranks)
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
    ranks = training.ranks
    ranks.broadcast(training.adder.model.params)
    training.save(path)
    started = time.perf_counter() - training.seconds
    saved = reported = training.seconds
    settings = training.adder.settings
    end = (
        f" of {settings.steps}"
        if settings.minutes is None
        else f", {settings.minutes:g} min in all"
    )
    if ranks.size > 1:
        end += f", {ranks.size} ranks"
    with Progress(shown=ranks.is_first) as progress:
        while training.fraction < 1.0:
            training.advance()
            training.seconds = ranks.first(time.perf_counter() - started)
            text = f"step {training.step}{end}, loss {training.loss:.4f}"
            progress.show(training.fraction, text)
            if training.seconds - reported >= report_every:
                ranks.require_same(training.adder.model.params)
                progress.line(*training.report())
                reported = training.seconds
            if training.seconds - saved >= save_every:
                training.save(path)
                saved = training.seconds
        progress.line(*training.report())
    training.save(path)
    return training.evaluate(HELD_OUT_SAMPLE)


def _schedule(fraction: float) -> float:
    """The learning rate's share of its highest: a short rise, then a straight fall to 0."""
    if fraction < _WARM_UP:
        return (fraction + 1e-3) / (_WARM_UP + 1e-3)
    return max(0.0, (1.0 - fraction) / (1.0 - _WARM_UP))
