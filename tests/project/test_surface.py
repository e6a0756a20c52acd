# SPDX-License-Identifier: Apache-2.0
"""What users can name is what docs/surface.txt says."""

from __future__ import annotations

from typing import Any

import pytest

import rnnkern
from rnnkern.cells import layer_classes, step_classes

surface: Any = pytest.importorskip("surface", reason="tools are not in an sdist")


def test_the_public_surface_is_as_written_down() -> None:
    written = surface.PATH.read_text("utf-8")
    assert surface.surface() == written, "if this is meant: python tools/surface.py"


def test_users_can_name_every_cell() -> None:
    for name, kind in {**layer_classes(), **step_classes()}.items():
        assert getattr(rnnkern, name, None) is kind
        assert name in rnnkern.__all__
