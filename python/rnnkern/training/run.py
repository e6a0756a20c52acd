# SPDX-License-Identifier: Apache-2.0
"""Where a run of training is, and the checkpoints that it goes on from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern._safetensors import refusal
from rnnkern.devices import get_device
from rnnkern.serialize import load_checkpoint, save
from rnnkern.training.history import History
from rnnkern.training.optim import Optimizer
from rnnkern.training.ranks import Ranks

_LAST = "last."  # of the arrays where training goes on, where the file's model is the best one


class Run:
    """Where a run is: what a checkpoint holds beside the model and the optimizer's state.

    Attributes:
        epoch: Epochs that ended.
        batch: Batches of this epoch that were learned from.
        without_gain: Epochs in turn without a lower loss on the validation data.
        lr: Of the last step.
        seconds: Since the beginning, interrupted parts left out.
        history: Of the epochs that ended.

    """

    def __init__(
        self, model: Any, optimizer: Optimizer, measures: Iterable[str], *, keep_best: bool
    ) -> None:
        self.epoch = self.batch = self.without_gain = 0
        self.lr, self.seconds = optimizer.lr, 0.0
        columns = ("loss", *(("valid",) if keep_best else ()), *measures, "lr", "seconds")
        self.history = History(columns)
        self._model, self._optimizer = model, optimizer
        self._best = deepcopy(model) if keep_best else None
        self._least = math.inf  # loss on the validation data
        self._total, self._places = 0.0, 0.0  # of this epoch
        self._batches: int | None = None  # of an epoch, once that is known

    def note(self, loss: float, places: float) -> None:
        """A step is done, whose mean loss was over so many targets."""
        self.batch += 1
        self._total += loss * places
        self._places += places

    def end_epoch(self, valid: list[float], measures: list[float]) -> None:
        """All batches are done, and the validation data were looked at."""
        mean = self._total / max(self._places, 1)
        self.history.add([mean, *valid, *measures, self.lr, self.seconds])
        self._batches = self.batch
        self.epoch += 1
        self.batch, self._total, self._places = 0, 0.0, 0.0
        self.without_gain += 1
        if self._best is not None and valid[0] < self._least:
            self._least, self.without_gain = valid[0], 0
            self._best.params.update(self._model.params)

    def take_best(self) -> None:
        """Give the model the parameters with which the loss on the validation data was least."""
        if self._best is not None and math.isfinite(self._least):
            self._model.params.update(self._best.params)

    def done(self, data: Any) -> float:
        """Of this epoch that is done, as far as one can know."""
        count = len(data) if hasattr(data, "__len__") else self._batches
        return min(self.batch / count, 1.0) if count else 0.0

    def text(self, epochs: int) -> str:
        """For the bar."""
        loss = self._total / max(self._places, 1)
        return f"epoch {self.epoch + 1} of {epochs}, step {self._optimizer.steps}, loss {loss:.4f}"

    def share(self, ranks: Ranks) -> None:
        """Be, on every rank, where the first one is."""
        if ranks.size == 1:
            return
        numbers, rows, state = ranks.first(
            (self._numbers(), self.history.array.tolist(), self._optimizer.state_dict())
        )
        self._take(numbers, rows)
        self._optimizer.load_state_dict(state)
        ranks.broadcast(self._model.params)
        if self._best is not None:
            ranks.broadcast(self._best.params)

    def _numbers(self) -> list[float]:
        numbers = [self.epoch, self.batch, self.without_gain, self._least]
        return [*numbers, self.lr, self.seconds, self._total, self._places]

    def _take(self, numbers: list[float], rows: list[list[float]]) -> None:
        """Be where these numbers, and these rows of the history, say."""
        (
            epoch,
            batch,
            without_gain,
            self._least,
            self.lr,
            self.seconds,
            self._total,
            self._places,
        ) = numbers
        self.epoch, self.batch, self.without_gain = int(epoch), int(batch), int(without_gain)
        self.history = History(self.history.columns, rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint; it is there whole or not at all."""
        extra: dict[str, Array] = {
            "run": np.array(self._numbers(), np.float64),
            "history": self.history.array,
        }
        if self._best is not None:
            extra |= {f"{_LAST}{name}": array for name, array in self._model.params.items()}
        save(
            path,
            self._model if self._best is None else self._best,
            optimizer=self._optimizer,
            extra=extra,
            notes={"fit": " ".join(self.history.columns)},
        )

    def load(self, path: str | os.PathLike[str]) -> None:
        """Be where the run was whose checkpoint this is."""
        found = load_checkpoint(path, device=self._model.device)
        if "fit" not in found.notes or found.optimizer is None:
            raise refusal(path, "is not a checkpoint of fit")
        kept = " ".join(self.history.columns)
        if found.notes["fit"] != kept:
            raise ValueError(
                f"{os.fspath(path)} is of a run that notes {found.notes['fit']}, and this one "
                f"notes {kept}: resume it with the same valid and measures"
            )
        model, of_file = self._model, found.model
        if type(of_file) is not type(model) or of_file.params.specs() != model.params.specs():
            raise ValueError(f"{os.fspath(path)} is of another model than the one to be trained")
        try:
            now = of_file.params
            if self._best is not None:
                put = get_device(model.device).put
                now = {name: put(found.extra[f"{_LAST}{name}"]) for name in model.params}
            self._take(found.extra["run"].tolist(), found.extra["history"].tolist())
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise refusal(path, f"is not a checkpoint of fit: {error}") from error
        self._optimizer.load_state_dict(found.optimizer)
        model.params.update(now)
        if self._best is not None:
            self._best.params.update(of_file.params)
