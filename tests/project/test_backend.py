# SPDX-License-Identifier: Apache-2.0
"""What a build lacks is said in one line, where CMake takes forty; an import loads little."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import rnnkern

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build's backend over a scikit-build-core that does nothing."""
    names = (
        "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable",
        "get_requires_for_build_sdist", "get_requires_for_build_wheel",
        "prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel",
    )  # fmt: skip
    build = SimpleNamespace(**{name: lambda *_, name=name: name for name in names})
    monkeypatch.setitem(sys.modules, "scikit_build_core", SimpleNamespace(build=build))
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", build)
    for variable in ("CXX", "CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE"):
        monkeypatch.delenv(variable, raising=False)
    path = ROOT / "backend" / "rnnkern_backend.py"
    spec = importlib.util.spec_from_file_location("rnnkern_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tools(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_what_a_build_lacks_is_one_line(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = tmp_path / "include"
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(headers))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"needs a C\+\+ compiler \(none was found\).*install g\+\+$"
    ):
        backend.get_requires_for_build_wheel()
    monkeypatch.setenv("CXX", "nowhere/g++ -m64")
    with pytest.raises(SystemExit, match=r"CXX names nowhere/g\+\+, which is not there"):
        backend.build_editable("wheels")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", _tools(tmp_path, "g++"))
    with pytest.raises(SystemExit, match=r"no Python.h in .*include\); .*install python3-dev$"):
        backend.build_wheel("wheels")
    headers.mkdir()
    (headers / "Python.h").touch()
    assert backend.build_wheel("wheels") == "build_wheel"


def test_a_compiler_that_cmake_is_told_of_is_left_to_it(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = {"cmake.define.CMAKE_CXX_COMPILER": "/opt/g++"}
    assert backend.get_requires_for_build_wheel(settings) == "get_requires_for_build_wheel"
    monkeypatch.setenv("CMAKE_ARGS", "-DCMAKE_TOOLCHAIN_FILE=cross.cmake")
    assert backend.get_requires_for_build_editable() == "get_requires_for_build_editable"


def test_importing_loads_layers_and_nothing_that_few_programs_use() -> None:
    code = (
        "import sys, numpy\n"
        "numpys = set(sys.modules)\n"
        "import rnnkern\n"
        "later = 'interop', 'models', 'serialize', 'training', 'devices.cuda', 'layers.stack', \\\n"
        "    'layers.frozen', 'layers.linear', 'layers.recompute', 'layers.stream'\n"
        "for name in later:\n"
        "    assert not any(m.startswith(f'rnnkern.{name}') for m in sys.modules), name\n"
        "slow = {'copy', 'dataclasses', 'importlib.metadata', 'numpy.typing'}\n"
        "assert not slow & (set(sys.modules) - numpys)\n"
        "assert rnnkern.__version__ and rnnkern.Seq2Seq and rnnkern.LSTM\n"
        "assert set(rnnkern.__all__) <= set(dir(rnnkern))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'rnnkern' has no attribute 'LSTMM'"):
        rnnkern.LSTMM  # type: ignore[attr-defined] # noqa: B018


def test_what_is_loaded_later_is_what_type_checkers_read() -> None:
    path = ROOT / "python" / "rnnkern" / "__init__.py"
    (checked,) = (
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    read = {
        node.module: tuple(name.name for name in node.names)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
    }
    assert read == vars(rnnkern)["_LATER"]
