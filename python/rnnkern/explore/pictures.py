# SPDX-License-Identifier: Apache-2.0
"""How the programs' pictures look."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rnnkern.cells import CELLS
from rnnkern.explore.result import Result
from rnnkern.plot import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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

_LOOKS = {
    "rnn": (BLACK, "o", "-"),
    "simplified-gru": (ORANGE, "^", "--"),
    "gru": (BLUE, "s", "-"),
    "gru-after": (SKY, "D", "-."),
    "lstm": (VERMILION, "v", "-"),
}
_FURTHER_LOOKS = ((GREEN, "P", "--"), (PURPLE, "X", "-."))  # of other cells in turn


def style_of(cell: str) -> Style:
    """The style of a cell of the registry."""
    look = _LOOKS.get(cell)
    if look is None:
        further = [name for name in CELLS if name not in _LOOKS]
        look = _FURTHER_LOOKS[further.index(cell) % len(_FURTHER_LOOKS)]
    return Style(CELLS[cell].label, *look)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches.

    Raises:
        ImportError: matplotlib is not installed; the message says what to install.

    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def told_of_bands(result: Result) -> str | None:
    """What lines and bands are, where there are several seeds: a title."""
    if len(result.seeds) == 1:
        return None
    return f"lines: median of {len(result.seeds)} seeds; bands: from the least to the greatest"


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
        cell: A name out of ``rnnkern.cells.CELLS``.
        x: (points,).
        by_seed: (seeds, points).
        label: In the legend; ``None`` is the cell's own.
        markers: Whether points are marked; leave it where they are many.
        line: The line's style, when it is not the cell's own.

    """
    style = style_of(cell)
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


def draw_shares(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    chance: float,
    best: float,
) -> None:
    """A table whose cells are coloured: nothing hides behind anything.

    Args:
        axes: Where.
        values: (rows, columns), in %, each written into its cell.
        rows: Their names.
        columns: Their names.
        chance: What is coloured as knowing nothing: orange.
        best: What is coloured as knowing all: blue.

    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    shades = LinearSegmentedColormap.from_list("shades", [ORANGE, "#F7F7F7", SKY])
    low, high = sorted((chance, best))
    norm = Normalize(low, high, clip=True)
    table = np.asarray(values, float)
    axes.imshow(
        table, cmap=shades if chance < best else shades.reversed(), norm=norm, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(table):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
