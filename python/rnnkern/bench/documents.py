# SPDX-License-Identifier: Apache-2.0
"""``rnnkern bench report``: the tables of documents, made anew from records of measurements.

A table stands between two comments of its document, and the first says what it is made of:

    <!-- table: ratios bench/results/one-thread.json bench/results/two-threads.json -->
    ...
    <!-- end of table -->

Paths are seen from the document's folder. What stands between is the command's: a figure that no
record bears is gone with the next call, and the tests hold documents and records together.

A picture is made likewise, in a file beside the document, which this comment names:

    <!-- picture: speed docs/speed.svg bench/results/one-thread.json -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from rnnkern.bench import adder, cost, memory, stream
from rnnkern.bench.pictures import speed_picture
from rnnkern.bench.report import (
    Line,
    best_ratio,
    duration,
    geometric_means,
    ratio_text,
    table,
)
from rnnkern.cells import CELLS
from rnnkern.explore.result import Result

Record = dict[str, Any]

_MARKED = re.compile(r"(<!-- table: ([\w-]+)([^\n]*) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_PICTURE = re.compile(r"<!-- picture: ([\w-]+) (\S+) (\S+) -->")
_PICTURES: dict[str, Callable[[Record], str]] = {"speed": speed_picture}
# Records of earlier versions have the kernels' names of the cells.
_RENAMED = {"simplified_gru": "simplified-gru", "gru_before": "gru", "gru_after": "gru-after"}


def rendered(path: Path) -> str:
    """The text of a document with all of its tables made anew.

    Raises:
        ValueError: A table of no such name, or not of as many records as it is made of.
        OSError: The document or a record cannot be read.

    """

    def made(match: re.Match[str]) -> str:
        begin, name, arguments, end = match.groups()
        if name not in _TABLES:
            raise ValueError(
                f"{path}: a table must be one of {', '.join(_TABLES)}, got {name}: {begin.strip()}"
            )
        make, count = _TABLES[name]
        files = arguments.split()
        if len(files) != count:
            raise ValueError(f"{path}: the table {name} is of {count} records, got {len(files)}")
        records = [_record(path.parent / file) for file in files]
        return f"{begin}{make(*records)}\n{end}"

    return _MARKED.sub(made, path.read_text("utf-8"))


def pictures(path: Path) -> dict[Path, str]:
    """The files of a document's pictures, and what is in them.

    Raises:
        ValueError: A picture of no such name.
        OSError: The document or a record cannot be read.

    """
    made = {}
    for name, file, record in _PICTURE.findall(path.read_text("utf-8")):
        if name not in _PICTURES:
            raise ValueError(f"{path}: a picture must be one of {', '.join(_PICTURES)}, got {name}")
        made[path.parent / file] = _PICTURES[name](_record(path.parent / record))
    return made


def report(paths: Sequence[Path]) -> None:
    """Write the documents' tables and pictures anew, and say which documents that changed."""
    for path in paths:
        changed = False
        for file, text in {path: rendered(path), **pictures(path)}.items():
            if not file.is_file() or text != file.read_text("utf-8"):
                file.write_text(text, "utf-8")
                changed = True
        print(f"{path}: {'has new tables' if changed else 'is as its records say'}")


def _record(path: Path) -> Record:
    """A file's, with the cells' names of today."""

    def named(item: dict[str, Any]) -> dict[str, Any]:
        cell = item.get("cell")
        return {**item, "cell": _RENAMED.get(cell, cell)} if isinstance(cell, str) else item

    record: Record = json.loads(path.read_text("utf-8"), object_hook=named)
    return record


# -- selecting ------------------------------------------------------------------------------------


def _lines(record: Record, work: str, cell: str | None = None) -> list[Line]:
    """The layers' lines of one kind of work, in words as ``Problem.work``, and perhaps one cell."""
    return [
        line
        for line in record["layers"]
        if line["work"] == work and (cell is None or line["cell"] == cell)
    ]


def _titles(cells: Container[str]) -> dict[str, str]:
    """The labels of cells, by name and in the registry's order."""
    return {name: cell.label for name, cell in CELLS.items() if name in cells}


def _size(line: Line) -> tuple[int, int, int]:
    return line["batch"], line["steps"], line["hidden"]


def _ratio(lines: Iterable[Line], peer: str | None = None) -> str:
    """How many times the speed of a peer, the fastest where none is named; of the first line."""
    for line in lines:
        if peer is None:
            return ratio_text(line)
        ratio = line["ratios"].get(peer)
        return "–" if ratio is None else f"{ratio:.2f}"
    return "–"


