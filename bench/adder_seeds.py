# SPDX-License-Identifier: Apache-2.0
"""How many of all its questions a trained adder answers right, over cells and seeds.

``python bench/adder_seeds.py --json FILE`` trains as ``rnnkern adder train`` does by default, asks
every pair there is, and writes each run to FILE as it ends. A run that FILE has is not done again,
so that a killed or longer series goes on; FILE holds a table of them, too.
``RNNKERN_ISA`` chooses the instruction set. A run follows from its settings and the instruction set
alone, whatever the threads and the load; its seconds do not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import rnnkern as rk
from rnnkern.adder import Adder, Settings, Training
from rnnkern.cells import CELLS
from rnnkern.progress import Progress
from rnnkern.record import facts

_REPORT_EVERY = 100  # steps
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
        "cell": _name(settings.cell, settings.attention),
        "seed": settings.seed,
        "parameters": sum(p.size for p in training.adder.model.params.values()),
        "steps": training.step,
        "batch": settings.batch,
        "seconds": training.seconds,
        "good": {"steps": good[0][0], "seconds": good[0][1]} if good else None,
        "trained": {"right": trained.right, "total": trained.total},
        "held_out": {"right": held_out.right, "total": held_out.total},
        "wrong": (trained + held_out).wrong,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A line for each cell, as `rnnkern bench report` puts it into documents."""
    header = ["cell", "parameters", "steps to 99%, by seed", "wrong of all", "without a mistake"]
    lines = []
    for cell in [_name(cell, attention) for cell in CELLS for attention in (False, True)]:
        of_cell = [run for run in runs if run["cell"] == cell]
        if not of_cell:
            continue
        wrong = [
            sum(run[part]["total"] - run[part]["right"] for part in ("trained", "held_out"))
            for run in of_cell
        ]
        steps = (f"{run['good']['steps']:.0f}" if run["good"] else "–" for run in of_cell)
        lines.append(
            [
                cell,
                f"{of_cell[0]['parameters']:,}",
                ", ".join(steps),
                ", ".join(map(str, wrong)),
                f"{wrong.count(0)} of {len(of_cell)} seeds",
            ]
        )
    return {"header": header, "rows": lines}


def _name(cell: str, attention: bool) -> str:
    """Of a row of the table."""
    return f"{cell}, attention" if attention else cell


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", action="append", choices=list(CELLS), help="all, unless given")
    parser.add_argument("--attention", action="store_true", help="let the decoder see it all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    options = parser.parse_args()
    rk.set_num_threads(options.threads)
    record: dict[str, Any] = {"facts": facts(), "runs": []}
    if options.json.exists():
        record = json.loads(options.json.read_text(encoding="utf-8"))
    done = {(run["cell"], run["seed"]) for run in record["runs"]}
    for cell in options.cell or CELLS:
        for seed in range(options.seeds):
            if (_name(cell, options.attention), seed) in done:
                continue
            run = measure(Settings(cell=cell, seed=seed, attention=options.attention))
            record["runs"].append(run)
            record["table"] = summary(record["runs"])
            options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            total = run["trained"]["total"] + run["held_out"]["total"]
            right = run["trained"]["right"] + run["held_out"]["right"]
            print(
                f"{run['cell']}, seed {seed}: {right:,} of {total:,}, {run['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
