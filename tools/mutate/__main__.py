# SPDX-License-Identifier: Apache-2.0
"""Planted faults: whether the tests find each of them.

    python tools/mutate                  # all in Python, some minutes
    python tools/mutate --kernels        # those in C++: each is compiled anew
    python tools/mutate --only NAME      # one, with the tests' output
    python tools/mutate --list

Each fault of the lists beside this file is planted in a copy of the sources, never in the checkout,
and the tests that must find it are run there. It fails where one survives or no longer applies.
The copy takes the compiled extension that is installed; ``--kernels`` builds its own with CMake,
Ninja and pybind11, which have to be installed, for AVX2 alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from fault import ROOT, Fault
from kernel_faults import KERNEL_FAULTS
from python_faults import PYTHON_FAULTS

import rnnkern._core

_COPIED = ("python/rnnkern", "tests", "bench", "tools", "pyproject.toml", "README.md", "docs")
_KERNEL_SOURCES = ("csrc", "CMakeLists.txt")
_SECONDS = 600  # that the tests of one fault may take

# An editable install finds the package by a hook of its own, which goes before PYTHONPATH; and most
# faults have to be found where PyTorch is not installed.
_SITE = """import os, sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
if "RNNKERN_WITHOUT_TORCH" in os.environ:
    sys.modules["torch"] = None
"""


class Copy:
    """A copy of the sources whose package the tests import."""

    def __init__(self, folder: Path, *, kernels: bool) -> None:
        self._folder = folder
        for name in (*_COPIED, *(_KERNEL_SOURCES if kernels else ())):
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(source, target, ignore=ignored)
            else:
                shutil.copy(source, target)
        self._package = folder / "python" / "rnnkern"
        installed = Path(rnnkern._core.__file__)
        for built in (*installed.parent.glob("*.so"), installed.with_name("build.json")):
            shutil.copy(built, self._package)
        (folder / "python" / "sitecustomize.py").write_text(_SITE)
        self._core = self._package / installed.name
        self._build = folder / "build" if kernels else None
        if kernels:
            self._configure()

    def test(
        self, tests: Sequence[str], *, torch: bool = False, seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run tests in the copy, its kernels built first where it has its own."""
        if self._build is not None:
            self._run("cmake", "--build", str(self._build), "--target", "_core")
            shutil.copy(self._build / self._core.name, self._core)
        environment = {**os.environ, "PYTHONPATH": str(self._folder / "python")}
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

    def try_fault(self, fault: Fault) -> str:
        """What became of it: "" where its tests found it."""
        path = self._folder / fault.file
        text = path.read_text(encoding="utf-8")
        path.write_text(fault.planted(text), encoding="utf-8")
        try:
            done = self.test(fault.tests, torch=fault.peers, seconds=_SECONDS)
        except subprocess.TimeoutExpired:
            return f"the tests took more than {_SECONDS} s"
        finally:
            path.write_text(text, encoding="utf-8")
        if done.returncode == 1 and " failed" in done.stdout:
            return ""
        if done.returncode == 0:
            return f"SURVIVED {', '.join(fault.tests)}\n{done.stdout.splitlines()[-1]}"
        return f"the tests did not run:\n{done.stdout}{done.stderr}"

    def _configure(self) -> None:
        import pybind11

        self._run(
            "cmake", "-S", str(self._folder), "-B", str(self._build), "-G", "Ninja",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Faults", "-DCMAKE_CXX_FLAGS_FAULTS=-O1",  # compiled sooner
            "-DRNNKERN_ISAS=avx2", "-DRNNKERN_CUDA=OFF",
        )  # fmt: skip

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def _try_all(faults: Sequence[Fault], jobs: int, *, kernels: bool) -> list[Fault]:
    """Those that were not found; a line is printed for each."""
    tests = sorted({(fault.peers, test) for fault in faults for test in fault.tests})
    with tempfile.TemporaryDirectory(prefix="rnnkern-mutate.") as folder:
        copies = [Copy(Path(folder) / str(k), kernels=kernels) for k in range(jobs)]
        for torch in (False, True):
            chosen = [test for peers, test in tests if peers == torch]
            done = copies[0].test(chosen, torch=torch) if chosen else None
            if done is not None and done.returncode != 0:
                raise SystemExit(f"the tests fail without a fault:\n{done.stdout}{done.stderr}")
        free = list(copies)

        def attempt(fault: Fault) -> str:
            copy = free.pop()
            began = time.monotonic()
            try:
                outcome = copy.try_fault(fault)
            finally:
                free.append(copy)
            seconds = f"{time.monotonic() - began:5.1f} s"
            print(f"{seconds}  {fault.name}: {outcome or 'found'}", flush=True)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(attempt, faults))
    return [fault for fault, outcome in zip(faults, outcomes, strict=True) if outcome]


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
    in_kernels = {fault.file.startswith("csrc/") for fault in able}
    lost = [
        fault
        for kernels in sorted(in_kernels)
        for fault in _try_all(
            [fault for fault in able if fault.file.startswith("csrc/") == kernels],
            1 if kernels else min(options.jobs, len(able)),
            kernels=kernels,
        )
    ]
    print(f"{len(able) - len(lost)} of {len(able)} faults found")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
