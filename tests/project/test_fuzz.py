# SPDX-License-Identifier: Apache-2.0
"""Some seconds of each fuzzer, always the same cases; ``tools/fuzz`` plays new ones for longer."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from support import fuzzing
from support.fuzzing import SUBJECTS, BrokenPromiseError, Case, fuzz
from support.needs import emulated_device

SECONDS = 8.0
NEEDS = {
    "device": emulated_device,
    "keras": pytest.mark.skipif(find_spec("h5py") is None, reason="could not import 'h5py'"),
}


@pytest.mark.parametrize(
    "subject", [pytest.param(s, marks=[NEEDS[s]] if s in NEEDS else []) for s in SUBJECTS]
)
def test_hostile_calls(subject: str) -> None:
    last, finding = fuzz(subject, SECONDS, seed=1)
    assert finding is None, finding
    assert last >= 0


CRASHES = """
import os
import numpy as np

def play(case):
    array = case.array("a", np.zeros(3))
    case.call("zero", lambda: None)
    if case.random.random() < 0.2:
        case.call("one that ends it", {})
"""


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("lambda: os.abort()", "killed by SIGABRT"),
        ("lambda: os._exit(3)", "exit status 3"),
        ("lambda: {}['a']", "KeyError: 'a'"),
        ("lambda: array.base.fill(0)", "wrote memory that is not its own, at a"),
    ],
)
def test_what_ends_a_case_is_told(
    ending: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fuzz_crash.py").write_text(CRASHES.replace("{}", ending))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, finding = fuzz("fuzz_crash", 10.0, seed=1)
    assert finding is not None
    assert told in str(finding)
    assert finding.last_call.startswith("one that ends it of a=<f8(3,)")
    _, again = fuzz("fuzz_crash", 0.0, seed=1, first=finding.case)
    assert again is not None
    assert (again.case, again.last_call) == (finding.case, finding.last_call)


@pytest.mark.parametrize("layout", fuzzing.LAYOUTS)
def test_guard_bands(layout: str) -> None:
    case = Case("", 0, 0, lambda text: None)
    read = case.array("read", np.arange(12.0).reshape(3, 4), layouts=(layout,))
    written = case.array("written", np.arange(12.0).reshape(3, 4), written=True, layouts=(layout,))
    assert np.array_equal(read, np.arange(12.0).reshape(3, 4))

    def write() -> None:
        written[...] = 5.0

    case.call("right", write)
    assert np.all(written == 5.0)
    before = read.copy()
    read[1, 2] = 9.0
    with pytest.raises(BrokenPromiseError, match="at read"):
        case.check("wrong")
    read[...] = before
    buffer = case._given[1].buffer
    last = np.flatnonzero(buffer == np.frombuffer(np.float64(5.0).tobytes(), np.uint8)[-1])[-1]
    buffer[last + 1] ^= 1
    with pytest.raises(BrokenPromiseError, match="at written"):
        case.check("beyond its end")
