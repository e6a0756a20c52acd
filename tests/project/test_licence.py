# SPDX-License-Identifier: Apache-2.0
"""Every source says its licence in a line of its head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "bench", "csrc", "python", "tests", "tools")
SUFFIXES = {".h", ".cpp", ".cu", ".cuh", ".py", ".pyi", ".sh", ".cmake"}


def sources() -> Iterator[Path]:
    """What is compiled or run: by its suffix or its first line."""
    yield ROOT / "CMakeLists.txt"
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            named = path.suffix in SUFFIXES or path.name == "CMakeLists.txt"
            if named or path.read_bytes().startswith(b"#!"):
                yield path


def test_every_source_says_its_licence() -> None:
    found = list(sources())
    assert len(found) > 100
    without = [
        str(path.relative_to(ROOT))
        for path in found
        if not any(
            line.strip("/# ") == "SPDX-License-Identifier: Apache-2.0"
            for line in path.read_text("utf-8").splitlines()[:2]
        )
    ]
    assert not without, f"the first line lacks SPDX-License-Identifier: {without}"
