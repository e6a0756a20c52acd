# SPDX-License-Identifier: Apache-2.0
"""bench/gpu without a GPU: its grid, its records, its tables and its contenders."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rnnkern import devices

from support import gpu, needs
from support.cuda_kernels import Emulation, Spoiled
from support.emulation import EmulatedCuda, StandIn
from support.gpu import record_failure, the_gpu
from support.layers import WITH_PRODUCT
from support.needs import emulated_device
from support.threads import using_threads

gpu_work: Any = pytest.importorskip("gpu_work", reason="bench is not in an sdist")
gpu_run: Any = pytest.importorskip("gpu_run")
gpu_measure: Any = pytest.importorskip("gpu_measure")
gpu_paper: Any = pytest.importorskip("gpu_paper")
gpu_smoke: Any = pytest.importorskip("gpu_smoke")

ROOT = Path(__file__).parents[2]


def record(work: Any, **milliseconds: float) -> dict[str, Any]:
    """What measuring a work leaves; underscores in a contender's name stand for blanks."""
    times = {name.replace("_", " "): t for name, t in milliseconds.items()}
    return {
        **gpu_work.describe(work),
        "milliseconds": times,
        "first_milliseconds": times,
        "absent": {},
    }


def work(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "part": "grid",
        "cell": "lstm",
        "hidden": 64,
        "batch": 1,
        "steps": 64,
        "compute": "float16",
        "training": False,
        "inputs": 64,
    }
    return gpu_work.Work(**{**fields, **changes})


def test_the_grid_has_all_that_was_promised() -> None:
    works = {name: gpu_work.todo(name, []) for name in gpu_work.PARTS}
    sizes = {(w.hidden, w.batch, w.steps) for w in works["grid"]}
    assert {s[0] for s in sizes} == {64, 128, 256, 512, 1024, 2048}
    assert {s[2] for s in sizes} == {64, 512, 1024}
    assert min(s[1] for s in sizes) == 1
    assert max(s[1] for s in sizes) == 128
    assert {w.cell for w in works["grid"]} == set(gpu_work.gates())
    assert {w.compute for w in works["flashrnn"]} == set(gpu_work.COMPUTES)
    assert {w.inputs for w in works["flashrnn"]} == {gpu_work.FEW_INPUTS, 768}
    assert {(w.layers, w.directions) for w in works["layers"]} == {
        (n, d) for n in (1, 2, 4) for d in (1, 2)
    }
    rows = {(w.cell, w.hidden, w.batch, w.steps) for w in works["deepbench"]}
    assert len(rows) == 52
    assert {("gru-after", 2816, 32, 187), ("lstm", 4096, 128, 25), ("rnn", 2560, 16, 50)} <= rows
    for required in gpu_work.REQUIREMENTS:
        some = [gpu_work.describe(w) for part in works.values() for w in part]
        assert any(required.applies(r) for r in some), required.work


def test_flops_count_every_product() -> None:
    # One direction: (I + H) columns; the second layer reads both directions of the first.
    assert work(hidden=2, inputs=3, batch=5, steps=7).flops == 2 * 4 * 2 * (3 + 2) * 5 * 7
    both = work(hidden=2, inputs=3, batch=1, steps=1, layers=2, directions=2, training=True)
    assert both.flops == 3 * 2 * (2 * 4 * 2 * ((3 + 2) + (4 + 2)))


