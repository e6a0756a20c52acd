# SPDX-License-Identifier: Apache-2.0
"""Decoding against the product's own stream: ``python bench/decode.py [--json FILE]``.

``Seq2Seq.greedy`` and ``beam`` take turns with loops written by hand over ``decoder.stream().step``
and the head, of the same rows, in one process. A loop begins as decoding does, with a call of the
encoder and with weights packed anew; beam's does all that a search needs of the model, the state's
rows rearranged after every step, but no search. ``beam`` has WIDTH rows for each of the batch. No
row ends early. A build whose ``Linear`` cannot be frozen is measured too.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import rnnkern as rk
from rnnkern import record
from rnnkern.bench.report import table
from rnnkern.bench.timing import alternate

VOCABULARY, SOURCE, LENGTH, WIDTH = 256, 8, 32, 4
BOS = EOS = 0


def make_model(cell: str, hidden: int) -> rk.Seq2Seq:
    """A model that never ends an answer."""
    model = rk.Seq2Seq(VOCABULARY, VOCABULARY, hidden, cell=cell, bos=BOS, eos=EOS, seed=0)
    model.params["output.bias"][EOS] = -1e9
    return model


def greedy_by_hand(model: rk.Seq2Seq, source: Any) -> Any:
    """The likeliest tokens of every row."""
    _, state = model.encoder(source)
    stream = model.decoder.stream(source.shape[1])
    stream.state = state
    head = model.output.freeze() if hasattr(model.output, "freeze") else model.output
    token, tokens = np.full(source.shape[1], BOS), []
    for _ in range(LENGTH):
        token = head(stream.step(token)).argmax(axis=-1)
        tokens.append(token)
    return np.stack(tokens)


def steps_of_a_beam(model: rk.Seq2Seq, source: Any) -> None:
    """What a beam needs of the model."""
    _, state = model.encoder(source)
    rows = np.arange(source.shape[1] * WIDTH)
    stream = model.decoder.stream(len(rows))
    states = state if isinstance(state, tuple) else (state,)
    wide = tuple(np.repeat(s, WIDTH, axis=1) for s in states)
    stream.state = wide if len(wide) > 1 else wide[0]
    head = model.output.freeze() if hasattr(model.output, "freeze") else model.output
    token = np.full(len(rows), BOS)
    for _ in range(LENGTH):
        token = head(stream.step(token)).argmax(axis=-1)
        state = stream.state
        stream.state = tuple(s[:, rows] for s in state) if len(wide) > 1 else state[:, rows]


def measure(cell: str, hidden: int, batch: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of a whole answer, and how many times the loop's greedy and beam take."""
    model = make_model(cell, hidden)
    source = np.random.default_rng(0).integers(1, VOCABULARY, (SOURCE, batch))
    if not np.array_equal(model.greedy(source, None, LENGTH)[0], greedy_by_hand(model, source)):
        raise SystemExit(f"{cell}, H {hidden}, B {batch}: the loop's tokens are others")
    calls = {
        "greedy": partial(model.greedy, source, None, LENGTH),
        "greedy's loop": partial(greedy_by_hand, model, source),
        "beam": partial(model.beam, source, None, LENGTH, WIDTH),
        "beam's loop": partial(steps_of_a_beam, model, source),
    }
    times = {name: spread.median * 1e3 for name, spread in alternate(calls, seconds).items()}
    ratios = {name: times[name] / times[f"{name}'s loop"] for name in ("greedy", "beam")}
    return {"cell": cell, "hidden": hidden, "batch": batch, "ms": times, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.1, help="of measuring, a contender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rk.set_num_threads(options.threads)
    lines = []
    rows = []
    for cell in ("LSTM", "GRU"):
        for hidden in (64, 128, 256, 512):
            for batch in (1, 16):
                line = measure(cell, hidden, batch, options.seconds)
                lines.append(line)
                ms, ratios = line["ms"], line["ratios"]
                rows.append([cell, str(hidden), str(batch)])
                for search in ("greedy", "beam"):
                    rows[-1] += [f"{ms[search]:.2f} ms", f"{ratios[search]:.2f}"]
    header = ["cell", "H", "B", "greedy", "over the loop", "beam", "over the loop"]
    print(table(header, rows))
    if options.json is not None:
        parts = {
            "steps": LENGTH,
            "vocabulary": VOCABULARY,
            "decode": lines,
            "table": {"header": header, "rows": rows},
        }
        record.write(options.json, parts)


if __name__ == "__main__":
    main()
