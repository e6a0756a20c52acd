# SPDX-License-Identifier: Apache-2.0
"""Documents say what the records of measurements say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import rnnkern as rk
from rnnkern.bench.documents import pictures, rendered
from rnnkern.cli import main

from support.threads import using_threads

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = ["README.md", *(f"docs/{name}.md" for name in ("adder", "comparison", "gpu", "speed"))]
_TABLES = re.compile(r"<!-- table: .*?<!-- end of table -->", re.DOTALL)
# Times, speeds and shares, as a measurement gives them; and rows of numbers that no command made.
_FIGURE = re.compile(r"\d\s?(%|s\b|ms\b|µs|ns\b|GF/s|GB/s|times\b|×)|^\|.*\d\.\d", re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_their_records(path: Path) -> None:
    assert rendered(path) == path.read_text("utf-8"), "run: rnnkern bench report"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_pictures_are_those_of_their_records(path: Path) -> None:
    for file, text in pictures(path).items():
        assert text == file.read_text("utf-8"), "run: rnnkern bench report"
        assert f"]({file.relative_to(path.parent)})" in path.read_text("utf-8")


@pytest.mark.parametrize("name", MEASURED)
def test_no_figure_stands_outside_a_table(name: str) -> None:
    text = _TABLES.sub("", (ROOT / name).read_text("utf-8"))
    found = [match.group() for match in _FIGURE.finditer(text)]
    assert not found, f"{name} has figures that no record bears: {found}"


def test_every_record_that_is_told_of_is_there() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"[\w./-]*bench/results/[\w.-]+\.json", path.read_text("utf-8")):
            assert (path.parent / name).is_file(), f"{path.name} names {name}"


def write(folder: Path, marker: str, record: dict[str, Any]) -> Path:
    (folder / "record.json").write_text(json.dumps(record))
    document = folder / "document.md"
    document.write_text(
        f"before\n<!-- table: {marker} -->\nstale 9.99\n<!-- end of table -->\nafter\n"
    )
    return document


def test_the_command_makes_a_table_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"table": {"header": ["cell", "time"], "rows": [["lstm", "1.5 s"]]}}
    document = write(tmp_path, "as-recorded record.json", record)
    for said in ("has new tables", "is as its records say"):
        with using_threads(2):
            assert main(["bench", "report", str(document)]) == 0
            assert rk.get_num_threads() == 2
        assert capsys.readouterr().out == f"{document}: {said}\n"
    assert document.read_text() == (
        "before\n<!-- table: as-recorded record.json -->\n"
        "| cell | time  |\n|------|-------|\n| lstm | 1.5 s |\n"
        "<!-- end of table -->\nafter\n"
    )


def test_a_picture_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(1, 100, 128, "train"), (16, 50, 128, "train"), (64, 50, 512, "train")]
    lines = [
        line("lstm", work, 1.0, {"torch": ratio}, batch=batch, steps=steps, hidden=hidden)
        for (batch, steps, hidden, work), ratio in zip(
            [*sizes, (32, 200, 256, "train, ragged")], (3.0, 0.8, 1.0, 8.0), strict=True
        )
    ]
    record = {"layers": lines, "date": "2026-11-27 10:00", "processor": "A & B"}
    (tmp_path / "record.json").write_text(json.dumps(record))
    document = tmp_path / "page.md"
    document.write_text("<!-- picture: speed at.svg record.json -->\n![](at.svg)\n")
    for said in ("has new tables", "is as its records say"):
        assert main(["bench", "report", str(document)]) == 0
        assert capsys.readouterr().out == f"{document}: {said}\n"
    drawn = (tmp_path / "at.svg").read_text()
    assert all(f">{ratio}<" in drawn for ratio in ("3.0", "0.8", "1.0", "8.0"))
    assert "A &amp; B, 2026-11-27; peers: PyTorch" in drawn
    ElementTree.fromstring(drawn)
    document.write_text("<!-- picture: heat at.svg record.json -->\n")
    assert main(["bench", "report", str(document)]) == 2
    assert "a picture must be one of speed, got heat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("speeds record.json", "a table must be one of ratios, .*, got speeds"),
        ("ratios record.json", "the table ratios is of 2 records, got 1"),
        ("memory other.json", "No such file"),
    ],
)
def test_markers_that_are_wrong(
    marker: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "report", str(write(tmp_path, marker, {}))]) == 2
    assert re.search(message, capsys.readouterr().err)


def result(ours: float, peak: float | None = None) -> dict[str, Any]:
    return {"rnnkern": {"low_ms": ours, "ms": ours, "high_ms": ours, "of_peak": peak}}


def line(
    cell: str, work: str, ours: float, ratios: dict[str, float], **rest: Any
) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "cell": cell, "work": work, "batch": 32, "steps": 50, "hidden": 256, "ragged": False,
        "dtype": "float32", "compute": None, "ratios": ratios, "over_floor": None,
        "training": work.startswith("train"), "results": result(ours, 0.5), **rest,
    }  # fmt: skip
    for name, ratio in ratios.items():
        whole["results"][name] = result(ratio * ours)["rnnkern"]
    return whole


def test_tables_of_layers(tmp_path: Path) -> None:
    lines = [
        line("lstm", "infer", 4.0, {"torch": 3.0, "onnxruntime": 2.0}),
        line("lstm", "train", 9.0, {"torch": 1.5}, batch=64, results=result(9.0, 0.75)),
        line("lstm", "train", 8.0, {"torch": 1.25}),
        line("lstm", "infer, bfloat16", 2.0, {"torch": 7.0}, compute="bfloat16"),
        line("lstm", "train, bfloat16", 10.0, {}, compute="bfloat16"),
        line("lstm", "train, ragged", 1.0, {"torch": 6.0}, ragged=True),
    ]
    ratios = rendered(write(tmp_path, "ratios record.json record.json", {"layers": lines}))
    assert "| B, T, H     | LSTM        |" in ratios
    assert "| 32, 50, 256 | 2.00 / 1.25 |" in ratios
    mean = "inference B > 1 2.00, training B > 1 1.37"
    told = f"Geometric means of the whole batches:\n{mean};\nwith two threads {mean}."
    assert told in ratios
    lines.append(line("gru-after", "train", 8.0, {"torch": 1.5}))
    ratios = rendered(write(tmp_path, "ratios record.json record.json", {"layers": lines}))
    assert "| 32, 50, 256 | – / 1.50         | 2.00 / 1.25 |" in ratios
    lines.pop()
    narrow = rendered(write(tmp_path, "bfloat16 record.json", {"layers": lines}))
    assert "| 32, 50, 256 | 2.00 / 0.80         | 7.00 / – " in narrow
    reached = rendered(write(tmp_path, "reached record.json record.json", {"layers": lines}))
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (row.split("|") for row in reached.splitlines() if row.startswith("| "))
    }
    assert rows["LSTM training, B ≥ 32"] == ["1.15", "1.25–1.50", "1.25–1.50"]
    assert rows["LSTM training, B = 16"] == ["1.5", "–", "–"]
    assert rows["ragged training, over packed"] == ["5", "6.00", "6.00"]
    assert rows["bfloat16 training, over our float32"] == ["2.5", "0.80", "0.80"]
    assert rows["share of the product's peak, training, B ≥ 32"] == ["", "50%–75%", "50%–75%"]


def test_tables_of_steps(tmp_path: Path) -> None:
    lines = [
        {
            "cell": cell,
            "hidden": 16,
            "step_ms": {"rnnkern": 2e-3, "torch": 8e-3, "bfloat16 weights": 1e-3},
            "block_ms": {"rnnkern": 1.0, "onnxruntime": 3.0},
        }
        for cell in ("lstm", "gru-after", "rnn", "gru")
    ]
    text = rendered(write(tmp_path, "steps record.json", {"stream": lines}))
    row = "| 16    | " + " | ".join(["2.00 µs: – / 4.0"] * 3)
    assert row in text
    assert text.count("1.00 µs") == 1
    assert "| 3.0         |" in text
