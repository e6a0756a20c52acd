# SPDX-License-Identifier: Apache-2.0
"""How far back the loss's gradient reaches, and which way it takes through a cell.

Vanishing and exploding gradients: Hochreiter 1991; Bengio, Simard & Frasconi 1994.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.cells import CELLS, LSTM, RNN
from rnnkern.explore.adding import marked_numbers
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.pictures import COLORS, draw_cell, new_figure, told_of_bands
from rnnkern.explore.result import Result
from rnnkern.explore.run import Experiment, Run
from rnnkern.explore.ways import way_of
from rnnkern.layers.base import Recurrent
from rnnkern.layers.gradients import StateGradients
from rnnkern.layers.tape import Tape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LENGTH = 101  # so that there is a distance of 100
_DISTANCES = (10, 50, 100)
_RADII = (0.8, 1.0, 1.2)  # of the simple RNN's W_hh; the others' are 1
_HIDDEN, _BATCH = 32, 32
_LR, _STEPS, _QUICK_STEPS = 0.01, 800, 60
_LEAST = 1e-14  # norms below are drawn as this: a logarithmic axis has no 0

PATHS = ("direct", "n", "h", "u", "r", "f", "o")
_PATH_LABELS = {
    "direct": "direct: (1 - u)·h or f·c",
    "n": "candidate n",
    "h": "h (simple RNN)",
    "u": "update gate u",
    "r": "reset gate r",
    "f": "forget gate f",
    "o": "output gate o",
}


def knows_paths(layer: Recurrent) -> bool:
    """Whether the program can tell the paths of a layer's cell."""
    return way_of(layer) is not None


def paths_to_h(layer: Recurrent, tape: Tape, traced: StateGradients) -> dict[str, Array]:
    """What each path brings to ∂L/∂h_{t-1} from step t, t = 1..T-1: arrays (T - 1, B, H).

    ``direct`` is the way around all products, and each other path is the recurrent product of that
    gate. They sum to ∂L/∂h_{t-1} wherever the loss does not look at h_{t-1} itself. One layer, one
    direction. Nothing for a cell whose ways are not known here.
    """
    way, gates = way_of(layer), tape.gates()[0]
    if way is None:
        return {}
    blocks = np.split(layer.params["weight_hh_l0"], len(layer.gates))
    parts = {}
    for name, block in zip(layer.gates, blocks, strict=True):
        gradient = traced.gates[name][1:]
        if name != "n" or way.reset is None:
            parts[name] = gradient @ block
        elif way.after:
            parts[name] = (gates[way.reset][1:] * gradient) @ block
        else:
            parts[name] = gates[way.reset][1:] * (gradient @ block)
    if way.writes is not None and way.keeps:
        parts["direct"] = (1.0 - gates[way.writes][1:]) * traced.h[1:]
    return parts


def shares(layer: Recurrent, tape: Tape, traced: StateGradients) -> dict[str, Array]:
    """Each path's share of the norms of all paths' parts, (T - 1,), mean over the batch.

    An LSTM's direct path is f_t·∂L/∂c_t, weighed against the rest of ∂L/∂c_{t-1}, which came by
    h_{t-1} and is divided among the gates as ∂L/∂h_{t-1} is.
    """
    norms = {name: _norms(part) for name, part in paths_to_h(layer, tape, traced).items()}
    total = np.sum(list(norms.values()), axis=0)
    found = {name: _ratio(norm, total) for name, norm in norms.items()}
    if isinstance(layer, LSTM):
        assert traced.c is not None
        direct = tape.gates()[0]["f"][1:] * traced.c[1:]
        around, rest = _norms(direct), _norms(traced.c[:-1] - direct)
        kept = _ratio(around, around + rest)
        found = {"direct": kept, **{name: (1.0 - kept) * part for name, part in found.items()}}
    return {name: part.mean(axis=1) for name, part in found.items()}


def _norms(array: Array) -> Array:
    """Over the units: (T, B)."""
    norms: Array = np.linalg.norm(array, axis=-1)
    return norms


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0)


def measure(run: Run) -> Result:
    """‖∂L/∂h_t‖, or of an LSTM ‖∂L/∂c_t‖, against T - t, before and after training."""
    steps = run.pick(_STEPS, _QUICK_STEPS)
    cases = [(cell, radius) for cell in run.cells for radius in _radii(cell)]
    run.expect(len(run.seeds) * len(cases) * steps)
    rows, curves = [], []
    for cell, radius in cases:
        for seed in run.seeds:
            model = _model(cell, radius, seed)
            batch = _draw(np.random.default_rng([seed, 1]))
            for state in ("initial", "trained"):
                if state == "trained":
                    text = f"{cell}, spectral radius {radius}, seed {seed}"
                    rng = np.random.default_rng([seed, 0])
                    run.train(model, _draw, steps, rng=rng, text=text, decay=0.3)
                case = {"cell": cell, "radius": radius, "state": state, "seed": seed}
                curve = _look(model, batch)
                rows.append({**case, **_measures(curve)})
                curves.append({**case, **curve})
    return Result(
        name="gradients",
        title="Norm of the loss's gradient in h_t, in c_t where there is one, over that at the end",
        settings={
            "T": _LENGTH,
            "hidden": _HIDDEN,
            "batch": _BATCH,
            "lr": _LR,
            "steps": steps,
        },
        measures={**{f"T-t = {d}": ".1e" for d in _DISTANCES}, "direct": ".0%", "loss": ".3f"},
        rows=rows,
        curves=curves,
        notes=(
            "direct: the share that passes around all recurrent products, mean over the steps.",
            "radius: of W_hh, orthogonal matrices times this. Gates start so that units keep their "
            f"state over 1 to {_LENGTH - 1} steps.",
            "loss: of the adding problem, on which they are trained; a guess of 1 has 0.167.",
        ),
    )