def test_records_resume(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.jsonl"
    assert gpu_work.read(path) == []
    works = gpu_work.todo("flashrnn", [])
    gpu_work.append(path, record(works[0], rnnkern=1.0))
    gpu_work.append(path, {"begun": works[1].key})
    with path.open("a") as file:
        file.write('{"key": "cut o')
    gpu_work.append(path, record(works[2], rnnkern=1.0))
    records = gpu_work.read(path)
    assert len(records) == 3
    # What was begun and not finished is done again.
    assert gpu_work.todo("flashrnn", records) == [works[1], *works[3:]]


def test_the_report_says_what_remains() -> None:
    works = gpu_work.todo("flashrnn", [])
    first = [{"listed": "flashrnn", "works": len(works)}, record(works[0], rnnkern=1.0)]
    resumed = [*first, {"listed": "flashrnn", "works": len(works) - 1}]
    assert gpu_work.left("flashrnn", []) is None
    assert gpu_work.left("flashrnn", first) == gpu_work.left("flashrnn", resumed) == len(works) - 1
    report = gpu_work.report(resumed)
    assert f"1 rows; {len(works) - 1} not measured." in report
    assert "0 rows; not begun." in report


def test_a_missing_gpu_fails_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def item(*marks: pytest.MarkDecorator) -> Any:
        found = {made.mark.name: made.mark for made in marks}
        return SimpleNamespace(get_closest_marker=found.get)

    monkeypatch.setattr(needs, "no_gpu", lambda: "no CuPy")
    monkeypatch.delenv("RNNKERN_REQUIRE_GPU", raising=False)
    anywhere, of_a_gpu = item(), item(pytest.mark.gpu)
    tests = [anywhere, of_a_gpu]
    assert needs.leave_out(tests) == {"a GPU (no CuPy)": 1}
    assert tests == [anywhere]
    monkeypatch.setenv("RNNKERN_REQUIRE_GPU", "1")
    tests = [anywhere, of_a_gpu]
    assert not needs.leave_out(tests)
    assert tests == [anywhere, of_a_gpu]

    def refuse(name: str) -> None:
        raise ValueError("no CuPy")

    monkeypatch.setattr(gpu, "get_device", refuse)
    with pytest.raises(pytest.fail.Exception, match="RNNKERN_REQUIRE_GPU is set: no CuPy"):
        the_gpu()


def test_failures_of_tests_are_on_record_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.jsonl"
    monkeypatch.setenv("RNNKERN_RESULTS", str(path))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    for failed in (True, False):
        report = SimpleNamespace(failed=failed, nodeid="a::b[gpu]", longreprtext="y 0: step 3")
        record_failure(report)  # type: ignore[arg-type]
    assert gpu_work.read(path) == [{"test": "a::b[gpu]", "detail": "y 0: step 3"}]
    assert "| a::b[gpu] | y 0: step 3 |" in gpu_work.report(gpu_work.read(path))


@emulated_device
def test_the_smoke_tells_where(tmp_path: Path) -> None:
    emulation = Emulation()
    checks = list(gpu_smoke.checks())
    names = [name for name, _ in checks]
    assert len(set(names)) == len(names)
    for cell, compute in itertools.product(
        WITH_PRODUCT, ("float32", "tfloat32", "bfloat16", "float16")
    ):
        for way in ("forward", "backward"):
            assert f"{cell} {compute} B7 {way}" in names
    path = tmp_path / "gpu.jsonl"
    one = [check for check in checks if check[0] == "lstm float16 B7 forward"]
    spoiled = Spoiled(emulation, 1, (3, 2, 5))
    assert gpu_smoke.run(path, spoiled, one, lambda: None) == 1
    (record,) = [r for r in gpu_work.read(path) if "smoke" in r]
    assert "forward: y 0: " in record["error"]
    assert "first step 3, row 2, unit 5" in record["error"]
    assert "plan: path resident" in record["error"]
    assert "| lstm float16 B7 forward | Case(cell='lstm'" in gpu_work.report([record])
    # On record, and so not done again.
    assert gpu_smoke.run(path, emulation, one, lambda: None) == 0
    assert len(gpu_work.read(path)) == 2


def test_what_is_measured_beside_its_prediction() -> None:
    items = list(gpu_paper.items(None))
    names = [(group, name) for group, name, _, _ in items]
    assert len(set(names)) == len(names)
    assert {group.split()[0].rstrip(",") for group, _ in names} == {*"1235678", "4"}
    assert all(predicted for _, _, predicted, _ in items)
    assert gpu_paper.in_words({64: 0.5, 1024: 2.42}) == (
        "2.00 us a step, 0.372 ms beside (2.420 ms at 1024)"
    )
    table = (
        '==PROF== x\n"#","Address","Source","Warp Stall Sampling (All Samples)","Live"\n'
        '"0","7f","HMMA.16816 R1","30","9"\n"1","80","LDS R2, [R3]","1,970","8"\n'
    )
    assert gpu_paper.most_sampled(table) == ["98% LDS R2, [R3]", "2% HMMA.16816 R1"]
    assert gpu_paper.most_sampled("ncu: unknown option") == []
    record = {"paper": "2 sketch", "name": "LSTM", "measured": "0.7 us", "predicted": "0.63"}
    assert "| 2 sketch | LSTM | 0.7 us | 0.63 |" in gpu_work.report([record])


def test_the_sketch_by_numpy_takes_weights_as_the_tensor_cores_do() -> None:
    """One weight: member 3, warp 5, step 1, tile 2, rows 8 to 15, lane 9, value 6."""
    w = np.zeros((64, 8, 4, 3, 2, 32, 8), np.float16)
    w[3, 5, 1, 2, 1, 9, 6] = 1.0
    row, slot = 2 * 16 + 8 + 2, (5 * 4 + 1) * 32 + 8 + 6
    gate, unit, column = row // 12, 3 * 12 + row % 12, slot // 4 * 3 + slot % 4
    x = np.zeros((2, 2, 8, 4, 768), np.float32)
    x[0, 1, 4, :, column] = 3.0
    y = gpu_paper.sketch_by_numpy(w, x)
    assert gate == 3
    # The output gate of that unit is all that it changes, and its cell is 0.
    x[1, 1, 4, 2, unit] = 1.0
    y = gpu_paper.sketch_by_numpy(w, x)
    h = np.float64(np.float16(y[0, 1, 4, column]))
    assert y[1, 1, 4, unit] == pytest.approx(np.tanh(np.tanh(1) / 2) / (1 + np.exp(-h)))


def test_ratios_and_verdicts() -> None:
    point = {"hidden": 768, "batch": 16, "steps": 1024, "inputs": 768}
    times = {"rnnkern": 2.0, "cuDNN_float16": 2.2, "cuDNN_bfloat16": 2.8}
    records = [
        {"stage": "tests", "ok": True, "seconds": 5.0, "detail": "9 passed"},
        record(work(**point, compute="bfloat16"), **times),
        record(work(cell="gru", hidden=256), rnnkern=1.0, cuDNN_float16=2.5),
        record(work(cell="gru-after", hidden=128), rnnkern=1.0, cuDNN_float16=0.7),
        {**gpu_work.describe(work(cell="rnn")), "error": "out of memory"},
        {**record(work(ragged=True), rnnkern=1.0, rnnkern_padded=2.5), "live": 0.5},
    ]
    rows = {(row[0], row[1]): row for row in gpu_work.requirement_rows(records)}
    forward = rows["LSTM fp16/bf16, H 768, B 16, T 1024, forward", "cuDNN fp16"]
    assert (forward[3], forward[5]) == ("1.10", "1")
    assert forward[6].startswith("met")
    gru = rows["GRU, any reset, H >= 256, fp16/bf16", "cuDNN GRU fp16"]
    assert gru[3] == "2.50"
    assert gru[6] == "met; worst: gru H256 B1 T64 I64 L1 D1 float16 infer"
    bfloat16 = rows["LSTM bf16", "cuDNN bf16"]
    assert (bfloat16[3], bfloat16[6][:7]) == ("1.40", "NOT met")
    anything = rows["anything", "cuDNN, same precision"]
    assert (anything[3], anything[5], anything[6][:7]) == ("0.70", "3", "NOT met")
    assert rows["ragged", "padded, in proportion"][3] == "1.25"
    assert rows["true float32", "cuDNN fp32 (TF32 off)"][6] == "not measured"

    text = gpu_work.report(records)
    assert "| tests | ok | 5 | 9 passed |" in text
    assert "2.200 (1.10)" in text
    assert "rnnkern: out of memory" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("| LSTM")} == {8}


