# SPDX-License-Identifier: Apache-2.0
"""The stages of bench/gpu, most valuable first; each leaves a record that a resumed run skips."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_work
from gpu_work import QUICK, append, minutes, read

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
ENVIRONMENT = ROOT / "build" / "gpu-environment"  # made with pip, where there is a registry
SITE = ROOT / "build" / "gpu-site"  # --here: what this interpreter lacks, rnnkern alone
_MOST_CRASHES = 8  # of a stage that works through a list, before it is left alone
_LONGEST_DETAIL = 300  # characters of a stage's output in its record
_SHORTEST = 5.0  # seconds, below which no stage is begun
# The most telling first: real sizes, then each kernel alone, then all that is Python.
_FIRST = ("gpu", "cuda_kernels", "cuda_wavefronts", "cuda_plans")


def _place(name: str) -> tuple[int, str]:
    """Where among the tests a file of tests/devices stands."""
    subject = name.removeprefix("test_").removesuffix(".py")
    return _FIRST.index(subject) if subject in _FIRST else len(_FIRST), name


TESTS = tuple(
    f"devices/{name}"
    for name in sorted((p.name for p in (ROOT / "tests/devices").glob("test_*.py")), key=_place)
)
SANITIZERS = {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": r"SUMMARY: 0 hazards"}


@dataclass(frozen=True)
class Stage:
    """A command with a limit of its own.

    Attributes:
        name: For the record.
        command: What runs.
        seconds: At most; whatever it has started is killed then.
        needs: A program that must be found.
        expects: A pattern that the output of a stage that went well has.
        listed: It works through a list that is on record, so that it can go on behind a crash.
        fills: It takes whatever time there is, but for the stages behind it.
        environment: Variables of its own.

    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: str | None = None
    expects: str = ""
    listed: bool = False
    fills: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def environment_stages(code: str) -> list[Stage]:
    """An environment of its own, from a registry: PyTorch, CuPy and rnnkern built for `code`."""
    python = str(ENVIRONMENT / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet")
    cmake = "--config-settings=cmake.define."
    flags = (f"{cmake}RNNKERN_CUDA=ON", f"{cmake}RNNKERN_CUDA_CODE={code}")
    return [
        Stage("environment", (sys.executable, "-m", "venv", str(ENVIRONMENT)), 60),
        Stage("peers", (*pip, "torch", "pytest-xdist", "pytest-timeout"), 900),
        Stage("build", (*pip, *flags, f"{ROOT}[test,cuda13]"), 900),
    ]


def here_stages(code: str) -> list[Stage]:
    """This interpreter, and a wheel made beforehand; where it is of other sources, one made now."""
    sys.path.insert(0, str(ROOT / "tools"))
    import gpu_wheel

    made, what = gpu_wheel.find()
    print(what, flush=True)
    found = []
    if made is None:
        # The one instruction set that compiles in seconds.
        options = ("--code", code, "--isas", "avx2")
        tool = str(ROOT / "tools" / "gpu_wheel.py")
        found.append(Stage("build", (sys.executable, tool, *options), 120))
    pip: tuple[str, ...]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    pip += ("--no-compile", "--disable-pip-version-check", "--find-links", str(gpu_wheel.FOLDER))
    return [*found, Stage("install", (*pip, "--target", str(SITE), "rnnkern"), 30)]


def stages(python: str, path: Path, *, quick: bool) -> list[Stage]:
    """What follows once `python` has all there is to have; records go to `path`."""

    def script(name: str, *arguments: str) -> tuple[str, ...]:
        return (python, str(BENCH / name), *arguments)

    scale = QUICK if quick else 1.0
    # What another library warns of on some machine is no failure of ours.
    pytest: tuple[str, ...]
    pytest = (python, "-m", "pytest", "-v", "--no-header", "-W", "default", "-m", "gpu")
    pytest += ("-p", "no:cacheprovider", "--tb=short", "-rfE")
    if python != sys.executable or find_spec("xdist"):
        pytest += ("-n", str(min(8, os.cpu_count() or 1)))
    if python != sys.executable or find_spec("pytest_timeout"):
        # By a thread, which ends the process: a kernel that does not end cannot be interrupted.
        pytest += ("--timeout=40", "--timeout-method=thread")
    of_tests = {"RNNKERN_RESULTS": str(path), "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    file = str(path)
    found = [
        Stage("smoke", script("gpu_smoke.py", file), 60, expects=", 0 do not, 0 are", listed=True),
        Stage(
            "tests",
            (*pytest, *(str(ROOT / "tests" / name) for name in TESTS)),
            60 if quick else 120,
            expects=r"\b[1-9]\d* passed",
            environment=of_tests,
        ),
        Stage("ratios", script("gpu_measure.py", file, "ratios"), 90 * scale, listed=True),
    ]
    for tool in ("memcheck",) if quick else SANITIZERS:
        sanitizer = (
            *("compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
            *("--print-limit", "5", "--kernel-name", "kns=rnnkern"),
        )
        command = (*sanitizer, *script("gpu_sanitize.py"))
        found.append(Stage(tool, command, 30, "compute-sanitizer", SANITIZERS[tool]))
    if not quick:
        found.append(Stage("paper", script("gpu_paper.py", file), 75, listed=True))
    parts = tuple(name for name in gpu_work.PARTS if name != "ratios")
    command = script("gpu_measure.py", file, *parts)
    found.append(Stage("grid", command, 600 * scale, listed=True, fills=True))
    if not quick:
        found.append(Stage("scaling", script("cpu_scaling.py", file), 60, listed=True))
    return found


class Run:
    """One run: where its results go, and how long it may still take."""

    def __init__(self, path: Path, seconds: float, environment: Mapping[str, str]) -> None:
        self.path, self.log = path, path.with_suffix(".log")
        self._end = time.monotonic() + seconds
        self._environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RNNKERN_REQUIRE_GPU": "1",  # green although nothing ran would be the worst of results
            **environment,
        }
        path.parent.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def write_report(self) -> None:
        """The tables, as far as there are records."""
        text = gpu_work.report(read(self.path))
        self.path.with_suffix(".md").write_text(text, encoding="utf-8")

    def run(self, stage: Stage, reserved: float) -> bool:
        """Run it within its limit and what is left but `reserved`; whether it went well."""
        seconds = min(stage.seconds, self.left() - reserved)
        if seconds < _SHORTEST:
            print(f"{stage.name}: no time left", flush=True)
            return False
        print(f"{stage.name} ...", end=" ", flush=True)
        begin = time.monotonic()
        ok, detail = False, f"{stage.needs} is not there"
        if stage.needs is None or shutil.which(stage.needs) is not None:
            ok, detail = self._attempts(stage, begin + seconds)
        took = time.monotonic() - begin
        append(self.path, {"stage": stage.name, "ok": ok, "seconds": took, "detail": detail})
        print(f"{'ok' if ok else 'FAILED'}, {took:.0f} s: {detail}", flush=True)
        self.write_report()
        return ok

    def _attempts(self, stage: Stage, end: float) -> tuple[bool, str]:
        """Run it, and where it is listed again behind each crash."""
        crashes = 0
        while True:
            before = len(read(self.path))
            code, output = self._once(stage, end)
            end_of_it = output.strip()[-_LONGEST_DETAIL:]
            if code is None:
                return False, f"not done after {stage.seconds:.0f} s: {end_of_it}"
            if code == 0 and not re.search(stage.expects, output):
                return False, f"without {stage.expects!r}: {end_of_it}"
            if code == 0:
                last = output.strip().splitlines()[-1:] or [""]
                return crashes == 0, f"{crashes} crashes; {last[0]}" if crashes else last[0]
            if not stage.listed or not self._pass_over(before, code, end_of_it):
                return False, end_of_it or f"code {code}"
            crashes += 1
            if crashes == _MOST_CRASHES or end - time.monotonic() < _SHORTEST:
                return False, f"given up after {crashes} crashes: {end_of_it}"

    def _pass_over(self, before: int, code: int, said: str) -> bool:
        """Put what a crash has cut short on record as done; whether anything had been begun."""
        records = read(self.path)
        begun = [record for record in records[before:] if "begun" in record]
        finished = {record["key"] for record in records if "key" in record}
        # What has left a device that fails every later call is on record already.
        if begun and begun[-1]["begun"] not in finished:
            reason = f"the process ended with code {code}: {said[-200:]}"
            append(self.path, {**begun[-1]["about"], "error": reason})
        return bool(begun)

    def _once(self, stage: Stage, end: float) -> tuple[int | None, str]:
        """The exit code, None when it was killed at `end`, and the output, which is in the log."""
        environment = {**self._environment, **stage.environment}
        environment["RNNKERN_SECONDS"] = f"{max(end - time.monotonic() - 2.0, 1.0):.0f}"
        with self.log.open("ab") as log:
            log.write(f"\n######## {stage.name}: {' '.join(stage.command)}\n".encode())
            log.flush()
            begin = log.tell()
            try:
                process = subprocess.Popen(
                    stage.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                return 127, str(error)
            code: int | None
            try:
                code = process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                # Whatever it has started goes with it: on the GPU it would slow all others down.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        with self.log.open("rb") as log:
            log.seek(begin)
            return code, log.read().decode(errors="replace")


def first_gpu() -> tuple[str, str]:
    """The first GPU's name, as a file may have it, and its kind of machine code."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        name, capability = done.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return "none", "sm_90"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug, f"sm_{capability.strip().replace('.', '')}"


def show_plan(all_of_them: list[Stage], path: Path) -> None:
    """What a run would do."""
    print(f"results: {path}, {path.with_suffix('.log').name} and {path.with_suffix('.md').name}")
    for stage in all_of_them:
        needs = f", if there is a {stage.needs}" if stage.needs else ""
        most = "whatever is left" if stage.fills else f"at most {minutes(stage.seconds)}"
        print(f"\n{stage.name}, {most}{needs}:\n  {' '.join(stage.command)}")
    for name, part in gpu_work.PARTS.items():
        print(f"\n{name}, as much as {part.seconds:.0f} s allow:\n  {part.works.__doc__}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/gpu",
        description="Installs rnnkern for this machine's GPU, tries every cell and mode, runs the "
        "tests marked gpu and compute-sanitizer, times every benchmark against cuDNN (PyTorch) and "
        "FlashRNN, and writes tables with the ratios that must be reached.",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--here",
        action="store_true",
        help="use the interpreter that runs this and a wheel of tools/gpu_wheel.py, no registry; "
        "without one of these sources it is built first",
    )
    place.add_argument(
        "--python",
        metavar="FILE",
        help="an interpreter that has rnnkern, CuPy, pytest and the peers: nothing is installed",
    )
    parser.add_argument("--quick", action="store_true", help="about 4 minutes")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all stages together (9)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the results that there are; what went wrong is tried again",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would run, and end")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR/FILE",
        help="where FILE.jsonl, FILE.log and FILE.md go (bench/results/gpu-NAME)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every stage went well."""
    options = parse(arguments)
    name, code = first_gpu()
    path = (options.results or BENCH / "results" / f"gpu-{name}").with_suffix(".jsonl").absolute()
    before: list[Stage] = []
    python, environment = options.python or str(ENVIRONMENT / "bin" / "python"), {}
    if options.here:
        python = sys.executable
        both = (str(SITE), os.environ.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, both))
        before = here_stages(code)
    elif options.python is None:
        before = environment_stages(code)
    after = stages(python, path, quick=options.quick)
    if options.dry_run:
        show_plan([*before, *after], path)
        return 0
    if path.exists() and not options.resume:
        path.replace(path.with_suffix(".previous.jsonl"))
        path.with_suffix(".log").unlink(missing_ok=True)
    if options.resume:
        forget_failures(path)
    if options.here:
        shutil.rmtree(SITE, ignore_errors=True)  # and what makes it runs again
    # The wait for a registry does not count.
    seconds = 60.0 * options.minutes + (0 if options.here else sum(s.seconds for s in before))
    with exit_when_terminated():
        return carry_out(Run(path, seconds, environment), before, after, again=options.here)


@contextmanager
def exit_when_terminated() -> Iterator[None]:
    """Within, SIGTERM ends this process by an exception, so that what it runs is ended too."""
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def carry_out(run: Run, before: list[Stage], after: list[Stage], *, again: bool) -> int:
    """Every stage that has not passed, those before it in any case `again`; the exit code."""
    path = run.path
    passed = {record["stage"] for record in read(path) if record.get("ok")}
    for stage in before:
        if (again or stage.name not in passed) and not run.run(stage, 0.0):
            return 1
    for index, stage in enumerate(after):
        # What works through a list may have had no time for all of it.
        if stage.name in passed and not stage.listed:
            continue
        reserved = sum(later.seconds for later in after[index + 1 :]) if stage.fills else 0.0
        run.run(stage, reserved)
    run.write_report()
    records = read(path)
    for row in gpu_work.requirement_rows(records):
        print(" | ".join(row))
    print(f"all tables: {path.with_suffix('.md')}")
    return 0 if all(latest(records).values()) else 1


def forget_failures(path: Path) -> None:
    """What went wrong is tried again, for something was mended meanwhile."""
    kept = [r for r in read(path) if not {"error", "test", "begun"} & r.keys()]
    path.unlink(missing_ok=True)
    for record in kept:
        append(path, record)


def latest(records: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether each stage went well the last time."""
    return {record["stage"]: record["ok"] for record in records if "stage" in record}
