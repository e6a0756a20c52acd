# SPDX-License-Identifier: Apache-2.0
"""Planted faults: whether the tests find each of them.

    python tools/mutate                  # all in Python, some minutes
    python tools/mutate --kernels        # those in C++, after one build
    python tools/mutate --only NAME      # one
    python tools/mutate --list

Each fault of the lists beside this file is planted in a copy of the sources, never in the checkout,
and the tests that must find it are run there. It fails where one survives or no longer applies.
The copy takes the compiled extension that is installed. ``--kernels`` builds its own, for AVX2
alone, with CMake, Ninja and pybind11, which have to be installed: all faults are in it, and the
environment says which one counts ("mutant schemata": Untch, Offutt, Harrold, ISSTA 1993). That
copy stays in build/mutate, and the next run compiles what has changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from fault import ROOT, SWITCH, SWITCH_SOURCE, Fault, switched
from kernel_faults import KERNEL_FAULTS
from python_faults import PYTHON_FAULTS

import rnnkern._core

_COPIED = ("python/rnnkern", "tests", "bench", "tools", "pyproject.toml", "README.md", "docs")
_KERNEL_SOURCES = ("csrc", "CMakeLists.txt")
_SECONDS = 600  # that the tests may take with one fault

# An editable install finds the package by a hook of its own, which goes before PYTHONPATH; and most
# faults have to be found where PyTorch is not installed.
_SITE = """import os, sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
if "RNNKERN_WITHOUT_TORCH" in os.environ:
    sys.modules["torch"] = None
"""


class Copy:
    """A copy of the sources whose package the tests import."""

    def __init__(self, folder: Path, faults: Sequence[Fault] = ()) -> None:
        """With kernels of its own where faults are given, with all of these in them."""
        self._folder = folder
        planted = {
            ROOT / file: switched(
                (ROOT / file).read_text("utf-8"), (f for f in faults if f.file == file)
            ).encode()
            for file in {fault.file for fault in faults}
        }
        for name in (*_COPIED, *(_KERNEL_SOURCES if faults else ())):
            _copy(ROOT / name, folder / name, planted)
        self._package = folder / "python" / "rnnkern"
        installed = Path(rnnkern._core.__file__)
        for built in (*installed.parent.glob("*.so"), installed.with_name("build.json")):
            shutil.copy(built, self._package)
        (folder / "python" / "sitecustomize.py").write_text(_SITE)
        if faults:
            self._build()

    def _build(self) -> None:
        import pybind11

        switch, build = self._folder / "planted.h", self._folder / "build"
        _write(switch, SWITCH_SOURCE.encode())
        _run(
            "cmake", "-S", str(self._folder), "-B", str(build), "-G", "Ninja",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Faults", "-DCMAKE_CXX_FLAGS_FAULTS=-O1",  # compiled sooner
            f"-DCMAKE_CXX_FLAGS=-include {switch}",
            "-DRNNKERN_ISAS=avx2", "-DRNNKERN_CUDA=OFF",
        )  # fmt: skip
        _run("cmake", "--build", str(build))
        _run("cmake", "--install", str(build), "--prefix", str(self._folder / "python"))

    def test(
        self,
        tests: Sequence[str],
        *,
        torch: bool,
        fault: Fault | None = None,
        seconds: float | None = _SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run tests in the copy, with that fault if it was built with faults."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._folder / "python"),
            "HYPOTHESIS_PROFILE": "planted",
        }
        if fault is not None:
            environment[SWITCH.upper()] = str(fault.number)
        if not torch:
            environment["RNNKERN_WITHOUT_TORCH"] = "1"
        options = ("-q", "-x", "-p", "no:cacheprovider", "--tb=short")
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Within, the fault stands in the copy's text."""
        path = self._folder / fault.file
        text = path.read_text("utf-8")
        path.write_text(fault.planted(text), "utf-8")
        try:
            yield
        finally:
            path.write_text(text, "utf-8")


def _copy(source: Path, target: Path, planted: Mapping[Path, bytes]) -> None:
    """A file or a folder; what stands there is written to only where it differs."""
    files = {target: source}
    if source.is_dir():
        files = {
            target / path.relative_to(source): path
            for path in source.rglob("*")
            if path.is_file() and path.suffix not in (".so", ".pyc")
        }
    for gone in {path for path in target.rglob("*") if path.is_file()} - files.keys():
        gone.unlink()
    for to, path in files.items():
        _write(to, planted.get(path) or path.read_bytes())


