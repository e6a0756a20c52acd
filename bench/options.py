# SPDX-License-Identifier: Apache-2.0
"""What options of layers cost: each beside the plain LSTM, alternating with it in one process.

    python bench/options.py [--threads N] [--only NAME ...] [--json FILE]

Prints how many times as long a call takes with the option: inference / training with the backward
pass. Options are in OPTIONS; a new one is an entry there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern import record
from rnnkern.bench.timing import Call, alternate

STEPS = 128
SIZES = tuple((batch, hidden) for hidden in (128, 256) for batch in (1, 16, 64))
WORKS = ("infer", "train")
_SECONDS = 0.3  # of every contender


_KEY = {"dropout_key": 0}


def _nothing(random: np.random.Generator, batch: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Option:
    """What is asked of the layer's class, of each call, and of forward alone."""

    layer: dict[str, Any] = field(default_factory=dict)
    call: Callable[[np.random.Generator, int], dict[str, Any]] = _nothing
    forward: dict[str, Any] = field(default_factory=dict)


def _resets(share: float) -> Option:
    def call(random: np.random.Generator, batch: int) -> dict[str, Any]:
        return {"resets": random.random((STEPS, batch)) < share}

    return Option(call=call)


def _segments(random: np.random.Generator, batch: int) -> dict[str, Any]:
    """Sequences of 8 to 32 steps, one behind the other."""
    rows = [np.repeat(np.arange(STEPS), random.integers(8, 33, STEPS)) for _ in range(batch)]
    return {"segments": np.stack([row[:STEPS] for row in rows], axis=1)}


def _left(random: np.random.Generator, batch: int) -> dict[str, Any]:
    """Padding on the left, of up to a quarter."""
    return {"mask": np.arange(STEPS)[:, None] >= random.integers(0, STEPS // 4 + 1, batch)}


OPTIONS = {
    "resets at no step": _resets(0.0),
    "resets at 1% of the steps": _resets(0.01),
    "resets at 5% of the steps": _resets(0.05),
    "resets at 20% of the steps": _resets(0.2),
    "segments of 8 to 32 steps": Option(call=_segments),
    "mask, up to a quarter on the left": Option(call=_left),
    "tbptt=32": Option(forward={"tbptt": 32}),
    "recompute=32": Option(forward={"recompute": 32}),
    "reverse": Option({"reverse": True}),
    "bidirectional": Option({"bidirectional": True}),
    "LSTM, proj_size=32": Option({"proj_size": 32}),
    "LSTM, proj_size=64": Option({"proj_size": 64}),
    **{
        f"bidirectional, merge={merge}": Option({"bidirectional": True, "merge": merge})
        for merge in ("sum", "average", "product")
    },
    "peepholes": Option({"peepholes": True}),
    "layer_norm": Option({"layer_norm": True}),
    "coupled": Option({"coupled": True}),
    "clip": Option({"clip": 3.0}),
    "cell_clip": Option({"cell_clip": 3.0}),
    "hard_sigmoid gates": Option({"recurrent_activation": "hard_sigmoid"}),
    "softsign in place of tanh": Option({"activation": "softsign"}),
    "relu in place of tanh": Option({"activation": "relu", "output_activation": "tanh"}),
    "recurrent_dropout=0.3": Option({"recurrent_dropout": 0.3}, forward=_KEY),
    "zoneout=0.1": Option({"zoneout": 0.1}, forward=_KEY),
    "zoneout=0.1, cell_zoneout=0.5": Option({"zoneout": 0.1, "cell_zoneout": 0.5}, forward=_KEY),
    "weight_drop=0.3": Option({"weight_drop": 0.3}, forward=_KEY),
}


def _works(option: Option, batch: int, hidden: int) -> dict[str, Call]:
    """An inference and a step of training without the optimizer."""
    random = np.random.default_rng(0)
    layer = rk.LSTM(hidden, hidden, seed=0, **option.layer)
    x = random.standard_normal((STEPS, batch, hidden), np.float32)
    given = option.call(random, batch)
    dy = np.ones((STEPS, batch, layer.output_size), np.float32)

    def train() -> object:
        return layer.forward(x, **given, **option.forward)[2].backward(dy)

    return {"infer": lambda: layer(x, **given), "train": train}


def measure(names: list[str], batch: int, hidden: int) -> dict[str, Any]:
    """Milliseconds of the plain layer and of each option, by work."""
    works = {name: _works(OPTIONS.get(name, Option()), batch, hidden) for name in ("plain", *names)}
    line: dict[str, Any] = {"batch": batch, "steps": STEPS, "hidden": hidden}
    for work in WORKS:
        calls = {name: own[work] for name, own in works.items()}
        line[work] = {n: s.describe() for n, s in alternate(calls, _SECONDS).items()}
    return line


def table(lines: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Times of the plain layer's: inference / training."""
    rows = []
    for name in names:
        row = [name]
        for line in lines:
            ratios = (line[work][name]["ms"] / line[work]["plain"]["ms"] for work in WORKS)
            row.append(" / ".join(f"{ratio:.2f}" for ratio in ratios))
        rows.append(row)
    header = ["option", *(f"B {line['batch']}, H {line['hidden']}" for line in lines)]
    return {"header": header, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rk.set_num_threads(options.threads)
    lines = [measure(options.only, batch, hidden) for batch, hidden in SIZES]
    made = table(lines, options.only)
    for row in (made["header"], *made["rows"]):
        print(" | ".join(row))
    if options.json is not None:
        record.write(options.json, {"options": lines, "table": made})


if __name__ == "__main__":
    main()
