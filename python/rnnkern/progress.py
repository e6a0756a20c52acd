# SPDX-License-Identifier: Apache-2.0
"""A progress bar with the time that is left, and lines that stay above it.

On a terminal and in a notebook; nothing where the output goes to a file.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

_SECONDS_BETWEEN = 0.1
_BAR = 24  # characters
_NOTEBOOK_WIDTH = 100


def _in_notebook() -> bool:
    """Whether output is shown below a cell: what Jupyter's kernels put in the place of a stream."""
    return type(sys.stdout).__module__ == "ipykernel.iostream"


def width() -> int | None:
    """The characters that a line of output has room for; None where that is nobody's screen."""
    if _in_notebook():
        return _NOTEBOOK_WIDTH
    return _columns() if sys.stdout.isatty() else None


def _columns() -> int:
    from shutil import get_terminal_size  # of some weight, and not needed to import layers

    return get_terminal_size().columns - 1


def folded(text: str, indent: int) -> str:
    """A line broken between words to the width of the screen, all but its first part indented."""
    room = width()
    if room is None or len(text) <= room:
        return text
    from textwrap import fill

    return fill(
        text,
        max(room, 2 * indent),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Progress:
    """Draws on standard error when that is a terminal, and below the cell in a notebook.

    Of several processes that work together all but one are not `shown`: nothing comes of them.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._notebook = _in_notebook()
        # A notebook has a red ground for standard error, and knows no code that clears a line.
        self._stream = sys.stdout if self._notebook else sys.stderr
        self._visible = shown and (self._notebook or self._stream.isatty())
        self._drawn = 0  # characters
        self._next = 0.0
        self._began: tuple[float, float] | None = None  # when, and how full the bar was then

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wipe()

    @property
    def visible(self) -> bool:
        """Whether somebody may be looking."""
        return self._visible

    def show(self, fraction: float, text: str) -> None:
        """Draw the bar, ``fraction`` of it full, with ``text`` behind; often is cheap."""
        now = time.monotonic()
        if not self._visible or now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN
        fraction = min(fraction, 1.0)
        full = round(_BAR * fraction)
        left = self._left(now, fraction)
        bar = f"[{'#' * full}{' ' * (_BAR - full)}] {fraction:4.0%} {left}{text}"
        self._draw(bar[: _NOTEBOOK_WIDTH if self._notebook else _columns()])

    def _left(self, now: float, fraction: float) -> str:
        """The time that the rest takes at the pace so far; nothing before there is a pace."""
        if self._began is None or fraction < self._began[1]:  # what follows has a bar of its own
            self._began = now, fraction
        since, before = now - self._began[0], fraction - self._began[1]
        if before <= 0.0 or since <= 0.0:
            return ""
        seconds = (1.0 - fraction) * since / before
        if seconds < 100.0:
            return f"{seconds:.0f} s left, "
        return f"{seconds / 60.0:.0f} min left, "

    def line(self, text: str, *more: str) -> None:
        """Print a line to standard output, with as much of `more` as it has room for.

        The bar moves below it.
        """
        self._wipe()
        room = width()
        for part in more:
            if room is None or len(text) + len(part) <= room:
                text += part
        if self._shown:
            print(text, flush=True)

    def _draw(self, bar: str) -> None:
        before = f"\r{' ' * self._drawn}\r" if self._notebook else "\r\x1b[K"
        self._stream.write(before + bar)
        self._stream.flush()
        self._drawn = len(bar)

    def _wipe(self) -> None:
        if self._drawn:
            self._draw("")
            self._next = 0.0
