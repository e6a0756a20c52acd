# SPDX-License-Identifier: Apache-2.0
"""What the programs share: a small model and its training, results over seeds, pictures' style."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnkern import adder, layers
from rnnkern._checks import Array, boolean, choice, positive_int
from rnnkern.layers.base import Recurrent
from rnnkern.layers.linear import Linear
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.tape import State, StateGradients, Tape
from rnnkern.plot import require_matplotlib
from rnnkern.progress import Progress
from rnnkern.record import facts
from rnnkern.training.clip import clip_grad_norm
from rnnkern.training.losses import softmax_cross_entropy
from rnnkern.training.optim import Adam

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = NDArray[np.int64]

CELLS: dict[str, Callable[..., Recurrent]] = {
    name: functools.partial(getattr(layers, kind), **options)
    for name, (kind, options) in adder.CELLS.items()
}
ALL = tuple(CELLS)

_DIGITS = 7  # significant, of a number in a JSON file


# -- arguments ------------------------------------------------------------------------------------


def check_run(
    seed: int, seeds: int, cells: Sequence[str], quick: bool, known: Sequence[str] = ALL
) -> tuple[range, tuple[str, ...]]:
    """The seeds and the cells of a run, checked.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A negative seed, no seeds, no cells, a cell twice or one not in ``known``.

    """
    boolean("quick", quick)
    first = positive_int("seed", seed, minimum=0)
    count = positive_int("seeds", seeds)
    if isinstance(cells, str):
        raise TypeError(f"cells must be a sequence of names, got the string {cells!r}")
    for cell in cells:
        choice("cells", cell, known)
    if not cells or len(set(cells)) != len(cells):
        raise ValueError(f"cells must be different names, at least one, got {list(cells)}")
    return range(first, first + count), tuple(cells)


# -- results --------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """The middle of some values, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        """As ``0.93 (0.91-0.95)``; one number where all three read the same."""
        median, low, high = (format(value, form) for value in self)
        return median if low == median == high else f"{median} ({low}-{high})"


def spread(values: Iterable[float]) -> Spread:
    """Median, least and greatest of at least one value."""
    numbers = [float(value) for value in values]
    return Spread(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True)
