# SPDX-License-Identifier: Apache-2.0
"""The harness: its problems, the comparison that guards the times, its tables and its command."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.bench import (
    adder,
    cost,
    layers,
    memory,
    native,
    onnx_peer,
    report,
    stream,
    timing,
    torch_peer,
)
from rnnkern.bench.case import Contender, DisagreementError, compare, make_case, tolerance
from rnnkern.bench.layers import Machine, measure, refusal
from rnnkern.bench.peers import contenders
from rnnkern.bench.problems import Problem, grid
from rnnkern.cells import CELLS
from rnnkern.cli import main

from support.processes import run_python
from support.threads import using_threads

SMALL = Problem("lstm", 3, 5, 8, training=True)


def test_the_full_grid_has_every_kind_once() -> None:
    full = list(grid(full=True))
    assert len(set(full)) == len(full)
    assert {p.cell for p in full} == set(CELLS)
    assert {(p.dtype, p.compute) for p in full} == {
        ("float32", None),
        ("float64", None),
        ("float32", "bfloat16"),
    }
    assert {(p.training, p.ragged) for p in full} == {(a, b) for a in (0, 1) for b in (0, 1)}
    assert any(p.layers > 1 for p in full)
    assert any(p.bidirectional for p in full)
    assert set(grid()) <= {*full}
    assert {p.cell for p in grid(("rnn",), full=True)} == {"rnn"}


def test_flops_count_every_product() -> None:
    one = 2 * 4 * 8 * (8 + 8) * 3 * 5  # 2 · G·H · (I + H) · B·T
    assert replace(SMALL, training=False).flops == one
    assert SMALL.flops == 3 * one
    assert replace(SMALL, cell="rnn").flops == SMALL.flops / 4
    without = replace(SMALL, cell="mingru")  # two gates, and no recurrent matrix
    assert without.flops == SMALL.flops / 4
    assert without.recurrent_bytes == 0
    assert replace(SMALL, layers=2).flops == 2 * SMALL.flops
    assert replace(SMALL, bidirectional=True).flops == 2 * SMALL.flops
    # The second layer reads both directions: I = 2H there.
    assert replace(SMALL, layers=2, bidirectional=True).flops == (2 + 3) * SMALL.flops


def test_flops_of_a_ragged_batch_are_those_of_its_live_steps() -> None:
    ragged = replace(SMALL, ragged=True, batch=50)
    lengths = ragged.lengths()
    assert lengths is not None
    assert lengths.min() >= 1
    assert lengths.max() <= 5
    assert ragged.flops == SMALL.flops * lengths.sum() / (3 * 5)


def answer(*arrays: Any) -> Contender:
    return Contender("peer", lambda: None, lambda: [np.array(a, np.float32) for a in arrays])


@pytest.mark.parametrize(
    "wrong",
    [[1.0, 2.001], [1.0, np.nan], [np.inf, 2.0], [[1.0, 2.0]]],
    ids=["off", "nan", "infinite", "shape"],
)
def test_another_answer_is_refused(wrong: Any) -> None:
    right = [1.0, 2.0]
    compare([answer(right, right), answer(right, [1.0, 2.00001])], 1e-4)
    with pytest.raises(DisagreementError, match="peer disagrees with peer: relative error"):
        compare([answer(right, right), answer(right, wrong)], 1e-4)


def test_an_answer_with_a_part_missing_is_refused() -> None:
    whole = answer([1.0], [2.0], [3.0])
    compare([whole, answer([1.0], [2.0])], 1e-4)  # a library that keeps gradients to itself
    for some in (answer([1.0]), answer([1.0], [2.0], [3.0], [4.0])):
        with pytest.raises(DisagreementError, match=r"peer gives \d arrays, expected 3"):
            compare([whole, some], 1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "kind",
    [{}, {"ragged": True}, {"layers": 2}, {"bidirectional": True}, {"dtype": "float64"}],
    ids=lambda kind: next(iter(kind), "plain"),
)
def test_peers_do_the_same_work(cell: str, kind: dict[str, Any], training: bool) -> None:
    problem = replace(SMALL, cell=cell, training=training, **kind)
    with using_threads(1):  # which the adapters of OpenMP libraries set
        able, absent = contenders(make_case(problem), threads=1)
        compare(able, tolerance(problem))
    assert able[0].name == "rnnkern"
    assert {*absent, *(c.name for c in able)} == {
        "rnnkern",
        "torch",
        "torch padded",
        "onnxruntime",
        "openvino",
        "jax",
        *native.LIBRARIES,
    }
    if importlib.util.find_spec("torch") and cell in torch_peer.KINDS:
        assert "torch" not in absent
    if not training and cell in onnx_peer.KINDS and kind in ({}, {"bidirectional": True}):
        assert "onnxruntime" not in absent


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    times = timing.alternate({n: lambda n=n: calls.append(n) for n in "ab"}, 0.01)  # type: ignore[misc]
    turns = [n for n, before in zip(calls, ["", *calls], strict=False) if n != before]
    assert turns == ["a", "b"] * (len(turns) // 2)
    for spread in times.values():
        assert 0 < spread.low <= spread.median <= spread.high


def test_a_problem_that_rnnkern_refuses_has_a_reason() -> None:
    assert refusal(SMALL) is None
    reason = refusal(replace(SMALL, compute="float8"))
    assert reason is not None
    assert "compute" in reason


def test_a_measurement_has_what_the_tables_need() -> None:
    machine = Machine(0.001)
    with using_threads(1):
        infer, train = (
            measure(Problem("rnn", 1, 3, 256, training), machine, 0.001)
            for training in (False, True)
        )
    json.dumps([infer, train])
    ours = infer["results"]["rnnkern"]
    assert ours["gflops"] == pytest.approx(infer["flops"] / ours["ms"] / 1e6)
    assert ours["of_peak"] == pytest.approx(
        ours["gflops"] / machine.describe()["peak_gflops"]["float32"]
    )
    assert train["over_floor"] is None
    read = machine.describe()["read_gbytes_by_size"][str(256 * 256 * 4)]
    floor = 3 * 256 * 256 * 4 / read / 1e6
    assert infer["over_floor"] == pytest.approx(ours["ms"] / floor)
    for name, ratio in infer["ratios"].items():
        assert ratio == pytest.approx(infer["results"][name]["ms"] / ours["ms"])
    row = report.layer_row(infer)
    assert len(row) == len(report.LAYER_HEADER)
    assert row[:3] == ["rnn", "1, 3, 256", "infer"]


def line(ratios: dict[str, float], **changes: Any) -> dict[str, Any]:
    problem = replace(SMALL, **changes)
    results = {
        name: {"low_ms": 0.9 * ms, "ms": ms, "high_ms": 1.1 * ms}
        for name, ms in {"rnnkern": 1.0, **ratios}.items()
    }
    return {**problem.describe(), "work": problem.work, "ratios": ratios, "results": results}


def test_ratios_are_against_the_fastest_peer() -> None:
    lines = [
        line({"slow": 8.0, "fast": 2.0}),
        line({"fast": 4.0}, training=False),
        line({}, cell="simplified-gru"),
        line({"fast": 100.0}, ragged=True),
        line({"fast": 100.0}, compute="bfloat16"),
        line({"fast": 100.0}, dtype="float64"),
    ]
    lines.append(line({"fast": 1.15}, hidden=9))
    lines.append(line({"fast": 3.0}, hidden=9, training=False, batch=1))
    assert report.geometric_means(lines) == (
        f"inference B = 1 3.00, inference B > 1 4.00, training B > 1 {(2 * 1.15) ** 0.5:.2f}"
    )
    assert report.geometric_means(lines[2:3]) == ""
    rows = report.layer_tables(lines).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["B, T, H", "kind", "lstm", "simplified-gru"]
    assert cells[2] == ["3, 5, 8", "", "4.00 / 2.00", "– / –"]
    assert cells[3][2] == "– / ≈1.15"
    assert [row[1] for row in cells[5:]] == ["ragged", "bfloat16", "float64"]


def test_a_problem_is_measured_anew_while_others_use_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, machine = Problem("rnn", 1, 3, 8, training=False), Machine(0.001)
    for calm, runs, disturbed in (
        ([True, True], 1, False),
        ([True, False, True, True], 2, False),
        ([False, True, False, True, False, True], 3, True),
    ):
        answers = iter(calm)
        measured: list[int] = []

        def alternated(*_: Any, measured: list[int] = measured) -> dict[str, timing.Spread]:
            measured.append(1)
            return {"rnnkern": timing.Spread(1.0, 1.0, 1.0)}

        monkeypatch.setattr(machine, "calm", lambda answers=answers: next(answers))
        monkeypatch.setattr(layers, "alternate", alternated)
        monkeypatch.setattr(layers, "contenders", lambda *_: ([answer([1.0])], {}))
        assert measure(problem, machine, 0.001)["disturbed"] == disturbed
        assert len(measured) == runs
        assert next(answers, None) is None


def test_calm_is_told_by_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, taken = timing.Calm(), [1.0]
    monkeypatch.setattr(timing, "_timed", lambda *_: taken[0])
    answers = []
    for taken[0] in (1.0, 1.1, 1.2, 0.9, 1.05, 1.0):
        answers.append(calm())  # the list's name is the loop's variable
    assert answers == [True, True, False, True, False, True]


def test_tables_line_up() -> None:
    assert report.table(["a", "long"], [["wide cell", "1"]]) == (
        "| a         | long |\n|-----------|------|\n| wide cell | 1    |"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (1e-3, "1.00 ms"),
        (250e-6, "250 µs"),
        (9e-7, "0.90 µs"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_each_size_is_doubled_in_turn() -> None:
    problems = list(cost.doubled("lstm"))
    for (what, before), (next_what, after) in pairwise(problems):
        if what == next_what:
            assert getattr(after, what) == 2 * getattr(before, what)
            assert after.flops == before.flops * (4 if what == "hidden" else 2)
    assert {what for what, _ in problems} == {"batch", "steps", "hidden"}


def test_growth_is_told_beside_the_flops() -> None:
    lines = [
        {"cell": "lstm", "doubled": "steps", "steps": 25 << i, "flops": 2.0**i, "ms": 3.0**i}
        for i in range(2)
    ]
    assert "| lstm | steps 25 to 50 | 3.00       | 2.00       |" in cost.cost_table(lines)


@pytest.mark.parametrize("cell", CELLS)
def test_stream(cell: str) -> None:
    measured = stream.measure(cell, 8, 0.001)
    able = {"rnnkern", "bfloat16 weights", "int8 weights"}
    able |= {"onnxruntime"} if cell in onnx_peer.KINDS else set()
    assert measured["step_ms"].keys() - {"torch"} == able
    assert cell in stream.stream_table([measured])


def test_peak_memory_holds_what_a_call_returns() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc")
    measured = memory.measure(Problem("rnn", 64, 100, 256, training=False))
    megabytes = measured["megabytes"]["rnnkern"]
    assert measured["y_megabytes"] == pytest.approx(64 * 100 * 256 * 4 / 1e6)
    assert measured["y_megabytes"] <= megabytes < 3 * measured["y_megabytes"]


@pytest.mark.parametrize("name", ["lstm", "gru-after"])
def test_the_adders_step(name: str) -> None:
    with using_threads(1):
        measured = adder.measure(name, 1, 0.001)
    assert sum(measured["shares"].values()) == pytest.approx(1.0)
    assert set(measured["results"]) | set(measured["absent"]) == {"rnnkern", "torch"}
    assert name in adder.adder_table([measured])


def test_an_adapter_that_was_not_built_is_told() -> None:
    found = native.network("nothing", rk.RNN(8, 8), SMALL, 1)
    assert found == "has no adapter in this build (CMake option RNNKERN_BENCH)"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    numbers, tables, pictures = (tmp_path / name for name in ("n.json", "t.md", "pictures"))
    files = ["--json", str(numbers), "--markdown", str(tables), "--plot", str(pictures)]
    with using_threads(1):
        assert main(["bench", "layers", "--quick", "--cell", "rnn", *files]) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "no bar where there is no terminal"
    written = json.loads(numbers.read_text())
    assert written["facts"]["isa"].startswith(_core.isa())
    assert [p["cell"] for p in written["layers"]] == ["rnn"] * len(list(grid(("rnn",))))
    for row in tables.read_text().splitlines():
        assert row in captured.out
    for name in ("ratios", "roofline"):
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "SUBJECT must be one of layers, stream, "),
        (["--threads", "0"], "threads must be a positive integer, got 0"),
        (["--json", "no/where.json"], "no/where.json: No such file"),
        (["--markdown", "no/where.md"], "no/where.md: No such file"),
    ],
)
def test_errors(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with using_threads(1):
        assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_commands_do_not_load_it() -> None:
    code = (
        "import sys; from rnnkern.cli import main; main(['info']); "
        "print([m for m in sys.modules if m.startswith(('rnnkern.bench', 'rnnkern.explore'))])"
    )
    assert run_python(code).stdout.splitlines()[-1] == "[]"
