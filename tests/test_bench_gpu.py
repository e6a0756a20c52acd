"""bench/gpu without a GPU: its grid, its records and resumption, its tables and its contenders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rnnkern import device

from conftest import using_threads
from emulation import EmulatedCuda, StandIn

gpu_work: Any = pytest.importorskip("gpu_work", reason="bench is not in an sdist")
gpu_run: Any = pytest.importorskip("gpu_run")
gpu_measure: Any = pytest.importorskip("gpu_measure")

ROOT = Path(__file__).parent.parent


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
    assert {w.compute for w in works["flashrnn"]} == set(gpu_work.COMPUTES)
    assert {w.inputs for w in works["flashrnn"]} == {gpu_work.FEW_INPUTS, 768}
    assert {(w.layers, w.directions) for w in works["layers"]} == {
        (n, d) for n in (1, 2, 4) for d in (1, 2)
    }
    rows = {(w.cell, w.hidden, w.batch, w.steps) for w in works["deepbench"]}
    assert len(rows) == 52
    assert {("gru_after", 2816, 32, 187), ("lstm", 4096, 128, 25), ("rnn", 2560, 16, 50)} <= rows
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


def test_a_crash_is_put_on_record_and_passed(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    crash = (
        "import sys, gpu_work, pathlib; p = pathlib.Path(sys.argv[1]);"
        "left = gpu_work.todo('flashrnn', gpu_work.read(p));"
        "sys.exit(0) if len(left) < 14 else gpu_work.append(p, {'begun': left[0].key});"
        "sys.exit(7)"
    )
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); {crash}"
    gpu_run.measure(path, [sys.executable, "-c", code, str(path)])
    errors = [r for r in gpu_work.read(path) if "error" in r]
    assert [r["key"] for r in errors] == [w.key for w in gpu_work.todo("flashrnn", [])[:3]]
    assert errors[0]["error"] == "the process ended with code 7"


def test_a_process_that_cannot_begin_is_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    gpu_run.measure(path, [sys.executable, "-c", "raise SystemExit(3)"])
    assert gpu_run.latest(gpu_work.read(path)) == {"measuring": False}
    assert "code 3" in gpu_work.read(path)[0]["detail"]


def test_ratios_and_verdicts() -> None:
    point = {"hidden": 768, "batch": 16, "steps": 1024, "inputs": 768}
    times = {"rnnkern": 2.0, "cuDNN_float16": 2.2, "cuDNN_bfloat16": 2.8}
    records = [
        {"stage": "tests", "ok": True, "seconds": 5.0, "detail": "9 passed"},
        record(work(**point, compute="bfloat16"), **times),
        record(work(cell="gru_before", hidden=256), rnnkern=1.0, cuDNN_float16=2.5),
        record(work(cell="gru_after", hidden=128), rnnkern=1.0, cuDNN_float16=0.7),
        {**gpu_work.describe(work(cell="rnn")), "error": "out of memory"},
        {**record(work(ragged=True), rnnkern=1.0, rnnkern_padded=2.5), "live": 0.5},
    ]
    rows = {(row[0], row[1]): row for row in gpu_work.requirement_rows(records)}
    forward = rows["LSTM fp16/bf16, H 768, B 16, T 1024, forward", "cuDNN fp16"]
    assert (forward[3], forward[5]) == ("1.10", "1")
    assert forward[6].startswith("met")
    gru = rows["GRU, any reset, H >= 256, fp16/bf16", "cuDNN GRU fp16"]
    assert gru[3] == "2.50"
    assert gru[6] == "met; worst: gru_before H256 B1 T64 I64 L1 D1 float16 infer"
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


def test_the_dry_run_lists_what_would_run() -> None:
    done = subprocess.run(
        [ROOT / "bench" / "gpu", "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RNNKERN_CUDA=ON" in done.stdout
    assert "RNNKERN_CUDA_CODE=sm_" in done.stdout
    assert "-m pytest -q -W default -m gpu" in done.stdout
    for name in ("memcheck", "racecheck", "synccheck", *gpu_work.PARTS):
        assert f"\n{name}" in done.stdout
    assert "lstm H768 B16 T1024" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("quick", "most"), [(False, 480), (True, 180)])
def test_the_time_that_a_run_takes(quick: bool, most: int) -> None:
    """Ten minutes and three, of which the build may have two; quick runs find it built."""
    before = sum(stage.seconds for stage in gpu_run.stages("python", "sm_90", quick=quick))
    measuring = sum(part.seconds for part in gpu_work.PARTS.values())
    assert before + measuring * (gpu_work.QUICK if quick else 1.0) <= most


def test_a_run_without_a_gpu_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gpu_run,
        "stages",
        lambda python, code, quick: [
            gpu_run.Stage("tests", ((python, "-c", "print('fine')"),), 60),
            gpu_run.Stage("memcheck", ((python, "-c", "print('bad'); raise SystemExit(9)"),), 60),
            gpu_run.Stage("racecheck", (("true",),), 60, "no-such-tool"),
            gpu_run.Stage("synccheck", ((python, "-c", "import time; time.sleep(60)"),), 0.2),
        ],
    )
    monkeypatch.setattr(gpu_run, "BENCH", tmp_path)  # where there is nothing to measure with
    path = tmp_path / "gpu.jsonl"
    arguments = ["--python", sys.executable, "--results", str(path)]
    assert gpu_run.main(arguments) == 1
    first = {r["stage"]: r for r in gpu_work.read(path)}
    assert (first["tests"]["ok"], first["tests"]["detail"]) == (True, "fine")
    assert (first["memcheck"]["ok"], first["memcheck"]["detail"]) == (False, "bad")
    assert first["racecheck"]["detail"] == "no-such-tool is not there"
    assert "not done after" in first["synccheck"]["detail"]
    assert not first["measuring"]["ok"]
    assert "| tests | ok |" in path.with_suffix(".md").read_text()
    capsys.readouterr()
    assert gpu_run.main([*arguments, "--resume"]) == 1
    assert "tests ..." not in capsys.readouterr().out
    assert gpu_run.main(arguments) == 1
    assert path.with_suffix(".previous.jsonl").exists()


class HostClock:
    """Times by nothing, so that the measuring itself can be tested."""

    def synchronize(self) -> None: ...

    def milliseconds(self, run: Any) -> float:
        run()
        return 1.0


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", list(gpu_work.GATES))
def test_contenders_agree(
    cell: str, directions: int, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(device._ready, "cuda", EmulatedCuda(StandIn()))
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
        if cell == "simplified_gru":
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