def _span(values: Iterable[float | None], form: str = ".2f") -> str:
    """The least and the greatest, as ``0.91–1.13``."""
    numbers = [value for value in values if value is not None]
    ends = [format(end, form) for end in (min(numbers), max(numbers))] if numbers else ["–"]
    return "–".join(dict.fromkeys(ends))


# -- tables ---------------------------------------------------------------------------------------


def _ratios(one: Record, two: Record) -> str:
    """Inference / training against the fastest peer, one thread; and the means of both records."""
    titles = _titles({line["cell"] for line in one["layers"] if line["ratios"]})
    rows = []
    for work, label in (("", ""), (", ragged", "ragged: ")):
        sizes = dict.fromkeys(_size(line) for line in _lines(one, f"infer{work}"))
        for size in sizes:
            entries = []
            for cell in titles:
                pair = [
                    _ratio(line for line in _lines(one, kind + work, cell) if _size(line) == size)
                    for kind in ("infer", "train")
                ]
                entries.append(" / ".join(pair))
            rows.append([label + ", ".join(map(str, size)), *entries])
    means = [geometric_means(record["layers"]) for record in (one, two)]
    told = (
        "≈: the quartiles of both times overlap. Geometric means of the whole batches:\n"
        f"{means[0]};\nwith two threads {means[1]}."
    )
    return f"{table(['B, T, H', *titles.values()], rows)}\n\n{told}"


def _bfloat16(record: Record) -> str:
    """Inference / training in bfloat16: against our own float32 and against PyTorch's bfloat16."""
    sizes = dict.fromkeys(_size(line) for line in _lines(record, "infer, bfloat16"))
    titles = _titles({line["cell"] for line in _lines(record, "infer, bfloat16")})
    rows = []
    for size in sizes:
        row = [", ".join(map(str, size))]
        for cell in titles:
            ours, theirs = [], []
            for work in ("infer", "train"):
                plain, narrow = (
                    [line for line in _lines(record, kind, cell) if _size(line) == size]
                    for kind in (work, f"{work}, bfloat16")
                )
                ours.append(f"{_gain(plain[0], narrow[0]):.2f}" if narrow else "–")
                theirs.append(_ratio(narrow, "torch"))
            row += [" / ".join(ours), " / ".join(theirs)]
        rows.append(row)
    header = ["B, T, H"]
    for label in titles.values():
        header += [f"{label}: our float32's", "PyTorch's"]
    return table(header, rows)


def _gain(before: Line, after: Line) -> float:
    """How many times our time of one line is that of another."""
    gain: float = before["results"]["rnnkern"]["ms"] / after["results"]["rnnkern"]["ms"]
    return gain


def _steps(record: Record) -> str:
    """A stream's step by size: our time, and ONNX Runtime's / PyTorch's over it."""
    lines = {(line["cell"], line["hidden"]): line for line in record["stream"]}
    peers = {"onnxruntime", "torch"}
    titles = _titles({cell for (cell, _), line in lines.items() if peers & line["step_ms"].keys()})
    rows = []
    for hidden in dict.fromkeys(hidden for _, hidden in lines):
        row = [str(hidden)]
        for cell in titles:
            times = lines[cell, hidden]["step_ms"]
            over = (
                f"{times[peer] / times['rnnkern']:.1f}" if peer in times else "–"
                for peer in ("onnxruntime", "torch")
            )
            row.append(f"{duration(times['rnnkern'] / 1e3)}: {' / '.join(over)}")
        lstm = lines["lstm", hidden]
        block = lstm["block_ms"]
        row.append(duration(lstm["step_ms"]["bfloat16 weights"] / 1e3))
        row.append(f"{block['onnxruntime'] / block['rnnkern']:.1f}")
        rows.append(row)
    header = ["I = H", *titles.values(), "LSTM, bfloat16 weights", "LSTM, block"]
    return table(header, rows)


def _is(least_batch: int, most_batch: int, most_hidden: int = 1 << 30) -> Callable[[Line], bool]:
    return lambda line: least_batch <= line["batch"] <= most_batch and line["hidden"] <= most_hidden


