# SPDX-License-Identifier: Apache-2.0
"""Builds as scikit-build-core does, and says in one line what is missing: CMake takes forty."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import scikit_build_core.build as _build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

prepare_metadata_for_build_editable = _build.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = _build.prepare_metadata_for_build_wheel

Settings = dict[str, Any] | None


def missing(settings: Settings) -> str | None:
    """What a build would fail for at once, and what brings it; None where nothing is missing."""
    variables = ("CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE")
    said = f"{settings} {[os.environ.get(name) for name in variables]}"
    # Where it is said otherwise than by CXX which compiler is meant, CMake finds out.
    if sys.platform == "win32" or "TOOLCHAIN" in said or "CMAKE_CXX_COMPILER" in said:
        return None
    named = os.environ.get("CXX", "").split()[:1]
    if not any(map(shutil.which, named or ("c++", "g++", "clang++"))):
        which = f"CXX names {named[0]}, which is not there" if named else "none was found"
        return f"a C++ compiler ({which}); on Debian and Ubuntu: apt install g++"
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        return (
            f"the headers of this Python (there is no Python.h in {include}); on Debian and "
            "Ubuntu: apt install python3-dev"
        )
    return None


def _require(settings: Settings) -> None:
    lacking = missing(settings)
    if lacking is not None:
        sys.exit(f"rnnkern cannot be built: it needs {lacking}")


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """As scikit-build-core."""
    _require(config_settings)
    return _build.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """As scikit-build-core."""
    _require(config_settings)
    return _build.get_requires_for_build_editable(config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """As scikit-build-core."""
    _require(config_settings)
    return _build.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """As scikit-build-core."""
    _require(config_settings)
    return _build.build_editable(wheel_directory, config_settings, metadata_directory)
