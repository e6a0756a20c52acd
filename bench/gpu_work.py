# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu measures and what must be reached: numbers and names alone, no GPU needed.

bench/gpu reads this before the package is installed: only what lists works asks for the cells.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

Record = dict[str, Any]

HALVES = ("float16", "bfloat16")
COMPUTES = (*HALVES, "tfloat32", "float32")
FEW_INPUTS = 8  # so few that the input's product does not count


def gates() -> dict[str, int]:
    """How many a cell has, for all cells that a GPU has: those with a recurrent product."""
    from rnnkern.cells import CELLS

    return {
        name: len(cell.layer.gates) for name, cell in CELLS.items() if cell.facts.recurrent_product
    }


@dataclass(frozen=True)
class Work:
    """A layer, or several, forward or forward and backward."""

    part: str
    cell: str
    hidden: int
    batch: int
    steps: int
    compute: str
    training: bool
    inputs: int
    layers: int = 1
    directions: int = 1
    ragged: bool = False

    @property
    def key(self) -> str:
        """The same for the same work, in whatever part it comes."""
        return (
            f"{self.cell} H{self.hidden} B{self.batch} T{self.steps} I{self.inputs} "
            f"L{self.layers} D{self.directions} {self.compute}"
            f"{' ragged' if self.ragged else ''} {'train' if self.training else 'infer'}"
        )

    @property
    def flops(self) -> float:
        """Useful ones of the products, all rows of full length: backward is twice forward."""
        above = self.hidden * self.directions * (self.layers - 1)
        columns = self.inputs + above + self.hidden * self.layers
        forward = 2.0 * gates()[self.cell] * self.hidden * columns * self.batch * self.steps
        return forward * self.directions * (3 if self.training else 1)


def ratios() -> Iterator[Work]:
    """Some rows for every line of the table of required ratios, the most telling first."""

    def work(
        cell: str, hidden: int, batch: int, steps: int, compute: str, *, training: bool
    ) -> Work:
        return Work("ratios", cell, hidden, batch, steps, compute, training, hidden)

    for training in (False, True):
        yield work("lstm", 768, 16, 1024, "float16", training=training)
    for cell in ("gru-after", "gru"):
        yield work(cell, 512, 32, 256, "float16", training=True)
    yield work("lstm", 512, 32, 256, "bfloat16", training=True)
    yield replace(work("lstm", 512, 32, 256, "float16", training=True), layers=2, directions=2)
    yield work("lstm", 512, 32, 256, "float32", training=True)
    yield replace(work("lstm", 256, 64, 512, "float16", training=True), ragged=True)
    yield work("lstm", 1024, 64, 128, "float16", training=True)
    yield work("lstm", 256, 1, 512, "float16", training=False)
    for training in (False, True):
        yield work("lstm", 768, 16, 1024, "bfloat16", training=training)
    for cell, training in product(("gru-after", "gru"), (False, True)):
        yield work(cell, 1024, 64, 128, "float16", training=training)
        yield work(cell, 256, 16, 512, "bfloat16", training=training)
    for layers, directions in ((2, 1), (4, 1), (1, 2)):
        deep = work("lstm", 256, 32, 256, "float16", training=True)
        yield replace(deep, layers=layers, directions=directions)
    for cell, hidden in (("lstm", 512), ("gru-after", 512), ("rnn", 1024)):
        yield work(cell, hidden, 32, 256, "float32", training=False)
    yield replace(work("gru-after", 1024, 64, 128, "float16", training=True), ragged=True)


def flashrnn() -> Iterator[Work]:
    """The point of FlashRNN's plots, with and without the input's product."""
    for inputs, compute, training in product((FEW_INPUTS, 768), COMPUTES, (False, True)):
        yield Work("flashrnn", "lstm", 768, 16, 1024, compute, training, inputs)


def required() -> Iterator[Work]:
    """Rows for every line of the table of required ratios."""
    for hidden, cell, batch in product((256, 512, 1024), ("gru-after", "gru"), (16, 64)):
        for compute, training in product(HALVES, (False, True)):
            yield Work("required", cell, hidden, batch, 512, compute, training, hidden)
    for hidden, batch, training in product((256, 512, 1024), (16, 64), (False, True)):
        yield Work("required", "lstm", hidden, batch, 512, "bfloat16", training, hidden)
    for cell, hidden, training in product(("lstm", "gru-after", "rnn"), (256, 1024), (False, True)):
        yield Work("required", cell, hidden, 32, 256, "float32", training, hidden)
    for cell, hidden in product(("lstm", "gru-after", "gru", "simplified-gru"), (256, 1024)):
        yield Work("required", cell, hidden, 64, 512, "float16", True, hidden, ragged=True)


