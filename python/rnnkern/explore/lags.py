# SPDX-License-Identifier: Apache-2.0
"""What ``adding`` and ``copy`` share: each cell against the baseline that remembers nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import draw_cell, new_figure, told_of_bands
from rnnkern.explore.result import Result
from rnnkern.explore.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 32
_LR = 0.01
_LEARNED = 0.02  # of the baseline: training ends there
_WINDOW = 25  # steps whose mean loss is a point of a curve, and is looked at for that
_TESTED = 256  # sequences that no training saw


@dataclass(frozen=True)
class Task:
    """One of the two tasks.

    Attributes:
        name: The program's.
        title: Of the table and the picture.
        error: What is measured, with its unit.
        draw: A batch of (sequences, T) from random numbers.
        model: What a model needs beside the cell, its seed and its learning rate.
        baseline: The error, at T, of the best answer that remembers nothing.
        remembers: The best answer that remembers nothing, in words.
        steps: Training steps by T, at most.
        notes: Sentences below the table.

    """

    name: str
    title: str
    error: str
    draw: Callable[[np.random.Generator, int, int], Batch]
    model: dict[str, Any]
    baseline: Callable[[int], float]
    remembers: str
    steps: dict[int, int]
    notes: tuple[str, ...]


def learn(run: Run, task: Task) -> Result:
    """Train every cell at every T, each from every seed, until it has learned or steps are up."""
    run.expect(len(run.seeds) * len(run.cells) * sum(task.steps.values()))
    rows, curves = [], []
    for length, most in task.steps.items():
        baseline = task.baseline(length)
        for cell in run.cells:
            for seed in run.seeds:
                model = Model(
                    cell,
                    seed=seed,
                    lr=_LR,
                    recurrent_init="orthogonal",
                    memory=length,
                    **task.model,
                )
                losses = run.train(
                    model,
                    _batches(task, length),
                    most,
                    rng=np.random.default_rng([seed, length, 0]),
                    text=f"T = {length}, {cell}, seed {seed}",
                    until=functools.partial(_below, _LEARNED * baseline),
                )
                unseen = task.draw(np.random.default_rng([seed, length, 1]), _TESTED, length)
                error = model.loss_of(unseen)
                case = {"T": length, "cell": cell, "seed": seed}
                rows.append(
                    {**case, "steps": len(losses), "error": error, "of baseline": error / baseline}
                )
                shares = np.asarray(losses) / baseline
                curves.append({**case, "loss": _windows(shares, most)})
    return Result(
        name=task.name,
        title=task.title,
        settings={
            "batch": BATCH,
            "lr": _LR,
            "hidden": task.model["hidden_size"],
            "steps": task.steps,
            "error": task.error,
            "baselines": {length: task.baseline(length) for length in task.steps},
            "remembers nothing": task.remembers,
        },
        measures={"steps": ".0f", "error": ".4f", "of baseline": ".0%"},
        rows=rows,
        curves=curves,
        notes=(
            f"steps: until the loss was {_LEARNED:.0%} of the baseline, at most "
            f"{max(task.steps.values())}.",
            f"error: {task.error}, on sequences that no training saw.",
            "Gates start so that units keep their state over 1 to T steps.",
            *task.notes,
        ),
    )


def _below(bound: float, losses: list[float]) -> bool:
    """Whether the last losses are, on average."""
    return float(np.mean(losses[-_WINDOW:])) < bound


def _batches(task: Task, length: int) -> Callable[[np.random.Generator], Batch]:
    return lambda rng: task.draw(rng, BATCH, length)


def _windows(losses: Array, most: int) -> list[float]:
    """Means of so many steps each; after the last step, the last of them."""
    means = [
        float(losses[start : start + _WINDOW].mean()) for start in range(0, len(losses), _WINDOW)
    ]
    return means + [means[-1]] * (-(-most // _WINDOW) - len(means))


def figure(result: Result) -> Figure:
    """For each T the loss while training, as a share of that of remembering nothing."""
    lengths = sorted(int(length) for length in result.settings["baselines"])
    drawn = new_figure(10.0, 4.6)
    panels = drawn.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for axes, length in zip(panels, lengths, strict=True):
        for cell in result.cells():
            losses = [curve["loss"] for curve in result.pick(cell=cell, T=length)]
            x = ((np.arange(len(losses[0])) + 0.5) * _WINDOW).tolist()
            draw_cell(axes, cell, x, losses, markers=False)
        axes.axhline(1.0, linestyle=":", color="0.4")
        axes.annotate(
            result.settings["remembers nothing"],
            (0.98, 1.0),  # at the right end of the line
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.set_xlabel("step of training")
        axes.set_title(f"T = {length}")
    panels[0].set_ylabel("loss, as a share of that of\nwhat remembers nothing")
    drawn.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        title=told_of_bands(result),
    )
    return drawn
