# SPDX-License-Identifier: Apache-2.0
"""What a program found, over seeds: its table, its file of numbers, its record."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnnkern.record import facts

_DIGITS = 7  # significant, of a number in a JSON file


class Spread(NamedTuple):
    """The middle of some values, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        """As ``0.93 (0.91-0.95)``; one number where all three read the same."""
        median, low, high = (format(value, form) for value in self)
        return median if low == median == high else f"{median} ({low}-{high})"


def spread(values: Iterable[float]) -> Spread:
    """Median, least and greatest of at least one value."""
    numbers = [float(value) for value in values]
    return Spread(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True)
class Result:
    """What a program found.

    Attributes:
        name: The program's.
        title: A line above the table and the picture.
        settings: What the numbers depend on beside the seed: sizes, steps, learning rates.
        measures: The columns that hold a measured number, and how each is written, as ``".3f"``.
        rows: One per case and seed: the case's columns, ``"seed"`` and the measures, of which one
            may be ``None`` where it is not known.
        curves: What the picture shows beyond the rows: per curve its case, ``"seed"`` and lists.
        notes: Sentences below the table.

    """

    name: str
    title: str
    settings: dict[str, Any]
    measures: dict[str, str]
    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """Those of the rows, in order."""
        return sorted({row["seed"] for row in self.rows})

    def values(self, measure: str, **case: Any) -> list[float]:
        """A measure of all rows that agree with ``case``, in the rows' order."""
        return [row[measure] for row in _agreeing(self.rows, case)]

    def pick(self, **case: Any) -> list[dict[str, Any]]:
        """The curves that agree with ``case``."""
        return _agreeing(self.curves, case)

    def cells(self) -> list[str]:
        """The cells of the rows, each once, in order."""
        return list(dict.fromkeys(row["cell"] for row in self.rows))

    def table(self) -> str:
        """A line per case, with each measure's median, least and greatest value over the seeds."""
        columns = [c for c in self.rows[0] if c != "seed" and c not in self.measures]
        cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self.rows:
            cases.setdefault(tuple(row[c] for c in columns), []).append(row)
        lines = [[*columns, *self.measures]]
        for case, rows in cases.items():
            measured = [_told([row[m] for row in rows], form) for m, form in self.measures.items()]
            lines.append([*(str(value) for value in case), *measured])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = [not isinstance(self.rows[0][c], str) for c in columns] + [True] * len(
            self.measures
        )
        aligned = [
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        over = f"median (least-greatest) over {len(self.seeds)} seeds"
        return "\n".join(
            [
                self.title + (f"; {over}" if len(self.seeds) > 1 else ""),
                "",
                aligned[0],
                "-" * max(map(len, aligned)),
                *aligned[1:],
                *(["", *self.notes] if self.notes else []),
            ]
        )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all numbers; the same bytes for the same numbers.

        A number is rounded to seven digits, and null where it is not finite.
        """
        whole = {
            "program": self.name,
            "title": self.title,
            "settings": self.settings,
            "seeds": self.seeds,
            "measures": list(self.measures),
            "rows": self.rows,
            "curves": self.curves,
            "notes": list(self.notes),
        }
        lines = json.dumps(_plain(whole), indent=1, allow_nan=False)
        Path(path).write_text(lines + "\n", encoding="utf-8")

    def to_record(self, path: str | os.PathLike[str]) -> None:
        """Write what the table is made of, and where it comes from: see ``rnnkern.record``."""
        whole = {
            "facts": facts(),
            "program": self.name,
            "title": self.title,
            "settings": self.settings,
            "measures": self.measures,
            "notes": list(self.notes),
            "rows": self.rows,
        }
        # Unrounded, so that the table made of it is the one that was printed; a line each.
        lines = json.dumps(whole, default=lambda number: number.item())
        Path(path).write_text(lines.replace(" {", "\n{") + "\n", encoding="utf-8")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """The result that a record holds, without its curves."""
        fields = {name: record[name] for name in ("title", "settings", "measures", "rows")}
        return cls(record["program"], **fields, notes=tuple(record["notes"]))


def _told(values: list[float | None], form: str) -> str:
    """What a table says of a measure's values."""
    known = [value for value in values if value is not None]
    return spread(known).text(form) if known else "unknown"


def _agreeing(rows: Iterable[dict[str, Any]], case: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in case.items())]


def _plain(value: Any) -> Any:
    """``value`` as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
