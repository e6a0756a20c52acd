# SPDX-License-Identifier: Apache-2.0
"""Smudged brackets: stacked layers, one way or both ways, of equal numbers of parameters."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnnkern.cells import CELLS
from rnnkern.explore.budget import equal_units
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import draw_shares, new_figure
from rnnkern.explore.result import Result, spread
from rnnkern.explore.run import Experiment, Run
from rnnkern.models.summary import num_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = 4  # of brackets
LENGTH, _QUICK_LENGTH = 24, 6  # brackets of a sequence
NESTED = 4  # brackets open at once, at most
OPENING, CLOSING = KINDS, 2 * KINDS  # second letters of opening and of closing brackets
SMUDGED_OPENING, SMUDGED_CLOSING = 3 * KINDS, 3 * KINDS + 1
TOKENS = 3 * KINDS + 2

_PARAMETERS, _QUICK_PARAMETERS = 8000, 3000
_BATCH = 64
_LR = 1e-2
_STEPS, _QUICK_STEPS = 500, 400
_ASKED = 500  # sequences
_LAYERS = (1, 2, 3)
_READS = {"forward": False, "both ways": True}
_ERRORS = {"closing": SMUDGED_CLOSING, "opening": SMUDGED_OPENING}


def draw(random: np.random.Generator, rows: int, length: int = LENGTH) -> Batch:
    """Balanced brackets, each spelt by two letters, of which some are smudged: tell their kind.

    Tokens (2·length, B). The first letter of a bracket is one of KINDS; the second says whether it
    opens or closes and, with the first, its kind: the sum of the two modulo KINDS. A smudged second
    letter says only whether the bracket opens. Of a pair at most one is smudged, so that the other
    tells the kind: it stands before a closing bracket, and after an opening one. The steps of
    smudged letters count.
    """
    closing, opener = _balanced(random, rows, length)
    kinds = random.integers(KINDS, size=(length, rows))
    place, row = np.nonzero(closing)
    kinds[place, row] = kinds[opener[place, row], row]
    first = random.integers(KINDS, size=(length, rows))
    second = np.where(closing, CLOSING, OPENING) + (kinds - first) % KINDS
    fate = random.integers(4, size=len(place))
    second[place[fate == 0], row[fate == 0]] = SMUDGED_CLOSING
    second[opener[place, row][fate == 1], row[fate == 1]] = SMUDGED_OPENING
    tokens = np.stack([first, second], axis=1).reshape(2 * length, rows)
    return Batch(tokens, np.repeat(kinds, 2, axis=0), mask=tokens >= SMUDGED_OPENING)


def _balanced(
    random: np.random.Generator, rows: int, length: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which brackets (length, B) close, and the place of the opening one of each of those."""
    coin = random.random((length, rows))
    stack = np.zeros((NESTED, rows), np.int64)  # the places of the open brackets
    opener = np.full((length, rows), -1)
    depth = np.zeros(rows, np.int64)
    every = np.arange(rows)
    for t in range(length):
        free = (depth < NESTED) & (depth < length - t)
        opens = free & ((depth == 0) | (coin[t] < 0.5))
        stack[depth[opens], every[opens]] = t
        depth += np.where(opens, 1, -1)
        opener[t, ~opens] = stack[depth[~opens], every[~opens]]
    return opener >= 0, opener


def learned(
    run: Run, cell: str, reads: str, layers: int, units: int, seed: int, steps: int, length: int
) -> tuple[int, dict[str, float]]:
    """Train one model; its number of parameters, and its errors in per cent.

    It is asked sequences of another stream of random numbers than those it is trained on.
    """
    model = _model(cell, reads, layers, units, seed)
    run.train(
        model,
        lambda random: draw(random, _BATCH, length),
        steps,
        rng=np.random.default_rng([seed, 0]),
        text=f"{cell}, {reads}, {layers} layers, seed {seed}",
        decay=0.5,
    )
    batch = draw(np.random.default_rng([seed, 1]), _ASKED, length)
    wrong = model.predict(batch.x).argmax(axis=-1) != batch.targets
    errors = {
        name: 100.0 * float(wrong[batch.x == token].mean()) for name, token in _ERRORS.items()
    }
    return num_parameters(model), errors


