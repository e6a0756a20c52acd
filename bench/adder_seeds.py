# SPDX-License-Identifier: Apache-2.0
"""How many of all its questions a trained adder answers right, over cells and seeds.

``python bench/adder_seeds.py --json FILE`` trains as ``rnnkern adder train`` does by default, asks
every pair there is, and writes each run to FILE as it ends. A run that FILE has is not done again,
so that a killed or longer series goes on; FILE holds a table of them, too.
``RNNKERN_ISA`` chooses the instruction set. A run follows from its settings and the instruction set
alone, whatever the threads and the load; its seconds do not. So the time of a step is measured by
itself, for a quiet machine: ``--pace SECONDS`` trains nothing, but takes steps of every model that
FILE has runs of, and of those that are asked for, in turns, for about so many seconds each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import rnnkern as rk
from rnnkern.adder import Adder, Settings, Training
from rnnkern.bench.timing import alternate
from rnnkern.cells import CELLS
from rnnkern.progress import Progress
from rnnkern.record import facts, write

_REPORT_EVERY = 100  # steps
_MOST_LAYERS = 4
_GOOD = 0.99  # of the held-out pairs that a report asks


def measure(settings: Settings) -> dict[str, Any]:
    """Train and ask everything."""
    training = Training(Adder(settings))
    began = time.perf_counter()
    with Progress() as progress:
        while training.fraction < 1.0:
            training.advance()
            training.seconds = time.perf_counter() - began
            progress.show(training.fraction, f"{settings.cell}, seed {settings.seed}")
            if training.step % _REPORT_EVERY == 0:
                training.report()
        training.report()
        trained, held_out = training.adder.evaluate_all(progress)
    good = [point for point in training.history if point[3] >= _GOOD]
    return {
        "cell": _name(settings),
        "seed": settings.seed,
        "layers": settings.layers,
        "parameters": rk.num_parameters(training.adder.model),
        "steps": training.step,
        "batch": settings.batch,
        "seconds": training.seconds,
        "good": {"steps": good[0][0], "seconds": good[0][1]} if good else None,
        "trained": {"right": trained.right, "total": trained.total},
        "held_out": {"right": held_out.right, "total": held_out.total},
        "wrong": (trained + held_out).wrong,
    }


def pace(models: list[Settings], seconds: float) -> dict[str, dict[str, float]]:
    """What a step of training takes, by name, all alternating; leaves one thread set."""
    rk.set_num_threads(1)
    steps = {_name(settings): Training(Adder(settings)).advance for settings in models}
    return {name: spread.describe() for name, spread in alternate(steps, seconds).items()}


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """A line for each model, as `rnnkern bench report` puts it into documents."""
    runs, paces = record["runs"], record.get("pace", {})
    header = ["cell", "parameters", "steps to 99%, by seed", "wrong of all", "without a mistake"]
    if paces:
        header.insert(2, "ms of a step")
    lines = []
    for settings in _models({run["cell"] for run in runs} | paces.keys()):
        name = _name(settings)
        of_model = [run for run in runs if run["cell"] == name]
        wrong = [
            sum(run[part]["total"] - run[part]["right"] for part in ("trained", "held_out"))
            for run in of_model
        ]
        steps = (f"{run['good']['steps']:.0f}" if run["good"] else "–" for run in of_model)
        line = [
            name,
            f"{rk.num_parameters(Adder(settings).model):,}",
            ", ".join(steps),
            ", ".join(f"{count:,}" for count in wrong),
            f"{wrong.count(0)} of {len(wrong)} seed{'s' * (len(wrong) > 1)}" if wrong else "",
        ]
        if paces:
            line.insert(2, f"{paces[name]['ms']:.1f}" if name in paces else "–")
        lines.append(line)
    return {"header": header, "rows": lines}


def _models(names: set[str]) -> list[Settings]:
    """Those of the names, in the order of their cells."""
    every = [
        Settings(cell=cell, layers=layers, attention=attention)
        for cell in CELLS
        for layers in range(1, _MOST_LAYERS + 1)
        for attention in (False, True)
    ]
    return [settings for settings in every if _name(settings) in names]


def _name(settings: Settings) -> str:
    """Of a row of the table."""
    stacked = f", {settings.layers} layers" if settings.layers > 1 else ""
    return f"{settings.cell}{stacked}{', attention' if settings.attention else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="all, unless given")
    parser.add_argument("--attention", action="store_true", help="let the decoder see it all")
    layers = range(1, _MOST_LAYERS + 1)
    parser.add_argument(
        "--layers", type=int, default=1, choices=layers, help="of the encoder, and the decoder"
    )
    parser.add_argument("--pace", type=float, metavar="SECONDS", help="measure steps alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args()
    rk.set_num_threads(options.threads)
    record: dict[str, Any] = {"facts": facts(), "runs": []}
    if options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))

    def asked(cell: str, seed: int = 0) -> Settings:
        return Settings(cell=cell, layers=options.layers, seed=seed, attention=options.attention)

    if options.pace is not None:
        names = {run["cell"] for run in record["runs"]}
        names |= {_name(asked(cell)) for cell in options.cell or ()}
        record["pace"] = pace(_models(names), options.pace)
        record["pace facts"] = facts()
        _write(options.json, record)
        return
    done = {(run["cell"], run["seed"]) for run in record["runs"]}
    for cell in options.cell or CELLS:
        for seed in range(options.seeds):
            settings = asked(cell, seed)
            if (_name(settings), seed) in done:
                continue
            run = measure(settings)
            record["runs"].append(run)
            _write(options.json, record)
            total = run["trained"]["total"] + run["held_out"]["total"]
            right = run["trained"]["right"] + run["held_out"]["right"]
            print(
                f"{run['cell']}, seed {seed}: {right:,} of {total:,}, {run['seconds']:.0f} s",
                flush=True,
            )


def _write(path: Path, record: dict[str, Any]) -> None:
    """With its table."""
    write(path, {**record, "table": summary(record)})


if __name__ == "__main__":
    main()