def layers() -> Iterator[Work]:
    """Stacked and bidirectional layers."""
    for depth, directions, hidden in product((1, 2, 4), (1, 2), (256, 512, 1024)):
        for cell, training in product(("lstm", "gru-after"), (False, True)):
            work = Work("layers", cell, hidden, 32, 256, "float16", training, hidden)
            yield replace(work, layers=depth, directions=directions)


def deepbench() -> Iterator[Work]:
    """DeepBench's training set (github.com/baidu-research/DeepBench, rnn_problems.h)."""
    sizes = [("rnn", h, b, 50) for h, b in product((1760, 2048, 2560), (16, 32, 64, 128))]
    sizes += [("lstm", h, b, 25) for h, b in product((512, 1024, 2048, 4096), (16, 32, 64, 128))]
    sizes += [("lstm", 1536, b, 50) for b in (8, 16, 32)]
    sizes += [("lstm", 256, b, 150) for b in (16, 32, 64)]
    sizes += [("gru-after", 2816, 32, t) for t in (750, 375, 187)]
    sizes += [
        ("gru-after", h, 32, t) for h, t in product((2048, 1536, 2560), (1500, 750, 375, 187))
    ]
    sizes += [
        ("gru-after", 512, 32, 1),
        ("gru-after", 1024, 32, 1500),
        ("gru-after", 1024, 64, 1500),
    ]
    for cell, hidden, batch, steps in sizes:
        for training in (False, True):
            yield Work("deepbench", cell, hidden, batch, steps, "float16", training, hidden)


def grid() -> Iterator[Work]:
    """Every size and cell; in an order that is mixed, so that a part of it tells of the whole."""
    sizes = product((64, 128, 256, 512, 1024, 2048), (1, 4, 16, 64, 128), (64, 512, 1024))
    works = [
        Work("grid", cell, hidden, batch, steps, compute, training, inputs)
        for hidden, batch, steps in sizes
        for cell, compute in product(gates(), COMPUTES)
        for training, inputs in product((False, True), (hidden, FEW_INPUTS))
    ]
    random.Random(0).shuffle(works)
    yield from works


@dataclass(frozen=True)
class Part:
    """Some works and the seconds that they may take; those that then remain are left out."""

    works: Callable[[], Iterator[Work]]
    seconds: float


PARTS = {
    "ratios": Part(ratios, 85.0),
    "flashrnn": Part(flashrnn, 30.0),
    "required": Part(required, 70.0),
    "layers": Part(layers, 50.0),
    "deepbench": Part(deepbench, 60.0),
    "grid": Part(grid, 50.0),
}
QUICK = 0.3  # of those seconds


def todo(part: str, records: Iterable[Record]) -> list[Work]:
    """The works of a part that no record tells of."""
    done = {record["key"] for record in records if "key" in record}
    works: dict[str, Work] = {}
    for work in PARTS[part].works():
        if work.key not in done:
            works.setdefault(work.key, work)
    return list(works.values())


def left(part: str, records: Iterable[Record]) -> int | None:
    """How many works of a part remain, or None where it was not begun."""
    count = None
    for record in records:
        if record.get("listed") == part:
            count = record["works"]
        elif count is not None and record.get("part") == part:
            count -= 1
    return count


# -- records: one JSON object a line, appended as they come ----------------------------------------


def read(path: Path) -> list[Record]:
    """All records of a file; a last line that was cut off by a kill is dropped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [record for record in map(_record, lines) if record is not None]


def _record(line: str) -> Record | None:
    try:
        record: Record = json.loads(line)
    except ValueError:
        return None
    return record


def append(path: Path, record: Record) -> None:
    """Add one record, on a line of its own even behind one that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if cut else "") + json.dumps(record) + "\n")


