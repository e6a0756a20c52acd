"""The stages of bench/gpu, one after another; each leaves a record, and a resumed run skips it."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_work
from gpu_work import PARTS, QUICK, append, minutes, read, todo

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
ENVIRONMENT = ROOT / "build" / "gpu-environment"
_MOST_CRASHES = 5  # of the measuring process, before it is left alone
_LONGEST_DETAIL = 300  # characters of a failed stage's output in its record


@dataclass(frozen=True)
class Stage:
    """Some commands, run in turn until one fails, within some seconds; `needs` must be found."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    seconds: float
    needs: str | None = None


def stages(python: str | None, code: str, *, quick: bool) -> list[Stage]:
    """What comes before the measuring; `python` is an interpreter that has all there is to have.

    `code` names the GPUs to make machine code for.
    """
    found: list[Stage] = []
    if python is None:
        pip = (str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet")
        cmake = "--config-settings=cmake.define."
        flags = (f"{cmake}RNNKERN_CUDA=ON", f"{cmake}RNNKERN_CUDA_CODE={code}")
        create = (sys.executable, "-m", "venv", str(ENVIRONMENT))
        found += [
            Stage("peers", (create, (*pip, "torch")), 900),
            Stage("build", ((*pip, *flags, f"{ROOT}[test,cuda13]"),), 900),
        ]
    interpreter = python or str(ENVIRONMENT / "bin" / "python")
    # What another library warns of on some machine is no failure of ours.
    pytest = (interpreter, "-m", "pytest", "-q", "-W", "default", "-m", "gpu", str(ROOT / "tests"))
    found.append(Stage("tests", (pytest,), 60 if quick else 100))
    for tool in ("memcheck",) if quick else ("memcheck", "racecheck", "synccheck"):
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        script = (interpreter, str(BENCH / "gpu_sanitize.py"))
        found.append(Stage(tool, ((*command, *script),), 35, "compute-sanitizer"))
    return found


def run_stage(stage: Stage) -> dict[str, Any]:
    """Its record: whether all went well, how long it took, and the end of what it said if not."""
    begin = time.perf_counter()
    ok, detail = True, ""
    if stage.needs is not None and shutil.which(stage.needs) is None:
        ok, detail = False, f"{stage.needs} is not there"
    for command in stage.commands if ok else ():
        left = stage.seconds - (time.perf_counter() - begin)
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=max(left, 1.0),
                cwd=ROOT,
                check=False,
            )
            output, ok = done.stdout + done.stderr, done.returncode == 0
        except subprocess.TimeoutExpired:
            output, ok = f"not done after {stage.seconds:.0f} s", False
        except OSError as error:
            output, ok = str(error), False
        lines = output.strip().splitlines()
        detail = lines[-1] if ok and lines else output.strip()[-_LONGEST_DETAIL:]
        if not ok:
            break
    return {
        "stage": stage.name,
        "ok": ok,
        "seconds": time.perf_counter() - begin,
        "detail": detail,
    }


def measure(path: Path, command: Sequence[str]) -> None:
    """Run the measuring process; when it crashes, put that on record and go on behind."""
    for _ in range(_MOST_CRASHES):
        before = len(read(path))
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode == 0:
            return
        records = read(path)
        begun = [record["begun"] for record in records[before:] if "begun" in record]
        finished = {record["key"] for record in records if "key" in record}
        if not begun:
            append(path, _failure(done.returncode))
            return
        if begun[-1] not in finished:
            (work,) = [
                work for part in PARTS for work in todo(part, records) if work.key == begun[-1]
            ][:1]
            reason = f"the process ended with code {done.returncode}"
            append(path, {**gpu_work.describe(work), "error": reason})
    append(path, _failure(None))


def _failure(code: int | None) -> dict[str, Any]:
    why = f"could not begin, code {code}" if code else f"given up after {_MOST_CRASHES} crashes"
    return {"stage": "measuring", "ok": False, "seconds": 0.0, "detail": why}


def first_gpu() -> tuple[str, str]:
    """The first GPU's name, as a file may have it, and its kind of machine code."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none", "sm_90"
    name, capability = done.stdout.splitlines()[0].rsplit(",", 1)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug, f"sm_{capability.strip().replace('.', '')}"


def show_plan(before: list[Stage], path: Path, scale: float) -> None:
    """What a run would do."""
    print(f"results: {path} and {path.with_suffix('.md')}")
    for stage in before:
        needs = f", if there is a {stage.needs}" if stage.needs else ""
        print(f"\n{stage.name}, at most {minutes(stage.seconds)}{needs}:")
        for command in stage.commands:
            print(f"  {' '.join(command)}")
    total = 0.0
    for name, part in PARTS.items():
        works, seconds = todo(name, read(path)), part.seconds * scale
        total += seconds
        print(f"\n{name}: {len(works)} works, as many as {seconds:.0f} s allow:")
        for work in works[:3]:
            print(f"  {work.key}")
        if len(works) > 3:
            print("  ...")
    print(f"\nmeasuring: {minutes(total)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every stage went well."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu",
        description="Builds rnnkern for this machine's GPU, runs the tests marked gpu and "
        "compute-sanitizer, times every benchmark against cuDNN (PyTorch) and FlashRNN, and writes "
        "tables with the ratios that must be reached.",
    )
    parser.add_argument("--quick", action="store_true", help="about 3 minutes, not 10, once built")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the results that there are"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and end")
    parser.add_argument(
        "--python",
        metavar="FILE",
        help="an interpreter that has rnnkern, CuPy, pytest and the peers: nothing is built",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="where records go (bench/results/gpu-NAME.jsonl)",
    )
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else 1.0
    name, code = first_gpu()
    path = options.results or BENCH / "results" / f"gpu-{name}.jsonl"
    before = stages(options.python, code, quick=options.quick)
    if options.dry_run:
        show_plan(before, path, scale)
        return 0
    if path.exists() and not options.resume:
        path.replace(path.with_suffix(".previous.jsonl"))
    passed = {record["stage"] for record in read(path) if record.get("ok")}
    for stage in before:
        if stage.name in passed:
            continue
        print(f"{stage.name} ...", end=" ", flush=True)
        record = run_stage(stage)
        append(path, record)
        print(
            f"{'ok' if record['ok'] else 'FAILED'}, {record['seconds']:.0f} s: {record['detail']}"
        )
        if stage.name == "build" and not record["ok"]:
            return 1
    interpreter = options.python or str(ENVIRONMENT / "bin" / "python")
    script = (str(BENCH / "gpu_measure.py"), str(path), "--scale", str(scale))
    measure(path, (interpreter, *script))
    records = read(path)
    path.with_suffix(".md").write_text(gpu_work.report(records), encoding="utf-8")
    for row in gpu_work.requirement_rows(records):
        print(" | ".join(row))
    print(f"all tables: {path.with_suffix('.md')}")
    return 0 if all(latest(records).values()) else 1


def latest(records: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether each stage went well the last time."""
    return {record["stage"]: record["ok"] for record in records if "stage" in record}
