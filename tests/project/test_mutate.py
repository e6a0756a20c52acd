# SPDX-License-Identifier: Apache-2.0
"""The list of planted faults is alive: tools/mutate, run by hand, can plant each of them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools" / "mutate"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    if not FOLDER.is_dir():
        pytest.skip("tools are not in a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    lists = [__import__(name) for name in ("python_faults", "kernel_faults")]
    yield [*lists[0].PYTHON_FAULTS, *lists[1].KERNEL_FAULTS]
    for name in ("python_faults", "bench_faults", "piece_faults", "kernel_faults", "fault"):
        sys.modules.pop(name, None)


def test_every_fault_can_be_planted(faults: list[Any]) -> None:
    texts = {fault.file: (ROOT / fault.file).read_text("utf-8") for fault in faults}
    for fault in faults:
        assert fault.planted(texts[fault.file]) != texts[fault.file]
    assert [name for name, n in Counter(f.name for f in faults).items() if n > 1] == []
    assert len(faults) >= 92


def test_one_build_can_have_all_faults_in_cpp(faults: list[Any]) -> None:
    """Each stands in its file with what it replaces, and the environment chooses."""
    module = sys.modules["fault"]
    in_cpp = [fault for fault in faults if fault.file.startswith("csrc/")]
    for file in {fault.file for fault in in_cpp}:
        text = (ROOT / file).read_text("utf-8")
        here = [fault for fault in in_cpp if fault.file == file]
        planted = module.switched(text, here)
        assert planted.count(module.SWITCH) == len(here)
        for fault in here:
            assert ";" not in fault.old[:-1], f"{fault.name}: its piece is no single statement"
            assert fault.old.endswith(";") == fault.new.endswith(";"), fault.name
            declares = re.match(r"(const|auto|bool|int|Index|T|V)[\s*&]", fault.old)
            assert not declares, f"{fault.name}: its piece declares what stands after it"
            planted = planted.replace(fault.switched(), fault.old)
        assert planted == text
    assert len({fault.number for fault in in_cpp}) == len(in_cpp)
    with pytest.raises(ValueError, match="its piece overlaps another fault's"):
        module.switched((ROOT / in_cpp[0].file).read_text("utf-8"), 2 * in_cpp[:1])


def test_every_fault_has_a_test_that_is_there(faults: list[Any]) -> None:
    for name in {test for fault in faults for test in fault.tests}:
        file, _, function = name.partition("::")
        text = (ROOT / "tests" / file).read_text("utf-8")
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), name


def test_a_piece_that_is_not_there_once_is_an_error(faults: list[Any]) -> None:
    for text in ("", 2 * faults[0].old):
        with pytest.raises(ValueError, match=f"{faults[0].name}: .* expected once; mend the list"):
            faults[0].planted(text)