def _write(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def _try_python(faults: Sequence[Fault], jobs: int) -> list[Fault]:
    """Those that were not found, each planted in the text of a copy: one job a copy."""
    with tempfile.TemporaryDirectory(prefix="rnnkern-mutate.") as folder:
        free = [Copy(Path(folder) / str(k)) for k in range(jobs)]
        _try_none(free[0], faults)

        def test(fault: Fault) -> subprocess.CompletedProcess[str]:
            copy = free.pop()
            try:
                with copy.planted(fault):
                    return copy.test(fault.tests, torch=fault.peers)
            finally:
                free.append(copy)

        return _try_all(faults, jobs, test)


def _try_kernels(faults: Sequence[Fault], jobs: int) -> list[Fault]:
    """Those that were not found, of a build that has them all."""
    began = time.monotonic()
    copy = Copy(ROOT / "build" / "mutate", KERNEL_FAULTS)
    print(f"{time.monotonic() - began:5.1f} s  the build with all of them", flush=True)
    _try_none(copy, faults)
    return _try_all(faults, jobs, lambda f: copy.test(f.tests, torch=f.peers, fault=f))


def _try_all(
    faults: Sequence[Fault], jobs: int, test: Callable[[Fault], subprocess.CompletedProcess[str]]
) -> list[Fault]:
    """Those that were not found; a line is printed for each."""

    def attempt(fault: Fault) -> str:
        began = time.monotonic()
        try:
            outcome = _outcome(fault, test(fault))
        except subprocess.TimeoutExpired:
            outcome = f"the tests took more than {_SECONDS} s"
        seconds = f"{time.monotonic() - began:5.1f} s"
        print(f"{seconds}  {fault.name}: {outcome or 'found'}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(attempt, faults))
    return [fault for fault, outcome in zip(faults, outcomes, strict=True) if outcome]


def _try_none(copy: Copy, faults: Sequence[Fault]) -> None:
    """The tests pass where no fault counts."""
    for torch in (False, True):
        chosen = sorted({test for f in faults for test in f.tests if f.peers == torch})
        done = copy.test(chosen, torch=torch, seconds=None) if chosen else None
        if done is not None and done.returncode != 0:
            raise SystemExit(f"the tests fail without a fault:\n{done.stdout}{done.stderr}")


def _outcome(fault: Fault, done: subprocess.CompletedProcess[str]) -> str:
    """What became of it: "" where its tests found it."""
    if done.returncode == 1 and " failed" in done.stdout:
        return ""
    if done.returncode == 0:
        return f"SURVIVED {', '.join(fault.tests)}\n{done.stdout.splitlines()[-1]}"
    return f"the tests did not run:\n{done.stdout}{done.stderr}"


def main() -> int:
    """0 where every fault that was tried was found."""
    parser = argparse.ArgumentParser(
        description="Plant faults and see whether the tests find them."
    )
    parser.add_argument("--kernels", action="store_true", help="the faults in C++")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one, may be repeated")
    parser.add_argument("--list", action="store_true", help="list the faults and try none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args()
    faults = [*PYTHON_FAULTS, *KERNEL_FAULTS]
    if options.only:
        unknown = set(options.only) - {fault.name for fault in faults}
        if unknown:
            parser.error(f"no fault is called {', '.join(sorted(unknown))}")
        faults = [fault for fault in faults if fault.name in options.only]
    elif not options.list:
        faults = KERNEL_FAULTS if options.kernels else PYTHON_FAULTS
    if options.list:
        for fault in faults:
            print(f"{fault.name:40} {fault.file}: {', '.join(fault.tests)}")
        return 0
    able = [fault for fault in faults if not fault.peers or find_spec("torch")]
    for fault in sorted(set(faults) - set(able), key=lambda fault: fault.name):
        print(f"not tried, as PyTorch is not here: {fault.name}")
    lost = []
    for attempt, chosen in (
        (_try_kernels, [fault for fault in able if fault.file.startswith("csrc/")]),
        (_try_python, [fault for fault in able if not fault.file.startswith("csrc/")]),
    ):
        if chosen:
            lost += attempt(chosen, min(options.jobs, len(chosen)))
    print(f"{len(able) - len(lost)} of {len(able)} faults found")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
