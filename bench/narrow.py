# SPDX-License-Identifier: Apache-2.0
"""What narrower weights bring: a stream's step and a frozen layer's call, beside float32's.

    python bench/narrow.py [--threads N] [--hidden H ...] [--json FILE]

Prints float32's time, and how many times as fast the others are. I = H. A frozen layer has bfloat16
by its own compute, which rounds x and h too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern import record
from rnnkern.bench.report import duration
from rnnkern.bench.timing import Call, alternate

CELLS = {"LSTM": rk.LSTM, "GRU": rk.GRU}
HIDDEN = (128, 256, 512, 1024)
ROWS = (1, 16, 64)
_SECONDS = 0.3  # of every contender
_NARROW = ("bfloat16", "int8")


def _steps(cell: str, hidden: int) -> dict[str, Call]:
    """One step of one row, by the weights."""
    layer = CELLS[cell](hidden, hidden, seed=0)
    x = np.random.default_rng(0).standard_normal((1, hidden), np.float32)

    def step_of(weights: str | None) -> Call:
        stream, out = layer.stream(weights=weights), np.empty((1, hidden), np.float32)
        return lambda: stream.step(x, out)

    return {"float32": step_of(None), **{weights: step_of(weights) for weights in _NARROW}}


def _calls(cell: str, hidden: int, batch: int) -> dict[str, Call]:
    """A call of a frozen layer, likewise."""
    kind = CELLS[cell]
    steps = 100 if batch == 1 else 50
    x = np.random.default_rng(0).standard_normal((steps, batch, hidden), np.float32)
    frozen = {
        "float32": kind(hidden, hidden, seed=0).freeze(),
        "bfloat16": kind(hidden, hidden, compute="bfloat16", seed=0).freeze(),
        "int8": kind(hidden, hidden, seed=0).freeze(weights="int8"),
    }

    def call_of(layer: rk.Frozen) -> Call:
        return lambda: layer(x)

    return {name: call_of(layer) for name, layer in frozen.items()}


def measure(cell: str, hidden: int) -> list[dict[str, Any]]:
    """Milliseconds of a step, and of calls of several numbers of rows, by the weights."""
    works = {"step, B 1": _steps(cell, hidden)}
    works |= {f"frozen, B {batch}": _calls(cell, hidden, batch) for batch in ROWS}
    return [
        {
            "cell": cell,
            "hidden": hidden,
            "work": work,
            "times": {n: s.describe() for n, s in alternate(calls, _SECONDS).items()},
        }
        for work, calls in works.items()
    ]


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """float32's time, and the speed of bfloat16 / int8 as times of its."""
    works = list(dict.fromkeys(line["work"] for line in lines))
    rows = []
    for cell, hidden in dict.fromkeys((line["cell"], line["hidden"]) for line in lines):
        row = [cell, str(hidden)]
        for line in lines:
            if (line["cell"], line["hidden"]) == (cell, hidden):
                own = line["times"]["float32"]["ms"]
                gains = (f"{own / line['times'][name]['ms']:.2f}" for name in _NARROW)
                row.append(f"{duration(own / 1e3)}: {' / '.join(gains)}")
        rows.append(row)
    return {"header": ["cell", "I = H", *works], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, metavar="H")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rk.set_num_threads(options.threads)
    lines = [line for cell in CELLS for hidden in options.hidden for line in measure(cell, hidden)]
    made = table(lines)
    for row in (made["header"], *made["rows"]):
        print(" | ".join(row))
    if options.json is not None:
        record.write(options.json, {"narrow": lines, "table": made})


if __name__ == "__main__":
    main()
