# SPDX-License-Identifier: Apache-2.0
"""Gradients that explode, and two ways of clipping them (Pascanu et al. 2013, arXiv:1211.5063).

A network whose W_hh stretches what it is multiplied with learns the scaled mean of its inputs by
plain stochastic gradient descent. Nothing bounds the gradient through the many steps, and one step
of training along a huge one throws the parameters away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnkern._checks import Array
from rnnkern.cells import CELLS
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import BLACK, BLUE, ORANGE, new_figure
from rnnkern.explore.result import Result
from rnnkern.explore.run import Experiment, Run
from rnnkern.training.clip import clip_grad_norm, clip_grad_value
from rnnkern.training.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HIDDEN, _BATCH, _LENGTH = 32, 32, 60
_RADIUS = 1.5  # of W_hh, an orthogonal matrix times this
_LR = 0.1
_MOST_NORM, _MOST_VALUE = 1.0, 0.05
_SMOOTHED = 20  # steps whose mean loss is the last
_LOST = 1e12  # a loss that is not followed any further
_NO_CLIPPING = 1e300
_DRAWN = 100.0  # losses above are above the picture

CLIPPERS: dict[str, Callable[[dict[str, Array]], object]] = {
    "none": lambda grads: None,
    "norm": lambda grads: clip_grad_norm(grads, _MOST_NORM),
    "value": lambda grads: clip_grad_value(grads, _MOST_VALUE),
}


class _Course(NamedTuple):
    """The loss and the norm of the gradients, unclipped, before every step."""

    losses: list[float]
    norms: list[float]


def scaled_means(rng: np.random.Generator, batch: int, length: int) -> Batch:
    """Inputs x (T, B, 1) of variance 1, and Σ x / √T (B, 1), of variance 1 too."""
    x = rng.standard_normal((length, batch, 1))
    return Batch(x, x.sum(axis=0) / np.sqrt(length))


def measure(run: Run) -> Result:
    """Train the same network on the same data unclipped, clipped by norm and clipped by value."""
    steps = run.pick(600, 300)
    run.expect(len(run.seeds) * len(run.cells) * len(CLIPPERS) * steps)
    rows, curves = [], []
    for cell in run.cells:
        for seed in run.seeds:
            for clip in CLIPPERS:
                course = _train(run, cell, clip, seed, steps)
                case = {"cell": cell, "clipping": clip, "seed": seed}
                rows.append({**case, **_measures(course)})
                curves.append({**case, "loss": course.losses, "norm": course.norms})
    return Result(
        name="clipping",
        title=f"Mean of {_LENGTH} inputs, learned by gradient descent: loss and gradient norm",
        settings={
            "hidden": _HIDDEN,
            "batch": _BATCH,
            "length": _LENGTH,
            "steps": steps,
            "lr": _LR,
            "spectral radius": _RADIUS,
            "clip_grad_norm": _MOST_NORM,
            "clip_grad_value": _MOST_VALUE,
        },
        measures={
            "first loss": ".2f",
            "worst loss": ".3g",
            "last loss": ".3g",
            "largest norm": ".3g",
            "steps": ".0f",
        },
        rows=rows,
        curves=curves,
        notes=(
            f"last loss: the mean of the last {_SMOOTHED} steps; a guess of 0 has a loss of 1.",
            f"A run ends early when its loss passes {_LOST:.0e} or is no longer a number.",
        ),
    )


def _train(run: Run, cell: str, clip: str, seed: int, steps: int) -> _Course:
    model = Model(
        cell,
        1,
        _HIDDEN,
        1,
        readout="last",
        loss="mse",
        seed=seed,
        dtype="float64",
        recurrent_init="orthogonal",
    )
    if "recurrent.weight_hh_l0" in model.params:
        model.params["recurrent.weight_hh_l0"] *= _RADIUS
    model.params["recurrent.bias_l0"][...] = 0.0
    optimizer = SGD(model.params, _LR)
    rng = np.random.default_rng([seed, 0])
    course = _Course([], [])
    for _ in range(steps):
        with np.errstate(over="ignore", invalid="ignore"):  # the point of the unclipped run
            loss, grads = model.loss_and_gradients(scaled_means(rng, _BATCH, _LENGTH))
            norm = clip_grad_norm(grads, _NO_CLIPPING)
        if not (np.isfinite(loss) and np.isfinite(norm)):
            break
        course.losses.append(loss)
        course.norms.append(norm)
        if loss > _LOST:
            break
        CLIPPERS[clip](grads)
        optimizer.step(grads)
        run.tell(f"{cell}, clipping: {clip}, seed {seed}: loss {loss:.3g}")
    return course


def _measures(course: _Course) -> dict[str, Any]:
    return {
        "first loss": course.losses[0],
        "worst loss": max(course.losses),
        "last loss": float(np.mean(course.losses[-_SMOOTHED:])),
        "largest norm": max(course.norms),
        "steps": len(course.losses),
    }


_LINES = {
    "none": ("not clipped", BLACK, "-", 1.8),
    "norm": (f"clip_grad_norm {_MOST_NORM:g}", BLUE, "-", 1.2),
    "value": (f"clip_grad_value {_MOST_VALUE:g}", ORANGE, "--", 1.2),
}


def figure(result: Result) -> Figure:
    """The first seed's loss and gradient norm over the steps, a column per cell."""
    cells, seed = result.cells(), result.seeds[0]
    drawn = new_figure(max(6.5, 4.5 * len(cells)), 6.0)
    columns = drawn.subplots(2, len(cells), sharex="col", squeeze=False).T
    for cell, (above, below) in zip(cells, columns, strict=True):
        for clip, (label, color, line, width) in _LINES.items():
            (curve,) = result.pick(cell=cell, clipping=clip, seed=seed)
            for axes, name in ((above, "loss"), (below, "norm")):
                axes.semilogy(curve[name], line, color=color, linewidth=width, label=label)
        above.set_ylim(0.05, _DRAWN)
        above.set_title(f"{CELLS[cell].label}, seed {seed}")
        above.set_ylabel("loss (squared error)")
        below.set_ylabel("gradient norm before clipping")
        below.set_xlabel("step of training")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    columns[0][0].legend(loc="upper right")
    return drawn


clipping = Experiment(
    "clipping",
    "a loss that blows up, and two ways of clipping that keep it",
    measure,
    figure,
    cells=("rnn",),
)