def measure(run: Run) -> Result:
    """Tell the kinds of smudged brackets with 1, 2 and 3 layers of as many parameters.

    Returns:
        Per cell, direction, number of layers and seed the share of wrong kinds in per cent, of the
        smudged closing brackets, which what came before decides, and of the smudged opening ones,
        which what comes after decides.

    """
    steps = run.pick(_STEPS, _QUICK_STEPS)
    about = run.pick(_PARAMETERS, _QUICK_PARAMETERS)
    length = run.pick(LENGTH, _QUICK_LENGTH)
    run.expect(len(run.seeds) * len(run.cells) * len(_READS) * len(_LAYERS) * steps)
    rows: list[dict[str, Any]] = []
    for cell in run.cells:
        for (reads, layers), units in units_of(cell, about).items():
            for seed in run.seeds:
                parameters, errors = learned(run, cell, reads, layers, units, seed, steps, length)
                case = {"cell": cell, "reads": reads, "layers": layers, "units": units}
                rows.append({**case, "parameters": parameters, "seed": seed, **errors})
    return Result(
        name="depth",
        title="smudged brackets whose kind is told wrongly, in %",
        settings={
            "kinds": KINDS,
            "brackets": length,
            "nested": NESTED,
            "parameters": about,
            "steps": steps,
            "batch": _BATCH,
            "lr": _LR,
            "asked sequences": _ASKED,
        },
        measures=dict.fromkeys(_ERRORS, ".0f"),
        rows=rows,
        notes=(
            "closing: what came before decides; opening: what comes after decides.",
            f"Who guesses is wrong in {100 - 100 // KINDS}%.",
        ),
    )


def figure(result: Result) -> Figure:
    """Error by layers, for what comes before and what comes after, forward and both ways."""
    drawn = new_figure(12, 3.8)
    cells = result.cells()
    labels = [CELLS[cell].label for cell in cells]
    panels = drawn.subplots(1, 4)
    cases = [(measure, reads) for measure in _ERRORS for reads in _READS]
    for axes, (measure, reads) in zip(panels, cases, strict=True):
        medians = [
            [
                spread(result.values(measure, cell=cell, reads=reads, layers=n)).median
                for n in _LAYERS
            ]
            for cell in cells
        ]
        rows = labels if axes is panels[0] else [""] * len(labels)
        guessing = 100.0 - 100.0 / KINDS
        draw_shares(axes, medians, rows, [str(n) for n in _LAYERS], chance=guessing, best=0.0)
        decides = "before" if measure == "closing" else "after"
        axes.set_title(f"what comes {decides} decides,\nreading {reads}", fontsize=10)
        axes.set_xlabel("layers")
    about = np.mean([row["parameters"] for row in result.rows])
    seeds = f", median of {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    drawn.suptitle(
        f"smudged brackets told wrongly, in %{seeds}; models of about {round(about, -2):,.0f} "
        f"parameters each; guessing has {100 - 100 // KINDS} (orange)"
    )
    return drawn


def _model(cell: str, reads: str, layers: int, units: int, seed: int) -> Model:
    return Model(
        cell,
        TOKENS,
        units,
        KINDS,
        lr=_LR,
        seed=seed,
        num_layers=layers,
        bidirectional=_READS[reads],
    )


def units_of(cell: str, about: int) -> dict[tuple[str, int], int]:
    """The hidden size of each direction and number of layers."""
    cases = [(reads, layers) for reads in _READS for layers in _LAYERS]
    counts = [functools.partial(_parameters, cell, *case) for case in cases]
    return dict(zip(cases, equal_units(counts, about), strict=True))


def _parameters(cell: str, reads: str, layers: int, units: int) -> int:
    return num_parameters(_model(cell, reads, layers, units, 0))


depth = Experiment(
    "depth", "one, two and three layers of the same number of parameters", measure, figure
)
