# SPDX-License-Identifier: Apache-2.0
"""bench/gpu's stages without a GPU: crashes, limits, what is on record, and how a run ends."""

from __future__ import annotations

import fcntl
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

gpu_work: Any = pytest.importorskip("gpu_work", reason="bench is not in an sdist")
gpu_run: Any = pytest.importorskip("gpu_run")

ROOT = Path(__file__).parents[2]


def run_of(path: Path, seconds: float = 60.0) -> Any:
    return gpu_run.Run(path, seconds, {"PYTHONPATH": str(ROOT / "bench")})


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def test_a_crash_is_put_on_record_and_passed(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    crash = (
        "import os, sys, gpu_work, pathlib; p = pathlib.Path(sys.argv[1]);"
        "left = gpu_work.todo('flashrnn', gpu_work.read(p));"
        "about = gpu_work.describe(left[0]);"
        "sys.exit(0) if len(left) < 14 else None\n"
        "with gpu_work.begun(p, about, 9): print('going', flush=True); os._exit(7)"
    )
    stage = gpu_run.Stage("flashrnn", python(crash, str(path)), 60, listed=True)
    assert not run_of(path).run(stage, 0.0)
    records = gpu_work.read(path)
    errors = [r for r in records if "error" in r]
    assert [r["key"] for r in errors] == [w.key for w in gpu_work.todo("flashrnn", [])[:3]]
    assert errors[0]["error"] == "the process ended with code 7: going"
    assert records[-1]["detail"].startswith("3 crashes; ")
    assert "rnnkern: the process ended with code 7" in path.with_suffix(".md").read_text()


def test_what_broke_the_device_is_passed_too(tmp_path: Path) -> None:
    """It is on record as wrong, and then the process ends: the others are yet to come."""
    path = tmp_path / "gpu.jsonl"
    code = (
        "import sys, gpu_work, pathlib; p = pathlib.Path(sys.argv[1])\n"
        "done = [r['key'] for r in gpu_work.read(p) if 'key' in r]\n"
        "for key in 'abc':\n"
        "  if key in done: continue\n"
        "  with gpu_work.begun(p, {'key': key}, 9):\n"
        "    gpu_work.append(p, {'key': key, 'was': 'wrong' if key == 'a' else 'right'})\n"
        "    if key == 'a': sys.exit('sticky')\n"
        "print('all done')"
    )
    assert not run_of(path).run(gpu_run.Stage("x", python(code, str(path)), 30, listed=True), 0.0)
    records = gpu_work.read(path)
    assert [(r["key"], r["was"]) for r in records if "key" in r] == [
        ("a", "wrong"),
        ("b", "right"),
        ("c", "right"),
    ]
    assert records[-1]["detail"] == "1 crashes; all done"


def test_a_work_that_does_not_end_ends_its_process(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    hang = (
        "import sys, time, gpu_work, pathlib; p = pathlib.Path(sys.argv[1]);"
        "done = [r['key'] for r in gpu_work.read(p) if 'key' in r]\n"
        "if 'one' not in done:\n"
        "  with gpu_work.begun(p, {'key': 'one'}, 0.5): time.sleep(60)"
    )
    assert not run_of(path).run(gpu_run.Stage("x", python(hang, str(path)), 30, listed=True), 0.0)
    (error,) = [r for r in gpu_work.read(path) if "error" in r]
    assert error["key"] == "one"
    assert "time.sleep" in path.with_suffix(".log").read_text() or "Timeout" in error["error"]


def test_a_process_that_cannot_begin_is_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    stage = gpu_run.Stage("ratios", python("raise SystemExit('no CUDA device')"), 60, listed=True)
    run_of(path).run(stage, 0.0)
    assert gpu_run.latest(gpu_work.read(path)) == {"ratios": False}
    assert gpu_work.read(path)[0]["detail"] == "no CUDA device"


def test_a_stage_out_of_time_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of the process holds a lock as long as it lives."""
    monkeypatch.setattr(gpu_run, "_SHORTEST", 0.0)
    path, lock = tmp_path / "gpu.jsonl", tmp_path / "lock"
    code = (
        f"import fcntl, os, time; file = open({str(lock)!r}, 'w')\n"
        "if os.fork() == 0: fcntl.flock(file, fcntl.LOCK_EX); print('begun', flush=True)\n"
        "time.sleep(600)"
    )
    assert not run_of(path).run(gpu_run.Stage("tests", python(code), 3.0), 0.0)
    assert gpu_work.read(path)[0]["detail"] == "not done after 3 s: begun"
    assert "######## tests" in path.with_suffix(".log").read_text()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for ever where the child lives on


def test_nothing_is_begun_without_time(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    stage = gpu_run.Stage("grid", python("print('went')"), 600, fills=True)
    assert not run_of(path, 64.0).run(stage, 60.0)
    assert gpu_work.read(path) == []  # so that a resumed run does it
    assert run_of(path, 66.0).run(stage, 60.0)


def test_green_although_nothing_ran_is_not_green(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    for said, ok in (("12 passed, 3 skipped", True), ("900 skipped", False)):
        stage = gpu_run.Stage("tests", python(f"print({said!r})"), 60, expects=r"\b[1-9]\d* passed")
        assert run_of(path).run(stage, 0.0) == ok


def test_what_went_wrong_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    right = [{"key": "smoke a", "smoke": "a"}, {"stage": "tests", "ok": False, "seconds": 1.0}]
    wrong = [
        {"begun": "smoke b", "about": {}},
        {"key": "smoke b", "smoke": "b", "error": "y 0"},
        {"test": "t", "detail": "y"},
    ]
    gpu_run.forget_failures(path)
    for record in [*wrong, *right]:
        gpu_work.append(path, record)
    gpu_run.forget_failures(path)
    assert gpu_work.read(path) == right


def test_a_run_without_a_gpu_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gpu_run,
        "stages",
        lambda python, path, quick: [
            gpu_run.Stage("tests", (python, "-c", "print('fine')"), 60),
            gpu_run.Stage("memcheck", (python, "-c", "print('bad'); raise SystemExit(9)"), 60),
            gpu_run.Stage("racecheck", ("true",), 60, "no-such-tool"),
            gpu_run.Stage("grid", ("/no/such/program",), 60),
        ],
    )
    path = tmp_path / "results" / "gpu.jsonl"
    arguments = ["--python", sys.executable, "--results", str(path.with_suffix(""))]
    terminated = signal.getsignal(signal.SIGTERM)
    assert gpu_run.main(arguments) == 1
    first = {r["stage"]: r for r in gpu_work.read(path)}
    assert (first["tests"]["ok"], first["tests"]["detail"]) == (True, "fine")
    assert (first["memcheck"]["ok"], first["memcheck"]["detail"]) == (False, "bad")
    assert first["racecheck"]["detail"] == "no-such-tool is not there"
    assert "/no/such/program" in first["grid"]["detail"]
    assert "| tests | ok |" in path.with_suffix(".md").read_text()
    capsys.readouterr()
    assert gpu_run.main([*arguments, "--resume"]) == 1
    assert "tests ..." not in capsys.readouterr().out
    assert gpu_run.main(arguments) == 1
    assert path.with_suffix(".previous.jsonl").exists()
    assert len(list(path.parent.iterdir())) <= 8
    assert signal.getsignal(signal.SIGTERM) is terminated


def test_a_run_that_is_terminated_ends_what_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, signal, time\n"
        "open('started', 'w').close()\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)  # where stages run
    monkeypatch.setattr(
        gpu_run,
        "stages",
        lambda python, path, quick: [gpu_run.Stage("tests", (python, "-c", code), 60)],
    )
    terminated = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        gpu_run.main(["--python", sys.executable, "--results", str(tmp_path / "gpu")])
    assert ended.value.code == 1
    assert (tmp_path / "started").exists()
    assert signal.getsignal(signal.SIGTERM) is terminated
