# SPDX-License-Identifier: Apache-2.0
"""What ``adding`` and ``copy`` share: each cell against the baseline that remembers nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import draw_cell, new_figure
from rnnkern.explore.result import Result
from rnnkern.explore.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 32
_LR = 0.01
_DECAY = 0.3  # the last share of the steps, in which the learning rate falls
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
        steps: Training steps by T.
        notes: Sentences below the table.

    """

    name: str
    title: str
    error: str
    draw: Callable[[np.random.Generator, int, int], Batch]
    model: dict[str, Any]
    baseline: Callable[[int], float]
    steps: dict[int, int]
    notes: tuple[str, ...]


def learn(run: Run, task: Task) -> Result:
    """Train every cell at every T, each from every seed."""
    run.expect(len(run.seeds) * len(run.cells) * sum(task.steps.values()))
    rows, curves = [], []
    for length, steps in task.steps.items():
        baseline = task.baseline(length)
        for cell in run.cells:
            for seed in run.seeds:
                model = _model(task, cell, length, seed)
                losses = run.train(
                    model,
                    _batches(task, length),
                    steps,
                    rng=np.random.default_rng([seed, length, 0]),
                    text=f"T = {length}, {cell}, seed {seed}",
                    decay=_DECAY,
                )
                unseen = task.draw(np.random.default_rng([seed, length, 1]), _TESTED, length)
                error = model.loss_of(unseen)
                case = {"T": length, "cell": cell, "seed": seed}
                rows.append(
                    {
                        "T": length,
                        "steps": steps,
                        "cell": cell,
                        "seed": seed,
                        "error": error,
                        "of baseline": error / baseline,
                    }
                )
                curves.append({**case, "loss": _smoothed(losses)})
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
        },
        measures={"error": ".4f", "of baseline": ".0%"},
        rows=rows,
        curves=curves,
        notes=(f"error: {task.error}, on sequences that no training saw.", *task.notes),
    )


def _model(task: Task, cell: str, length: int, seed: int) -> Model:
    """Orthogonal recurrent matrices; an LSTM that at first forgets over about T steps.

    That forget bias is log T (Tallec & Ollivier 2018, arXiv:1804.11188).
    """
    return Model(
        cell,
        seed=seed,
        lr=_LR,
        recurrent_init="orthogonal",
        forget_bias=math.log(length),
        **task.model,
    )


def _batches(task: Task, length: int) -> Callable[[np.random.Generator], Batch]:
    return lambda rng: task.draw(rng, BATCH, length)


def _smoothed(losses: Sequence[float], points: int = 50) -> list[float]:
    """Means of up to ``points`` equal stretches."""
    return [float(part.mean()) for part in np.array_split(losses, min(points, len(losses)))]


def figure(result: Result) -> Figure:
    """Left, the error against T beside the baseline; right, the loss while the shortest learns."""
    lengths = sorted(int(length) for length in result.settings["baselines"])
    drawn = new_figure(10.0, 4.4)
    left, right = drawn.subplots(1, 2)
    for cell in result.cells():
        errors = [result.values("error", cell=cell, T=length) for length in lengths]
        draw_cell(left, cell, lengths, np.transpose(errors).tolist())
        losses = [curve["loss"] for curve in result.pick(cell=cell, T=lengths[0])]
        x = (np.arange(len(losses[0])) + 0.5) * result.settings["steps"][lengths[0]]
        draw_cell(right, cell, (x / len(losses[0])).tolist(), losses, markers=False)
    baselines = result.settings["baselines"]
    left.plot(lengths, [baselines[t] for t in lengths], ":", color="0.4", label="remembers nothing")
    right.axhline(baselines[lengths[0]], linestyle=":", color="0.4")
    left.set_xscale("log")
    left.set_xticks(lengths, [str(t) for t in lengths])
    left.minorticks_off()
    left.set_xlabel("T (steps)")
    left.set_ylabel(result.settings["error"])
    left.set_title("after training")
    right.set_ylabel(result.settings["error"])
    right.set_xlabel("step of training")
    right.set_title(f"while training, T = {lengths[0]}")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return drawn