@pytest.mark.parametrize("options", [(), ("--here",), ("--python", sys.executable)])
def test_the_dry_run_lists_what_would_run(options: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu", "--dry-run", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    if not options:
        assert "RNNKERN_CUDA=ON" in done.stdout
        assert "RNNKERN_CUDA_CODE=sm_" in done.stdout
    if "--here" in options:
        assert "--no-index --no-deps" in done.stdout
        assert ("gpu_wheel.py --code sm_" in done.stdout) != ("of these sources" in done.stdout)
    assert "-W default -m gpu" in done.stdout
    for name in ("smoke", "tests", "memcheck", "racecheck", "paper", "scaling", *gpu_work.PARTS):
        assert f"\n{name}" in done.stdout
    assert str(gpu_work.flashrnn.__doc__) in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("quick", "most"), [(False, 500), (True, 180)])
def test_the_time_that_a_run_takes(quick: bool, most: int) -> None:
    """Of nine minutes, so that a build and some of the grid have room too."""
    found = gpu_run.stages("python", Path("x"), quick=quick)
    assert sum(stage.seconds for stage in found if not stage.fills) <= most
    assert [s.name for s in found][:4] == ["smoke", "tests", "ratios", "memcheck"]
    tests = ROOT / "tests"
    marked = {path.parent for path in tests.rglob("*.py") if "mark.gpu" in path.read_text()}
    assert marked == {tests / "devices", Path(__file__).parent}
    assert gpu_run.TESTS[0] == "devices/test_gpu.py"
    assert sum(part.seconds for name, part in gpu_work.PARTS.items() if name == "ratios") <= 90


