# SPDX-License-Identifier: Apache-2.0
"""The bar: how full it is, how long the rest takes, and that it is gone at the end."""

from __future__ import annotations

import io
import sys
import time

import pytest

from rnnkern.progress import Progress, folded


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


class Cell(io.StringIO):
    """What a notebook's kernel puts in the place of a stream."""


Cell.__module__ = "ipykernel.iostream"


def test_a_notebook_has_the_bar_below_its_cell_without_a_terminals_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell, error = Cell(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", cell)
    monkeypatch.setattr(sys, "stderr", error)
    with Progress() as progress:
        assert progress.visible
        progress.show(0.5, "half")
        progress.line("a line")
    bar = f"[{'#' * 12}{' ' * 12}]  50% half"
    assert cell.getvalue() == f"\r\r{bar}\r{' ' * len(bar)}\ra line\n"
    assert error.getvalue() == ""


def test_lines_fit_the_screen_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "key: some words that say what it is"
    assert folded(text, 5) == text  # to a file
    with Progress() as progress:
        progress.line("a", " b", " c")
    assert capsys.readouterr().out == "a b c\n"

    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert folded(text, 5) == "key: some words\n     that say what\n     it is"
    assert folded("short", 5) == "short"
    with Progress() as progress:
        progress.line("0123456789", " 0123456789", " 0123")
    assert terminal.getvalue() == "0123456789 0123\n"
