# SPDX-License-Identifier: Apache-2.0
"""A layer under JAX's jit, held against the loop that JAX's users write (lax.scan).

``python bench/jax_calls.py --json FILE``: both are compiled before, run one after the other in one
process, and their answers and gradients compared. JAX computes with all of the processor's cores,
and so does rnnkern.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rnnkern as rk
from rnnkern import record
from rnnkern.bench.jax_peer import scanned
from rnnkern.bench.timing import Call, alternate
from rnnkern.jax import functional

_SIZES = ((1, 1, 16), (1, 100, 64), (16, 50, 128), (32, 50, 256), (64, 25, 512))
_SECONDS = 0.75  # of every contender


def measure(cell: str, batch: int, steps: int, hidden: int) -> dict[str, Any]:
    layer = (
        rk.LSTM(hidden, hidden, seed=0)
        if cell == "lstm"
        else rk.GRU(hidden, hidden, reset="after", seed=0)
    )
    apply, params = functional(layer)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((steps, batch, hidden), np.float32))
    contenders = {
        "rnnkern": lambda p, x: apply(p, x)[0],
        "scan": scanned("lstm" if cell == "lstm" else "gru-after"),
    }
    works: dict[str, dict[str, Call]] = {"infer": {}, "train": {}}
    for name, function in contenders.items():
        infer = jax.jit(function)
        train = jax.jit(jax.grad(lambda p, x, f=function: jnp.square(f(p, x)).mean(), (0, 1)))
        for work, call in (("infer", infer), ("train", train)):
            works[work][name] = lambda f=call: jax.block_until_ready(f(params, x))  # type: ignore[misc]
    line: dict[str, Any] = {"cell": cell, "batch": batch, "steps": steps, "hidden": hidden}
    for work, named in works.items():
        ours, theirs = (jax.tree.leaves(named[name]()) for name in contenders)
        for a, b in zip(ours, theirs, strict=True):
            scale = float(jnp.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale)
        line[work] = {n: s.describe() for n, s in alternate(named, _SECONDS).items()}
    return line


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    header = ["cell", "B, T, H", "inference", "over scan's", "with gradients", "over scan's"]
    rows = []
    for line in lines:
        row = [line["cell"], f"{line['batch']}, {line['steps']}, {line['hidden']}"]
        for work in ("infer", "train"):
            ours, theirs = (line[work][name]["ms"] for name in ("rnnkern", "scan"))
            row += [f"{ours:.3f} ms", f"{theirs / ours:.1f}"]
        rows.append(row)
    return {"header": header, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    lines = []
    for cell in ("lstm", "gru-after"):
        for batch, steps, hidden in _SIZES:
            lines.append(measure(cell, batch, steps, hidden))
            print(" | ".join(table(lines)["rows"][-1]), flush=True)
    if options.json is not None:
        facts = record.facts() | {"jax": jax.__version__}
        record.write(options.json, {"facts": facts, "jax": lines, "table": table(lines)})


if __name__ == "__main__":
    main()
