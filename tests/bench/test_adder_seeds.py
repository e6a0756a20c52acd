# SPDX-License-Identifier: Apache-2.0
"""bench/adder_seeds.py: what goes into its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.threads import using_threads

adder_seeds: Any = pytest.importorskip("adder_seeds", reason="bench is not in an sdist")


def run(cell: str, seed: int, right: int, *, layers: int = 1) -> dict[str, Any]:
    return {
        "cell": cell,
        "seed": seed,
        "layers": layers,
        "good": {"steps": 300 + seed} if right == 10 else None,
        "trained": {"right": 4, "total": 4},
        "held_out": {"right": right - 4, "total": 6},
    }


def test_a_model_has_a_line_with_all_its_seeds_in_the_order_of_cells_and_layers() -> None:
    runs = [
        run("mingru, 2 layers", 0, 10, layers=2),
        run("mingru", 0, 7),
        run("lstm", 0, 10),
        run("mingru, 2 layers", 1, 9, layers=2),
    ]
    table = adder_seeds.summary({"runs": runs})
    assert table["rows"] == [
        ["lstm", "144,779", "300", "0", "1 of 1 seed"],
        ["mingru", "7,563", "–", "3", "0 of 1 seed"],
        ["mingru, 2 layers", "73,611", "300, –", "0, 1", "1 of 2 seeds"],
    ]


def test_the_pace_is_measured_of_what_there_are_runs_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    runs = [run("mingru, 2 layers", 0, 10, layers=2), run("indrnn", 0, 10)]
    path.write_text(json.dumps({"facts": {}, "runs": runs}), encoding="utf-8")
    options = ["--json", str(path), "--pace", "0.001", "--cell", "lstm", "--attention"]
    monkeypatch.setattr("sys.argv", ["adder_seeds.py", *options])
    with using_threads(1):
        adder_seeds.main()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["runs"] == runs
    assert record["pace"].keys() == {"lstm, attention", "mingru, 2 layers", "indrnn"}
    assert record["pace facts"]["threads"] == 1
    assert record["table"]["header"][2] == "ms of a step"
    for name, _, pace, *_ in record["table"]["rows"]:
        assert pace == f"{record['pace'][name]['ms']:.1f}"
