# SPDX-License-Identifier: Apache-2.0
"""The wheel that bench/gpu installs, and the machine code in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

gpu_wheel: Any = pytest.importorskip("gpu_wheel", reason="tools are not in an sdist")
check_sass: Any = pytest.importorskip("check_sass")


def test_a_wheel_says_when_it_is_older_than_the_sources(tmp_path: Path) -> None:
    root, folder = tmp_path / "tree", tmp_path / "wheel"
    for path in ("CMakeLists.txt", "pyproject.toml", "csrc/a/b.cu", "python/rnnkern/c.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    folder.mkdir()
    assert "no wheel for cp3" in gpu_wheel.find(folder, root)[1]
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheel = folder / f"rnnkern-0.1.0-{tag}-{tag}-linux_x86_64.whl"
    wheel.touch()
    assert "is older than the sources" in gpu_wheel.find(folder, root)[1]
    (folder / "sources.sha256").write_text(gpu_wheel.source_hash(root) + "\n")
    assert gpu_wheel.find(folder, root)[0] == wheel
    (root / "csrc" / "a" / "b.o").write_text("no source")
    assert gpu_wheel.find(folder, root)[0] == wheel
    (root / "csrc" / "a" / "b.cu").write_text("changed")
    assert gpu_wheel.find(folder, root) == (
        None,
        f"{wheel.name} is older than the sources: python tools/gpu_wheel.py",
    )


def test_machine_code_is_held_against_what_it_must_be() -> None:
    def read(*instructions: str) -> Any:
        lines = [
            f"        /*{16 * k:04x}*/                   {i} ;" for k, i in enumerate(instructions)
        ]
        (counts,) = check_sass.read([".text._Z3one:", *lines]).values()
        return counts

    good = read("@!P0 LDS.128 R4, [R2]", "HMMA.16816.F32 R8, R4, R6, R8", "LDG.E R1, [R2.64]")
    assert good == {"all": 3, "LDS.128": 1, "mma": 1, "LDG": 1}
    assert list(check_sass.faults("Forward, tensor 16x32", good)) == []
    bad = read("LD.E R4, [R2.64]", "STL [R1], R3", "@P1 ST.E.64 [R2.64], R4", "LDS.64 R4, [R2]")
    assert list(check_sass.faults("Forward, tensor 16x32", bad)) == [
        "local: 1",
        "generic: 2",
        "0 instructions of the tensor cores",
        "no loads of 16 bytes from shared memory",
    ]
    assert list(check_sass.faults("Zero", bad)) == []
    usage = " Function _Z3one:\n  REG:157 STACK:8 SHARED:0"
    assert check_sass.read_usage(usage) == {"_Z3one": (157, 8)}


def test_tools_are_on_the_path_or_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = tmp_path / "bin", tmp_path / "nvidia" / "cu13" / "bin"
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(check_sass.importlib.util, "find_spec", lambda _: package)
    monkeypatch.setenv("PATH", str(places[0]))
    for folder in places:  # a package of NVIDIA's is there, and this tool is not of it
        folder.mkdir(parents=True)
    assert check_sass.found("nvdisasm") is None
    with pytest.raises(SystemExit, match="pip install nvidia-cuda-nvdisasm"):
        check_sass.tool("nvdisasm")
    for folder in reversed(places):
        own = folder / "nvdisasm"
        own.write_text("a program")
        own.chmod(0o644 if folder is places[1] else 0o755)
        assert check_sass.tool("nvdisasm") == check_sass.found("nvdisasm") == str(own)
        assert os.access(own, os.X_OK)
