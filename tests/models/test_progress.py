# SPDX-License-Identifier: Apache-2.0
"""The bar: how full it is, how long the rest takes, and that it is gone at the end."""

from __future__ import annotations

import io
import sys
import time

import pytest

from rnnkern.progress import Progress


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "left"), [(2.0, "6 s left, "), (30.0, "90 s left, "), (240.0, "12 min left, ")]
)
def test_the_rest_takes_as_long_as_the_pace_so_far_says(
    monkeypatch: pytest.MonkeyPatch, seconds: float, left: str
) -> None:
    terminal, clock = Terminal(), [100.0]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress() as progress:
        progress.show(0.2, "first")
        clock[0] += seconds
        progress.show(0.4, "second")  # a fifth in so many seconds, three fifths to come
    begin, first, second, end = terminal.getvalue().split("\r\x1b[K")
    assert (begin, end) == ("", "")
    assert first == f"[#####{' ' * 19}]  20% first"
    assert second == f"[{'#' * 10}{' ' * 14}]  40% {left}second"
