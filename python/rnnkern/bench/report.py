# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, which a terminal shows as well, and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Line = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with its columns in line."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def duration(seconds: float) -> str:
    """With three digits and its unit."""
    scale, unit = next((u for u in ((1.0, "s"), (1e-3, "ms")) if seconds >= u[0]), (1e-6, "µs"))
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def best_ratio(line: Line) -> float | None:
    """How many times faster than the fastest peer; None without a peer."""
    return min(line["ratios"].values(), default=None)


def ratio_text(line: Line) -> str:
    """Over the fastest peer; with ≈ where the quartiles of its times and of ours overlap."""
    if not line["ratios"]:
        return "–"
    peer = min(line["ratios"], key=line["ratios"].__getitem__)
    ours, theirs = line["results"]["rnnkern"], line["results"][peer]
    overlap = ours["low_ms"] <= theirs["high_ms"] and theirs["low_ms"] <= ours["high_ms"]
    return f"{'≈' if overlap else ''}{line['ratios'][peer]:.2f}"


def geometric_means(lines: Sequence[Line]) -> str:
    """Over the fastest peer, of the float32 problems of whole batches that have a peer, in words.

    Inference and training, one row and several, stand apart.
    """
    texts = []
    for training in (False, True):
        for rows, several in (("B = 1", False), ("B > 1", True)):
            ratios = [
                ratio
                for line in lines
                if not line["ragged"] and line["dtype"] == "float32" and line["compute"] is None
                if line["training"] == training and (line["batch"] > 1) == several
                if (ratio := best_ratio(line)) is not None
            ]
            if ratios:
                mean = statistics.geometric_mean(ratios)
                texts.append(f"{'training' if training else 'inference'} {rows} {mean:.2f}")
    return ", ".join(texts)


# -- the layers ---------------------------------------------------------------------------------


def layer_row(line: Line) -> list[str]:
    """One problem in full; under ``LAYER_HEADER``."""
    ours = line["results"]["rnnkern"]
    floor, share = line["over_floor"], ours["of_peak"]
    return [
        line["cell"],
        f"{line['batch']}, {line['steps']}, {line['hidden']}",
        line["work"],
        duration(ours["ms"] / 1e3),
        f"{(ours['high_ms'] - ours['low_ms']) / ours['ms']:.0%}",
        f"{ours['gflops']:.1f}",
        "" if share is None else f"{share:.0%}",
        "" if floor is None else f"{floor:.2f}",
        ", ".join(f"{name} {ratio:.2f}" for name, ratio in line["ratios"].items()) or "no peer",
    ]


LAYER_HEADER = (
    "cell",
    "B, T, H",
    "work",
    "time",
    "spread",
    "GF/s",
    "of peak",
    "over floor",
    "times faster than",
)


def layer_tables(lines: Sequence[Line]) -> str:
    """Against the fastest peer, one row a shape, one column a cell: inference / training."""
    cells = list(dict.fromkeys(line["cell"] for line in lines))
    shapes: dict[tuple[str, ...], dict[str, dict[bool, Line]]] = {}
    for line in lines:
        kind = ", ".join(line["work"].split(", ")[1:])
        key = (f"{line['batch']}, {line['steps']}, {line['hidden']}", kind)
        shapes.setdefault(key, {}).setdefault(line["cell"], {})[line["training"]] = line

    def entry(pair: dict[bool, Line]) -> str:
        texts = [ratio_text(pair[k]) if k in pair else "–" for k in (False, True)]
        return " / ".join(texts) if pair else ""

    order = sorted(shapes, key=lambda key: key[1] != "")  # the plain ones first
    rows = [[*key, *(entry(shapes[key].get(cell, {})) for cell in cells)] for key in order]
    return table(["B, T, H", "kind", *cells], rows)


def _plain_numbers(axes: Any) -> None:
    """Along both logarithmic axes, at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def ratio_figure(lines: Sequence[Line]) -> Any:
    """Times faster than the fastest peer, by shape, a panel a kind of work."""
    from matplotlib.figure import Figure

    plain = [line for line in lines if line["work"] in ("infer", "train")]
    sizes = list(dict.fromkeys((line["batch"], line["steps"], line["hidden"]) for line in plain))
    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, training in zip(figure.subplots(2, 1, sharex=True), (False, True), strict=True):
        for cell in dict.fromkeys(line["cell"] for line in plain):
            points = [
                (sizes.index((line["batch"], line["steps"], line["hidden"])), ratio)
                for line in plain
                if line["cell"] == cell and line["training"] == training
                if (ratio := best_ratio(line)) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=cell)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.set_ylabel(
            f"{'training' if training else 'inference'}:\ntimes the fastest peer's speed"
        )
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    axes.set_xticks(range(len(sizes)), [", ".join(map(str, size)) for size in sizes], rotation=20)
    axes.set_xlabel("B, T, H")
    return figure


def roofline_figure(lines: Sequence[Line], peak: float, bandwidth: Callable[[int], float]) -> Any:
    """Speed over the flops that a step has for each byte of recurrent weights, with the roofs.

    Args:
        lines: The layers' measurements; the plain ones of cells with a recurrent matrix are drawn.
        peak: Flops a second of the product.
        bandwidth: Bytes a second by the size of the set that is read.

    """
    from matplotlib.figure import Figure

    plain = [line for line in lines if line["work"] in ("infer", "train") and line["intensity"]]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for training, marker in ((False, "o"), (True, "^")):
        for index, cell in enumerate(dict.fromkeys(line["cell"] for line in plain)):
            kind = "train" if training else "infer"
            points = [
                (line["intensity"], line["results"]["rnnkern"]["gflops"])
                for line in plain
                if line["cell"] == cell and line["training"] == training
            ]
            if points:
                x, y = zip(*points, strict=True)
                axes.scatter(x, y, marker=marker, color=f"C{index}", label=f"{cell}, {kind}")
    reach = np.geomspace(0.4, max([line["intensity"] for line in plain], default=1.0) * 2, 50)
    axes.plot(reach, np.full_like(reach, peak / 1e9), color="black", label="product's peak")
    for size, name in ((1 << 18, "256 KiB"), (1 << 20, "1 MiB"), (1 << 24, "16 MiB")):
        speed = bandwidth(size) / 1e9
        roof = np.minimum(reach * speed, peak / 1e9)
        axes.plot(reach, roof, linestyle=":", label=f"reading {name} again: {speed:.0f} GB/s")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("useful flops for a byte of recurrent weights, each read once a step")
    axes.set_ylabel("GF/s")
    _plain_numbers(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return figure


def cost_figure(lines: Sequence[Line]) -> Any:
    """Time of a training step over its flops, as T, B and H are doubled in turn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, what in zip(panels, ("steps", "batch", "hidden"), strict=True):
        for cell in dict.fromkeys(line["cell"] for line in lines):
            chosen = [line for line in lines if (line["cell"], line["doubled"]) == (cell, what)]
            flops = np.array([line["flops"] / 1e9 for line in chosen])
            times = np.array([line["ms"] for line in chosen])
            axes.loglog(flops, times, marker="o", label=cell)
            axes.loglog(flops, times[0] * flops / flops[0], linestyle=":", color="black")
        axes.set_title({"steps": "T", "batch": "B", "hidden": "H"}[what] + " doubled")
        axes.set_xlabel("thousand million flops")
        _plain_numbers(axes)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("time of a training step (ms)\ndotted: in proportion to the flops")
    panels[0].legend()
    return figure
