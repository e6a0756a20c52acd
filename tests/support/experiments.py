# SPDX-License-Identifier: Apache-2.0
"""What every experiment's result is held to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnkern.explore import EXPERIMENTS
from rnnkern.explore.pictures import save_figure
from rnnkern.explore.result import Result


def written(result: Result, name: str, folder: Path) -> dict[str, Any]:
    """The numbers of the experiment of that name as its file has them."""
    result.to_json(folder / "numbers.json")
    numbers: dict[str, Any] = json.loads((folder / "numbers.json").read_text())
    assert numbers["program"] == result.name == name
    return numbers


def check_picture(result: Result, folder: Path) -> None:
    """Its picture can be drawn."""
    pytest.importorskip("matplotlib")
    save_figure(EXPERIMENTS[result.name].figure(result), folder / "picture.png")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def check_refusals(experiment: Callable[..., Result]) -> None:
    """Cells that there are not, and no seeds."""
    with pytest.raises(ValueError, match=r"cells must be one of .*'lstm'.* got 'elman'"):
        experiment(cells=("elman",))
    with pytest.raises(ValueError, match="seeds must be a positive integer, got 0"):
        experiment(seeds=0)
