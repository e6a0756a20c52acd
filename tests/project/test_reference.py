# SPDX-License-Identifier: Apache-2.0
"""Every public name has an example that runs, and a place in the site's API reference."""

from __future__ import annotations

import doctest
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

ROOT = Path(__file__).parents[2]
NAMES = [name for name in rk.__all__ if name != "__version__"]


@pytest.fixture(autouse=True)
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    count = rk.get_num_threads()
    yield
    rk.set_num_threads(count)


def examples(value: Any) -> list[doctest.DocTest]:
    """Those of a name, and of a class's own members."""
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    return [test for test in finder.find(value, globs={"np": np, "rk": rk}) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_an_example_that_runs(name: str) -> None:
    found = examples(getattr(rk, name))
    assert any("." not in test.name for test in found), f"rk.{name} has no example of its own"
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for test in found:
        for module in re.findall(r"^import (\w+)", "".join(e.source for e in test.examples), re.M):
            pytest.importorskip(module)
        told: list[str] = []
        doctest.DocTestRunner(optionflags=options).run(test, out=told.append)
        assert not told, "".join(told)


def test_the_reference_has_every_name() -> None:
    hooks: Any = pytest.importorskip("site_hooks", reason="tools are not in an sdist")
    pages = hooks.reference()
    shown = [n for text in pages.values() for n in re.findall(r"^::: rnnkern\.(\w+)$", text, re.M)]
    modules = [module.removeprefix("rnnkern.") for module in hooks.MODULES]
    assert sorted(shown) == sorted(NAMES + modules), os.linesep.join(pages)
