# SPDX-License-Identifier: Apache-2.0
"""A wheel for ``bench/gpu --here``, made where there is nvcc: python3.12 tools/gpu_wheel.py.

It is for the interpreter that makes it, with machine code for the GPUs named by --code and PTX for
later ones, and lies in build/gpu-wheel beside a hash of the sources that it was made of. --check
says whether it is there and of these sources, and exits with status 1 where it is not.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu-wheel"
# Tools that map machine code to lines, and sanitizers, need the lines; the code is the same.
CUDA_FLAGS = "-lineinfo"


def sources(root: Path) -> Iterator[Path]:
    """All that the wheel is made of."""
    yield from (root / "CMakeLists.txt", root / "pyproject.toml")
    for folder in ("csrc", "python/rnnkern"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".cpp", ".cu", ".h", ".py", ".pyi", ".txt"}:
                yield path


def source_hash(root: Path = ROOT) -> str:
    """Of names and contents; the same wherever the tree lies."""
    total = hashlib.sha256()
    for path in sources(root):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def find(folder: Path = FOLDER, root: Path = ROOT) -> tuple[Path | None, str]:
    """The wheel for this interpreter, if it is of these sources; and what is the matter."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = sorted(folder.glob(f"*-{tag}-*.whl"))
    if not wheels:
        return None, f"no wheel for {tag} is in {folder}: python tools/gpu_wheel.py makes it"
    made_of = folder / "sources.sha256"
    if not made_of.exists() or made_of.read_text().strip() != source_hash(root):
        return None, f"{wheels[0].name} is older than the sources: python tools/gpu_wheel.py"
    return wheels[0], f"{wheels[0].name}, of these sources"


def command(folder: Path, code: str, isas: str | None) -> list[str]:
    """What makes the wheel."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}"]
    if importlib.util.find_spec("scikit_build_core") and importlib.util.find_spec("pybind11"):
        pip.append("--no-build-isolation")
    define = "--config-settings=cmake.define."
    options = [
        f"--config-settings=build-dir={ROOT / 'build' / 'gpu-cmake'}",
        f"{define}RNNKERN_CUDA=ON",
        f"{define}RNNKERN_CUDA_CODE={code}",
        f"{define}CMAKE_CUDA_FLAGS={CUDA_FLAGS}",
    ]
    if isas is not None:
        options.append(f"{define}RNNKERN_ISAS={isas}")
    return [*pip, *options, str(ROOT)]


def make(code: str, isas: str | None) -> Path:
    """The wheel, in FOLDER, in the place of any that was there.

    Raises:
        subprocess.CalledProcessError: it could not be built.

    """
    before = source_hash()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    subprocess.run(command(FOLDER, code, isas), check=True)
    # What was edited meanwhile may or may not be in it.
    if source_hash() == before:
        (FOLDER / "sources.sha256").write_text(before + "\n")
    (wheel,) = FOLDER.glob("*.whl")
    return wheel


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--code", default="sm_90", help="GPUs to make machine code for (sm_90)")
    parser.add_argument("--isas", help="instruction sets of the CPU's kernels (all)")
    parser.add_argument("--check", action="store_true", help="say whether it is up to date")
    options = parser.parse_args(arguments)
    if not options.check:
        wheel = make(options.code, options.isas)
        print(f"{wheel}: {wheel.stat().st_size / 2**20:.1f} MiB")
    found, what = find()
    print(what)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
