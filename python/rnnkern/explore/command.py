# SPDX-License-Identifier: Apache-2.0
"""``rnnkern explore NAME``: run a program, print its table, write its numbers and its picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rnnkern._checks import choice
from rnnkern.cells import CELLS
from rnnkern.explore import EXPERIMENTS
from rnnkern.explore.pictures import save_figure
from rnnkern.plot import require_matplotlib
from rnnkern.progress import Progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``rnnkern explore`` its options."""
    parser.description = (
        "Run a classic experiment; print its table and write DIR/NAME.json and .png."
    )
    parser.epilog = _listed()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", metavar="NAME", help="the program; none lists them")
    parser.add_argument("--list", action="store_true", help="list the programs")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first seed (%(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs, of seeds S and up (%(default)s)"
    )
    parser.add_argument(
        "--cell",
        action="append",
        choices=tuple(CELLS),
        help="a cell to run, may be repeated (those that the program is about)",
    )
    parser.add_argument("--quick", action="store_true", help="a run of seconds, less clear")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("explore"),
        metavar="DIR",
        help="where numbers and picture go (%(default)s)",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="also write what the table is made of, with commit, processor and versions",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    parser.set_defaults(run=_run)


def _listed() -> str:
    width = max(map(len, EXPERIMENTS))
    return "\n".join(
        ["programs:", *(f"  {name:{width}}  {e.summary}" for name, e in EXPERIMENTS.items())]
    )


def _run(options: argparse.Namespace) -> None:
    if options.list or options.name is None:
        print(_listed())
        return
    experiment = EXPERIMENTS[choice("NAME", options.name, tuple(EXPERIMENTS))]
    options.output.mkdir(
        parents=True, exist_ok=True
    )  # an error should come before the minutes of work
    with Progress() as progress:
        result = experiment(
            seed=options.seed,
            seeds=options.seeds,
            cells=options.cell,
            quick=options.quick,
            progress=progress,
        )
    print(result.table())
    numbers, picture = (options.output / f"{options.name}.{end}" for end in ("json", "png"))
    result.to_json(numbers)
    if options.record is not None:
        result.to_record(options.record)
    print(f"\nthe numbers are in {numbers}")
    try:
        require_matplotlib()
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return
    save_figure(experiment.figure(result), picture)
    print(f"the picture is in {picture}")