@contextmanager
def begun(path: Path, about: Record, seconds: float) -> Iterator[None]:
    """Something of a list, known by its "key": on record before it is begun.

    Whoever reads the records after a crash knows what it was. A kernel that does not end cannot be
    interrupted: after so many seconds the process ends.
    """
    append(path, {"begun": about["key"], "about": about})
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def seconds_allowed(otherwise: float) -> float:
    """What bench/gpu gives the process, which is killed soon after."""
    return float(os.environ.get("RNNKERN_SECONDS", otherwise))


def describe(work: Work) -> Record:
    """A work's own fields, for its record."""
    return {"key": work.key, **asdict(work), "flops": work.flops}


# -- ratios ----------------------------------------------------------------------------------------


def ratio(record: Record, peer: str) -> float | None:
    """The peer's time over ours, None where either was not measured."""
    times = record.get("milliseconds", {})
    ours, theirs = times.get("rnnkern"), times.get(peer)
    return None if not ours or not theirs else theirs / ours


def proportion(record: Record) -> float | None:
    """The share of live steps over the share of time that they take; 1 is in proportion."""
    times = record.get("milliseconds", {})
    ours, padded = times.get("rnnkern"), times.get("rnnkern padded")
    return None if not ours or not padded else record["live"] * padded / ours


@dataclass(frozen=True)
class Requirement:
    """A line of the table of what must be reached."""

    work: str
    against: str
    at_least: float
    applies: Callable[[Record], bool]
    value: Callable[[Record], float | None]


def cudnn(compute: str) -> str:
    """The name of cuDNN as a contender, through PyTorch's layers."""
    return f"cuDNN {compute}"


def _same(record: Record) -> float | None:
    return None if record["ragged"] else ratio(record, cudnn(record["compute"]))


def _half(record: Record) -> float | None:
    return None if record["ragged"] else ratio(record, cudnn("float16"))


def _deep(record: Record) -> bool:
    wide: bool = record["directions"] == 2 or record["layers"] >= 2
    return wide and 256 <= record["hidden"] <= 1024


def _point(record: Record) -> bool:
    size = (record["hidden"], record["batch"], record["steps"], record["inputs"])
    return record["cell"] == "lstm" and size == (768, 16, 1024, 768) and _is_half(record)


def _is_half(record: Record) -> bool:
    return record["compute"] in HALVES


REQUIREMENTS = (
    Requirement(
        "LSTM fp16/bf16, H 768, B 16, T 1024, forward",
        "cuDNN fp16",
        1.0,
        lambda r: _point(r) and not r["training"],
        _half,
    ),
    Requirement(
        "LSTM fp16/bf16, H 768, B 16, T 1024, forward and backward",
        "cuDNN fp16",
        1.0,
        lambda r: _point(r) and r["training"],
        _half,
    ),
    Requirement(
        "GRU, any reset, H >= 256, fp16/bf16",
        "cuDNN GRU fp16",
        2.0,
        lambda r: r["cell"].startswith("gru") and r["hidden"] >= 256 and _is_half(r),
        _half,
    ),
    Requirement(
        "LSTM bf16",
        "cuDNN bf16",
        1.5,
        lambda r: r["cell"] == "lstm" and r["compute"] == "bfloat16",
        _same,
    ),
    Requirement(
        "both directions or 2 to 4 layers, H 256 to 1024",
        "cuDNN, same precision",
        1.5,
        _deep,
        _same,
    ),
    Requirement(
        "true float32",
        "cuDNN fp32 (TF32 off)",
        1.2,
        lambda r: r["compute"] == "float32",
        _same,
    ),
    Requirement("anything", "cuDNN, same precision", 0.8, lambda r: True, _same),
    Requirement("ragged", "padded, in proportion", 0.8, lambda r: r["ragged"], proportion),
)


# -- the report ------------------------------------------------------------------------------------


def requirement_rows(records: list[Record]) -> list[tuple[str, str, str, str, str, str, str]]:
    """Each requirement with its worst and middle ratio, where the worst was, and the verdict."""
    rows = []
    for required in REQUIREMENTS:
        found = [
            (value, record["key"])
            for record in records
            if "milliseconds" in record and required.applies(record)
            for value in [required.value(record)]
            if value is not None
        ]
        if found:
            worst, where = min(found)
            met = "met" if worst >= required.at_least else "NOT met"
            middle = f"{statistics.median(value for value, _ in found):.2f}"
            cells = (f"{worst:.2f}", middle, str(len(found)), f"{met}; worst: {where}")
        else:
            cells = ("–", "–", "0", "not measured")
        rows.append((required.work, required.against, f"{required.at_least:g}", *cells))
    return rows