def _draw(rng: np.random.Generator) -> Batch:
    """Sums of marked numbers, in float64: a small gradient is not to be lost to float32."""
    batch = marked_numbers(rng, _BATCH, _LENGTH)
    return Batch(batch.x.astype(np.float64), batch.targets.astype(np.float64))


def _radii(cell: str) -> tuple[float, ...]:
    return _RADII if issubclass(CELLS[cell].layer, RNN) else (1.0,)


def _model(cell: str, radius: float, seed: int) -> Model:
    model = Model(
        cell,
        2,
        _HIDDEN,
        1,
        readout="last",
        loss="mse",
        lr=_LR,
        seed=seed,
        dtype="float64",
        recurrent_init="orthogonal",
        memory=_LENGTH,
    )
    if "recurrent.weight_hh_l0" in model.params:
        model.params["recurrent.weight_hh_l0"] *= radius
    return model


def _look(model: Model, batch: Batch) -> dict[str, Any]:
    """What a batch's backward pass shows: lists by distance 0, 1, 2, ..., and the loss."""
    tape, (traced,) = model.trace(batch)
    by_distance = _norms(traced.h if traced.c is None else traced.c).mean(axis=1)[::-1]
    return {
        "norm": (by_distance / by_distance[0]).tolist(),
        "shares": {
            name: share[::-1].tolist()
            for name, share in shares(model.recurrent, tape, traced).items()
        },
        "loss": model.loss_of(batch),
    }


def _measures(curve: dict[str, Any]) -> dict[str, float | None]:
    return {
        **{f"T-t = {d}": curve["norm"][d] for d in _DISTANCES},
        "direct": _mean_direct(curve["shares"]),
        "loss": curve["loss"],
    }


def _mean_direct(shares: dict[str, list[float]]) -> float | None:
    """0 for a cell without a direct path, None where the paths are not known."""
    return float(np.mean(shares.get("direct", 0.0))) if shares else None


def figure(result: Result) -> Figure:
    """Above, norms against the distance, initial and trained; below, the shares of the paths."""
    drawn = new_figure(10.0, 8.0)
    (initial, trained), (first, last) = drawn.subplots(2, 2)
    for axes, state, words in (
        (initial, "initial", "at initialisation"),
        (trained, "trained", "after training on the adding problem"),
    ):
        _draw_norms(axes, result, state)
        axes.set_title(words)
    initial.sharey(trained)
    initial.set_ylim(bottom=_LEAST)
    drawn.legend(
        *initial.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=4,
        title=told_of_bands(result),
    )
    for axes, state in ((first, "initial"), (last, "trained")):
        _draw_shares(axes, result, state)
    drawn.legend(
        *_all_handles(first, last), loc="outside lower center", ncols=4, title="path of the share"
    )
    return drawn


def _draw_norms(axes: Axes, result: Result, state: str) -> None:
    lines = {0.8: ":", 1.0: "-", 1.2: "--"}
    for cell in result.cells():
        radii = sorted({c["radius"] for c in result.pick(cell=cell)})
        for radius in radii:
            curves = result.pick(cell=cell, radius=radius, state=state)
            label = CELLS[cell].label
            if len(radii) > 1:
                label += f", radius {radius:g}"
            line = lines[radius] if len(radii) > 1 else None
            norms = np.maximum([c["norm"] for c in curves], _LEAST)
            x = list(range(norms.shape[1]))
            draw_cell(axes, cell, x, norms.tolist(), label=label, markers=False, line=line)
    axes.set_yscale("log")
    axes.axhline(1.0, color="0.4", linewidth=0.8)
    axes.text(1.0, 1.3, "as large as at the end", fontsize=8, color="0.3")
    axes.set_xlabel("distance T - t (steps)")
    axes.set_ylabel("norm of the gradient in h$_t$ (LSTM: c$_t$),\nover that at the end")
    axes.grid(alpha=0.3)


def _draw_shares(axes: Axes, result: Result, state: str) -> None:
    cells = result.cells()
    for column, cell in enumerate(cells):
        curves = result.pick(cell=cell, radius=1.0, state=state)
        if not any(c["shares"] for c in curves):
            axes.text(column, 50.0, "paths not known", rotation=90, ha="center", va="center")
        bottom = 0.0
        for k, name in enumerate(PATHS):
            found = [c["shares"][name] for c in curves if name in c["shares"]]
            if found:
                height = 100.0 * float(np.mean(found))
                axes.bar(
                    column,
                    height,
                    bottom=bottom,
                    label=_PATH_LABELS[name],
                    color=COLORS[k],
                    edgecolor="white",
                    hatch=_HATCHES[k],
                )
                bottom += height
    axes.set_xticks(range(len(cells)), [CELLS[cell].label.replace(" ", "\n") for cell in cells])
    axes.set_ylabel("share of the gradient's norm (%)")


_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++")


def _all_handles(*several: Axes) -> tuple[list[Any], list[str]]:
    """A legend's entries, each label once."""
    found: dict[str, Any] = {}
    for axes in several:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


gradients = Experiment(
    "gradients",
    "gradients that vanish or explode with the distance, and the paths they take",
    measure,
    figure,
)