class Result:
    """What a program found.

    Attributes:
        name: The program's.
        title: A line above the table and the picture.
        settings: What the numbers depend on beside the seed: sizes, steps, learning rates.
        measures: The columns that hold a measured number, and how each is written, as ``".3f"``.
        rows: One per case and seed: the case's columns, ``"seed"`` and the measures.
        curves: What the picture shows beyond the rows: per curve its case, ``"seed"`` and lists.
        notes: Sentences below the table.

    """

    name: str
    title: str
    settings: dict[str, Any]
    measures: dict[str, str]
    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """Those of the rows, in order."""
        return sorted({row["seed"] for row in self.rows})

    def values(self, measure: str, **case: Any) -> list[float]:
        """A measure of all rows that agree with ``case``, in the rows' order."""
        return [row[measure] for row in _agreeing(self.rows, case)]

    def pick(self, **case: Any) -> list[dict[str, Any]]:
        """The curves that agree with ``case``."""
        return _agreeing(self.curves, case)

    def cells(self) -> list[str]:
        """The cells of the rows, each once, in order."""
        return list(dict.fromkeys(row["cell"] for row in self.rows))

    def table(self) -> str:
        """A line per case, with each measure's median, least and greatest value over the seeds."""
        columns = [c for c in self.rows[0] if c != "seed" and c not in self.measures]
        cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self.rows:
            cases.setdefault(tuple(row[c] for c in columns), []).append(row)
        lines = [[*columns, *self.measures]]
        for case, rows in cases.items():
            measured = [
                spread(row[m] for row in rows).text(form) for m, form in self.measures.items()
            ]
            lines.append([*(str(value) for value in case), *measured])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = [not isinstance(self.rows[0][c], str) for c in columns] + [True] * len(
            self.measures
        )
        aligned = [
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        over = f"median (least-greatest) over {len(self.seeds)} seeds"
        return "\n".join(
            [
                self.title + (f"; {over}" if len(self.seeds) > 1 else ""),
                "",
                aligned[0],
                "-" * max(map(len, aligned)),
                *aligned[1:],
                *(["", *self.notes] if self.notes else []),
            ]
        )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all numbers; the same bytes for the same numbers.

        A number is rounded to seven digits, and null where it is not finite.
        """
        whole = {
            "program": self.name,
            "title": self.title,
            "settings": self.settings,
            "seeds": self.seeds,
            "measures": list(self.measures),
            "rows": self.rows,
            "curves": self.curves,
            "notes": list(self.notes),
        }
        lines = json.dumps(_plain(whole), indent=1, allow_nan=False)
        Path(path).write_text(lines + "\n", encoding="utf-8")

    def to_record(self, path: str | os.PathLike[str]) -> None:
        """Write what the table is made of, and where it comes from: see ``rnnkern.record``."""
        whole = {
            "facts": facts(),
            "program": self.name,
            "title": self.title,
            "settings": self.settings,
            "measures": self.measures,
            "notes": list(self.notes),
            "rows": self.rows,
        }
        # Unrounded, so that the table made of it is the one that was printed; a line each.
        lines = json.dumps(whole, default=lambda number: number.item())
        Path(path).write_text(lines.replace(" {", "\n{") + "\n", encoding="utf-8")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """The result that a record holds, without its curves."""
        fields = {name: record[name] for name in ("title", "settings", "measures", "rows")}
        return cls(record["program"], **fields, notes=tuple(record["notes"]))


def _agreeing(rows: Iterable[dict[str, Any]], case: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in case.items())]


def _plain(value: Any) -> Any:
    """``value`` as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


# -- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Sequences and what a model is to say of them.

    Attributes:
        x: Tokens (T, B), int64, or features (T, B, I) of the model's dtype.
        targets: Of a model that reads out "all" steps (T, B, ...), of another (B, ...): classes,
            int64, without a further axis, or numbers with the axis of the model's outputs.
        lengths: (B,), where rows end before T.
        mask: (T, B) or (B,), bool: the targets that count. ``None`` is all, up to the lengths.

    """

    x: Array
    targets: Array
    lengths: Ints | None = None
    mask: Array | None = None


class Model:
    """A recurrent layer or stack of them, an affine map of what it gives, and Adam.

    Args:
        cell: One of ``CELLS``.
        input_size: Tokens, or features of a step.
        hidden_size: H, units of each layer and direction.
        outputs: Classes, or numbers to be predicted.
        readout: What the affine map is applied to: "all" steps, the "last" state of the top layer
            (of both directions, where there are two), or the "mean" over the live steps.
        loss: "cross-entropy" of classes, or "squared-error".
        lr: Learning rate.
        clip: Bound on the norm of the gradients.
        seed: Of the initial parameters.
        dtype: "float32" or "float64".
        options: Further arguments of the layer, as ``num_layers`` and ``bidirectional``.

    Attributes:
        recurrent: The layer.
        head: The affine map.
        params: Those of both, by ``recurrent.`` and ``head.`` and their own name.

    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        outputs: int,
        *,
        readout: str = "all",
        loss: str = "cross-entropy",
        lr: float = 1e-3,
        clip: float = 1.0,
        seed: int = 0,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        self.readout = choice("readout", readout, ("all", "last", "mean"))
        self.loss = choice("loss", loss, ("cross-entropy", "squared-error"))
        own, of_head = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        make = CELLS[choice("cell", cell, ALL)]
        self.recurrent = make(input_size, hidden_size, dtype=dtype, seed=own, **options)
        features = self.recurrent.num_directions * hidden_size
        self.head = Linear(features, outputs, dtype=dtype, seed=of_head)
        self.params = Parameters.joined(
            {"recurrent": self.recurrent.params, "head": self.head.params}
        )
        self.clip = clip
        self.optimizer = Adam(self.params, lr)

    @property
    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(p.size for p in self.params.values())

    def predict(self, x: Array, lengths: Ints | None = None) -> Array:
        """The outputs, logits or numbers: (T, B, outputs) of "all" steps, else (B, outputs)."""
        y, state = self.recurrent(x, None, lengths)
        return self.head(self._features(y, state, lengths))

    def accuracy(self, batch: Batch) -> float:
        """The share of the targets that count whose class is the likeliest by the model."""
        right = self.predict(batch.x, batch.lengths).argmax(axis=-1) == batch.targets
        counted = self._counted(batch)
        return float((right if counted is None else right[counted]).mean())

    def loss_of(self, batch: Batch) -> float:
        """The loss on a batch that is not learned from."""
        return self._loss(self.predict(batch.x, batch.lengths), batch)[0]

    def loss_and_gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """The loss, and its gradients by the names in ``params``."""
        loss, tape, dy, dstate, of_head = self._forward(batch)
        _, _, grads = tape.backward(dy, dstate)
        return loss, _joined(grads, of_head)

    def trace(self, batch: Batch) -> tuple[Tape, list[StateGradients]]:
        """The tape, and the gradients of every step's state and gates in the loss."""
        _, tape, dy, dstate, _ = self._forward(batch)
        *_, traced = tape.backward(dy, dstate, state_gradients=True)
        return tape, traced

    def step(self, batch: Batch, lr: float | None = None) -> float:
        """Learn from a batch; its loss before.

        Raises:
            ArithmeticError: The gradients are not finite; nothing was changed.

        """
        loss, grads = self.loss_and_gradients(batch)
        if not math.isfinite(clip_grad_norm(grads, self.clip)):
            raise ArithmeticError(
                f"training diverged in step {self.optimizer.steps}: the gradients are not finite"
            )
        self.optimizer.step(grads, lr)
        return loss

    def _forward(
        self, batch: Batch
    ) -> tuple[float, Tape, Array | None, State | None, dict[str, Array]]:
        y, state, tape = self.recurrent.forward(batch.x, None, batch.lengths)
        outputs, head_tape = self.head.forward(self._features(y, state, batch.lengths))
        loss, doutputs = self._loss(outputs, batch)
        dfeatures, of_head = head_tape.backward(doutputs)
        dy, dstate = self._to_layer(dfeatures, y, state, batch.lengths)
        return loss, tape, dy, dstate, of_head

    def _features(self, y: Array, state: State, lengths: Ints | None) -> Array:
        """What the affine map sees."""
        if self.readout == "all":
            return y
        if self.readout == "last":
            h = state[0] if isinstance(state, tuple) else state
            return np.concatenate(list(h[-self.recurrent.num_directions :]), axis=-1)
        mean: Array = y.sum(axis=0) * self._share(y, lengths)
        return mean

    def _to_layer(
        self, dfeatures: Array, y: Array, state: State, lengths: Ints | None
    ) -> tuple[Array | None, State | None]:
        """The gradients in y and in the last state, from that in what the affine map saw."""
        if self.readout == "all":
            return dfeatures, None
        if self.readout == "last":
            directions = self.recurrent.num_directions
            h = state[0] if isinstance(state, tuple) else state
            dh = np.zeros_like(h)
            dh[-directions:] = np.stack(np.split(dfeatures, directions, axis=-1))
            return None, (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
        live = np.ones(y.shape[:2], bool) if lengths is None else _live(len(y), lengths)
        return live[:, :, None] * (dfeatures * self._share(y, lengths)), None

    def _share(self, y: Array, lengths: Ints | None) -> Array:
        """One over each row's length, (B, 1)."""
        if lengths is None:
            return np.full((y.shape[1], 1), 1.0 / len(y), y.dtype)
        return (1.0 / np.maximum(lengths, 1)).astype(y.dtype)[:, None]

    def _counted(self, batch: Batch) -> Array | None:
        """The mask of the targets that count."""
        if batch.mask is not None or batch.lengths is None or self.readout != "all":
            return batch.mask
        return _live(len(batch.x), batch.lengths)

    def _loss(self, outputs: Array, batch: Batch) -> tuple[float, Array]:
        counted = self._counted(batch)
        if self.loss == "cross-entropy":
            return softmax_cross_entropy(outputs, batch.targets, counted)
        return squared_error(outputs, batch.targets, counted)


def squared_error(outputs: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
    """Mean of (output - target)², and its gradient in the outputs (..., N).

    ``mask`` (...), bool, picks the places that count; elsewhere the gradient is 0.
    """
    if targets.shape != outputs.shape:
        raise ValueError(f"targets must have shape {outputs.shape}, got {targets.shape}")
    difference = (outputs - targets).astype(outputs.dtype, copy=False)
    if mask is not None:
        difference = np.where(mask[..., None], difference, outputs.dtype.type(0))
    count = outputs.size if mask is None else int(np.count_nonzero(mask)) * outputs.shape[-1]
    weight = 1.0 / max(count, 1)
    loss = float(np.square(difference, dtype=np.float64).sum()) * weight
    return loss, difference * outputs.dtype.type(2.0 * weight)


def _joined(recurrent: Mapping[str, Array], head: Mapping[str, Array]) -> dict[str, Array]:
    """One mapping of a layer's and an affine map's arrays."""
    return {
        **{f"recurrent.{name}": array for name, array in recurrent.items()},
        **{f"head.{name}": array for name, array in head.items()},
    }


def _live(steps: int, lengths: Ints) -> Array:
    """(T, B): whether a step is within its row's length."""
    live: Array = np.arange(steps)[:, None] < lengths
    return live


def train(
    model: Model,
    draw: Callable[[np.random.Generator], Batch],
    steps: int,
    progress: Progress | None = None,
    *,
    rng: np.random.Generator,
    text: str = "",
    decay: float = 0.0,
) -> list[float]:
    """Take steps on fresh batches.

    Args:
        model: Changed in place.
        draw: Makes a batch from random numbers.
        steps: How many.
        progress: Where a bar is drawn, on a terminal alone.
        rng: Where the batches come from.
        text: What the bar says before the step and the loss.
        decay: The share of the steps, the last ones, in which the learning rate falls to 0.

    Returns:
        The loss of every step, before it.

    Raises:
        ArithmeticError: The gradients are no longer finite.

    """
    losses = []
    for step in range(steps):
        rate = min(1.0, (steps - step) / (decay * steps)) if decay else 1.0
        losses.append(model.step(draw(rng), rate * model.optimizer.lr))
        if progress is not None:
            progress.show(step / steps, f"{text}: step {step} of {steps}, loss {losses[-1]:.4f}")
    return losses


# -- pictures -------------------------------------------------------------------------------------


class Style(NamedTuple):
    """How a cell looks in every picture: by colour, by marker and by line, each enough alone."""

    label: str
    color: str
    marker: str
    line: str


# The colours of Okabe and Ito (2008), which the colour-blind tell apart too.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)

STYLES: dict[str, Style] = {
    "rnn": Style("simple RNN", BLACK, "o", "-"),
    "simplified-gru": Style("simplified GRU", ORANGE, "^", "--"),
    "gru": Style("GRU", BLUE, "s", "-"),
    "gru-after": Style("GRU, reset after", SKY, "D", "-."),
    "lstm": Style("LSTM", VERMILION, "v", "-"),
}
LABELS = {name: style.label for name, style in STYLES.items()}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches.

    Raises:
        ImportError: matplotlib is not installed; the message says what to install.

    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG of few colours, small, that tells nothing of when and by what it was drawn."""
    from PIL import Image  # which matplotlib needs itself

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE).save(
            path, format="png", optimize=True
        )


def draw_cell(
    axes: Axes,
    cell: str,
    x: Sequence[float],
    by_seed: Sequence[Sequence[float]],
    *,
    label: str | None = None,
    markers: bool = True,
    line: str | None = None,
) -> None:
    """One cell's curve: the median over the seeds, and a band from the least to the greatest.

    Args:
        axes: Where.
        cell: One of ``STYLES``.
        x: (points,).
        by_seed: (seeds, points).
        label: In the legend; ``None`` is the cell's own.
        markers: Whether points are marked; leave it where they are many.
        line: The line's style, when it is not the cell's own.

    """
    style = STYLES[cell]
    values = np.asarray(by_seed, float)
    axes.plot(
        x,
        np.median(values, axis=0),
        color=style.color,
        linestyle=line or style.line,
        marker=style.marker if markers else None,
        markersize=5,
        label=style.label if label is None else label,
    )
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)


# -- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """A program: its function, its picture and what ``rnnkern explore --list`` says of it."""

    summary: str
    run: Callable[..., Result]
    figure: Callable[[Result], Figure]