def report(records: list[Record]) -> str:
    """All records as Markdown: machine, stages, required ratios, then each part's rows."""
    lines = ["# rnnkern on a GPU", ""]
    for record in records:
        if "machine" in record:
            lines += [f"- {name}: {value}" for name, value in record["machine"].items()] + [""]
    stages = [r for r in records if "stage" in r]
    lines += _table(
        ("stage", "outcome", "seconds", "detail"),
        [
            (r["stage"], "ok" if r["ok"] else "FAILED", f"{r['seconds']:.0f}", r.get("detail", ""))
            for r in stages
        ],
    )
    lines += _tried(records)
    lines += ["", "## What must be reached", ""]
    lines += [
        "Ratios are the peer's time over ours in the same run: above 1 rnnkern is faster.",
        "",
    ]
    lines += _table(
        ("work", "against", "at least", "worst", "median", "rows", "verdict"),
        requirement_rows(records),
    )
    lines += _paper(records) + _scaling(records)
    for part in PARTS:
        rows = [r for r in records if r.get("part") == part]
        remaining = left(part, records)
        rest = "not begun" if remaining is None else f"{remaining} not measured"
        lines += ["", f"## {part}", "", f"{len(rows)} rows; {rest}.", ""]
        peers = sorted({name for r in rows for name in r.get("milliseconds", {})} - {"rnnkern"})
        lines += _table(
            (
                "work",
                "rnnkern ms",
                "first ms",
                "TF/s",
                *(f"{p} ms (ratio)" for p in peers),
                "notes",
            ),
            [_row(r, peers) for r in sorted(rows, key=lambda r: r["key"])],
        )
    return "\n".join(lines) + "\n"


def _tried(records: list[Record]) -> list[str]:
    """What the smoke and the tests found wrong."""
    smoke = [r for r in records if "smoke" in r]
    bad = [(r["smoke"], r["error"]) for r in smoke if "error" in r]
    lines = [
        "",
        "## Wrong",
        "",
        f"{len(smoke) - len(bad)} of {len(smoke)} cases of the smoke agree.",
    ]
    bad += [(r["test"], r["detail"]) for r in records if "test" in r]
    return [*lines, "", *_table(("case", "what"), bad)] if bad else lines


def _paper(records: list[Record]) -> list[str]:
    rows = [
        (r["paper"], r["name"], str(r.get("measured", r.get("error", ""))), r.get("predicted", ""))
        for r in records
        if "paper" in r
    ]
    head = ("what", "of it", "measured", "predicted")
    return ["", "## Measured beside what was predicted on paper", "", *_table(head, rows)]


def _scaling(records: list[Record]) -> list[str]:
    rows = [r for r in records if "scaling" in r]
    cells = [
        (
            r["scaling"],
            str(r["threads"]),
            *(f"{r[name]:.3f}" if name in r else "–" for name in ("rnnkern_ms", "torch_ms")),
            r.get("error", ""),
        )
        for r in rows
    ]
    head = ("work on the CPU", "threads", "rnnkern ms", "PyTorch ms", "notes")
    return ["", "## CPU, by threads", "", *_table(head, cells)]


def _row(record: Record, peers: list[str]) -> tuple[str, ...]:
    times, notes = record.get("milliseconds", {}), dict(record.get("absent", {}))
    ours = times.get("rnnkern")
    cells = [record["key"]]
    if ours:
        first = record["first_milliseconds"]["rnnkern"]
        cells += [f"{ours:.3f}", f"{first:.1f}", f"{record['flops'] / ours / 1e9:.1f}"]
    else:
        cells += ["–"] * 3
    for peer in peers:
        cells.append(
            f"{times[peer]:.3f} ({times[peer] / ours:.2f})" if ours and peer in times else "–"
        )
    if "error" in record:
        notes["rnnkern"] = record["error"]
    return (*cells, "; ".join(f"{name}: {why}" for name, why in notes.items()))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]


def minutes(seconds: float) -> str:
    """A time in words."""
    return f"{math.ceil(seconds / 60)} min" if seconds >= 60 else f"{seconds:.0f} s"