_IN_TORCH = ("lstm", "gru-after", "rnn")
# Work, what was asked of it, the cells, the kind of work, and which of its sizes.
_ASKED: tuple[tuple[str, str, tuple[str, ...], str, Callable[[Line], bool]], ...] = (
    ("LSTM training, B ≥ 32", "1.15", ("lstm",), "train", _is(32, 64)),
    ("LSTM training, B = 16", "1.5", ("lstm",), "train", _is(16, 16)),
    ("LSTM training, B = 1, H ≤ 256", "1.5", ("lstm",), "train", _is(1, 1, 256)),
    ("GRU (after), RNN training, B ≥ 32", "1.4", ("gru-after", "rnn"), "train", _is(32, 64)),
    ("GRU (after), RNN training, B = 16", "3", ("gru-after", "rnn"), "train", _is(16, 16)),
    ("GRU (after), RNN training, B = 1", "5", ("gru-after", "rnn"), "train", _is(1, 1)),
    ("GRU (before) training", "1", ("gru",), "train", _is(1, 64)),
    ("LSTM inference", "1", ("lstm",), "infer", _is(1, 64)),
    ("GRU (after) inference", "1", ("gru-after",), "infer", _is(1, 64)),
    ("RNN inference", "1", ("rnn",), "infer", _is(1, 64)),
    ("GRU (before) inference", "1", ("gru",), "infer", _is(1, 64)),
    ("inference, B = 1, H ≤ 128", "1.3", _IN_TORCH, "infer", _is(1, 1, 128)),
    ("ragged training, over packed", "5", _IN_TORCH, "train, ragged", _is(1, 64)),
    ("two layers, training", "", ("lstm", "gru-after"), "train, 2 layers", _is(1, 64)),
    ("both directions, training", "", ("lstm", "gru-after"), "train, bidirectional", _is(1, 64)),
    ("float64 training", "", ("lstm", "gru-after"), "train, float64", _is(1, 64)),
    ("LSTM bfloat16 training, B ≥ 32", "1.8", ("lstm",), "train, bfloat16", _is(32, 64)),
    ("GRU (after), RNN bfloat16 training, B ≥ 32", "1.8", ("gru-after", "rnn"), "train, bfloat16",
     _is(32, 64)),
    ("bfloat16 training, B = 16", "2", _IN_TORCH, "train, bfloat16", _is(16, 16)),
)  # fmt: skip


def _reached(one: Record, two: Record) -> str:
    """What was asked of kinds of work and what was reached, with one thread and with two."""
    rows = []
    for work, asked, cells, kind, chosen in _ASKED:
        spans = [
            _span(best_ratio(line) for cell in cells for line in _lines(record, kind, cell)
                  if chosen(line))
            for record in (one, two)
        ]  # fmt: skip
        rows.append([work, asked, *spans])

    def narrow(record: Record) -> str:
        plain = {(line["cell"], _size(line)): line for line in _lines(record, "train")}
        return _span(
            _gain(plain[line["cell"], _size(line)], line)
            for line in _lines(record, "train, bfloat16")
        )

    def of_peak(record: Record) -> str:
        large = [line for line in _lines(record, "train") if _is(32, 64)(line)]
        return _span((line["results"]["rnnkern"]["of_peak"] for line in large), ".0%")

    for work, asked, value in (
        ("bfloat16 training, over our float32", "2.5", narrow),
        ("share of the product's peak, training, B ≥ 32", "", of_peak),
        (
            "inference, B = 1, over the floor of reading W_hh once a step",
            "1.3",
            lambda record: _span(line["over_floor"] for line in _lines(record, "infer")),
        ),
    ):
        rows.append([work, asked, value(one), value(two)])
    return table(["work", "asked", "one thread", "two threads"], rows)


def _as_recorded(record: Record) -> str:
    """A table that a script of bench/ recorded as it is to stand: "table", a header and rows."""
    return table(record["table"]["header"], record["table"]["rows"])


def _explore(record: Record) -> str:
    return f"```\n{Result.from_record(record).table()}\n```"


_TABLES: dict[str, tuple[Callable[..., str], int]] = {
    "ratios": (_ratios, 2),
    "bfloat16": (_bfloat16, 1),
    "steps": (_steps, 1),
    "reached": (_reached, 2),
    "adder-step": (lambda record: adder.adder_table(record["adder"]), 1),
    "blocks": (lambda record: stream.stream_table(record["stream"]), 1),
    "memory": (lambda record: memory.memory_table(record["memory"]), 1),
    "cost": (lambda record: cost.cost_table(record["cost"]), 1),
    "threads": (lambda record: cost.threads_table(record["threads"]), 1),
    "explore": (_explore, 1),
    "as-recorded": (_as_recorded, 1),
}
