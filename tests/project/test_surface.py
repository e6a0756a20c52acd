# SPDX-License-Identifier: Apache-2.0
"""What users can name is what docs/surface.txt says."""

from __future__ import annotations

from typing import Any

import pytest

surface: Any = pytest.importorskip("surface", reason="tools are not in an sdist")


def test_the_public_surface_is_as_written_down() -> None:
    written = surface.PATH.read_text("utf-8")
    assert surface.surface() == written, "if this is meant: python tools/surface.py"
