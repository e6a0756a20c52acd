# SPDX-License-Identifier: Apache-2.0
"""What a run of training was like, epoch by epoch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnnkern.plot import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = ("loss", "valid", "lr", "seconds")  # columns that are no further measures


class History:
    """A row of numbers for each epoch that ended.

    ``history["loss"]`` is one column over the epochs. There are "loss", the mean over the epoch's
    targets while it trained, "valid", that of the validation data after it, if there are some, the
    further measures by their names, "lr" of its last step, and "seconds" since the run began,
    interrupted parts left out.

    Attributes:
        columns: Their names.

    Example:
        >>> x = np.zeros((8, 3), int)
        >>> model = rk.Model(rk.GRU(4, 8, seed=0), rk.Linear(8, 4, seed=1), readout="last")
        >>> history = rk.fit(model, rk.batches(x, x[:, 0], 4), epochs=3)
        >>> history.columns
        ('loss', 'lr', 'seconds')
        >>> len(history["loss"])
        3

    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[float]] = ()) -> None:
        self.columns = tuple(columns)
        self._rows: list[tuple[float, ...]] = []
        for row in rows:
            self.add(row)

    def add(self, row: Sequence[float]) -> None:
        """Note an epoch: a number for each column."""
        if len(row) != len(self.columns):
            raise ValueError(f"row must have {len(self.columns)} numbers, got {len(row)}")
        self._rows.append(tuple(map(float, row)))

    @property
    def array(self) -> NDArray[np.float64]:
        """(epochs, columns)."""
        return np.array(self._rows, np.float64).reshape(-1, len(self.columns))

    @property
    def best(self) -> int | None:
        """The epoch, from 0, whose "valid" is the least, or without that the last; None of none."""
        if not self._rows:
            return None
        if "valid" not in self.columns:
            return len(self) - 1
        losses = self["valid"]
        return int(np.argmin(np.where(np.isnan(losses), np.inf, losses)))

    def __len__(self) -> int:
        """Epochs."""
        return len(self._rows)

    def __getitem__(self, column: str) -> NDArray[np.float64]:
        if column not in self.columns:
            raise KeyError(f"history has {', '.join(self.columns)}, got {column!r}")
        return self.array[:, self.columns.index(column)]

    def text(self, epoch: int = -1) -> str:
        """One epoch in a line."""
        row = zip(self.columns, self._rows[epoch], strict=True)
        told = [f"{name} {value:.4g}" for name, value in row if name not in ("lr", "seconds")]
        return (
            f"epoch {epoch % len(self) + 1:3}  {self['seconds'][epoch]:6.1f} s  {'  '.join(told)}"
        )

    def __repr__(self) -> str:
        best = self.best
        if best is None:
            return "History(no epoch)"
        return f"History({len(self)} epochs; best: {' '.join(self.text(best).split())})"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Losses over the epochs, and below them the further measures; written to ``path`` too.

        Raises:
            ImportError: matplotlib is not installed; the message says what to install.
            OSError: The file cannot be written.

        """
        require_matplotlib()
        from matplotlib.figure import Figure

        measures = [name for name in self.columns if name not in OWN]
        figure = Figure(figsize=(7, 4 if not measures else 6), layout="constrained")
        panels: list[Any] = list(
            figure.subplots(1 + bool(measures), 1, sharex=True, squeeze=False).flat
        )
        epochs = np.arange(1, len(self) + 1)
        for name, label in (("loss", "training"), ("valid", "validation")):
            if name in self.columns:
                panels[0].plot(epochs, self[name], marker=".", label=label)
        if "valid" in self.columns and self.best is not None:
            panels[0].axvline(self.best + 1, color="0.6", linestyle=":", label="best")
        panels[0].set_ylabel("loss")
        if (self.array[:, 0] > 0.0).all():
            panels[0].set_yscale("log")
        for name in measures:
            panels[1].plot(epochs, self[name], marker=".", label=name)
        panels[-1].set_xlabel("epoch")
        for axes in panels:
            axes.grid(alpha=0.3)
            axes.legend()
        if path is not None:
            figure.savefig(path, format="png")
        return figure