class HostClock:
    """Times by nothing, so that the measuring itself can be tested."""

    def synchronize(self) -> None: ...

    def milliseconds(self, run: Any) -> float:
        run()
        return 1.0


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", list(gpu_work.gates()))
def test_contenders_agree(
    cell: str, directions: int, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(devices.base._ready, "cuda", EmulatedCuda(StandIn()))
    monkeypatch.setattr(gpu_measure, "_SECONDS", 0.0)
    for training in (False, True):
        case = gpu_measure.make_case(
            work(
                cell=cell,
                hidden=6,
                batch=4,
                steps=5,
                inputs=3,
                layers=2,
                compute="float32",
                training=training,
                directions=directions,
                ragged=ragged,
            )
        )
        ours = gpu_measure.rnnkern_contender(case)
        theirs = gpu_measure.torch_contender(case, "float32", "cpu")
        if gpu_measure._twin(cell) not in gpu_measure.KINDS:
            assert theirs == "no such cell"
            continue
        with using_threads(1):  # which PyTorch's idle threads would slow down
            found = gpu_measure.measure(case, [ours, theirs], {}, HostClock())
        assert found["absent"] == {}
        assert found["milliseconds"] == {"rnnkern": 1.0, "cuDNN float32": 1.0}
        assert json.loads(json.dumps(found)) == found
        assert ("live" in found) == ragged

        def wrong(ours: Any = ours) -> list[Any]:
            return [np.zeros_like(array) for array in ours.answer()]

        liar = SimpleNamespace(name="liar", compute="float32", run=theirs.run, answer=wrong)
        with using_threads(1):
            found = gpu_measure.measure(case, [ours, liar], {}, HostClock())
        assert "disagrees" in found["absent"]["liar"]
        assert found["milliseconds"] == {"rnnkern": 1.0}
