# SPDX-License-Identifier: Apache-2.0
"""tools/sanitize, without a sanitizer: what is run once more, and what a report comes to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "sanitize"
BROKEN = "LeakSanitizer has encountered a fatal error"
OURS = (
    "LeakSanitizer: detected memory leaks\n\nDirect leak of 8 bytes\n #1 in f ./csrc/bind/a.cpp:3\n"
)
OTHERS = OURS.replace("./csrc/bind", "./Python")

# A program that leaves a report the first time that it is run, or whenever it is.
PROGRAM = """
echo run >> runs
if [[ {always} = 1 || $(wc -l < runs) = 1 ]]; then
  printf '{report}' > logs/report.7
  exit {status}
fi
"""


def judged(folder: Path, program: str, *, before: str = "") -> tuple[int, int]:
    """The exit status of the script's last part over a program, and how often that was run."""
    if not SCRIPT.exists():
        pytest.skip("tools is not in an sdist")
    (folder / "logs").mkdir()
    if before:
        (folder / "logs" / "report.1").write_text(before)
    (folder / "program").write_text(program)
    text = SCRIPT.read_text()
    attempts = text[text.index("shopt -s nullglob") : text.index("if (($# == 0)); then\n  attempt")]
    reports = text[text.index("for report in") :]
    script = f"set -euo pipefail\nlogs=logs run=() variables=()\n{attempts}\n"
    script += f"attempt bash program\n{reports}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode, len((folder / "runs").read_text().splitlines())


@pytest.mark.parametrize("status", [0, 134])
def test_a_search_for_leaks_that_broke_down_is_run_once_more(tmp_path: Path, status: int) -> None:
    program = PROGRAM.format(always=0, report=BROKEN, status=status)
    assert judged(tmp_path, program) == (0, 2)


def test_one_that_breaks_down_twice_is_told(tmp_path: Path) -> None:
    program = PROGRAM.format(always=1, report=BROKEN, status=134)
    assert judged(tmp_path, program) == (1, 2)


def test_another_programs_report_outlives_the_second_run(tmp_path: Path) -> None:
    program = PROGRAM.format(always=0, report=BROKEN, status=134)
    assert judged(tmp_path, program, before=OURS) == (1, 2)


@pytest.mark.parametrize(("report", "status"), [(OURS, 1), (OTHERS, 0)])
def test_a_leak_is_ours_where_a_source_of_ours_is_in_it(
    tmp_path: Path, report: str, status: int
) -> None:
    program = PROGRAM.format(always=1, report=report.replace("\n", "\\n"), status=0)
    assert judged(tmp_path, program) == (status, 1)


def test_no_report_and_a_failure(tmp_path: Path) -> None:
    assert judged(tmp_path, "echo run >> runs; exit 3") == (3, 1)
