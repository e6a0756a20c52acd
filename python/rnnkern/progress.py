# SPDX-License-Identifier: Apache-2.0
"""A progress bar on a terminal with the time that is left, and lines that stay above it."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

_SECONDS_BETWEEN = 0.1
_BAR = 24  # characters


class Progress:
    """Draws on standard error when that is a terminal, and nothing when it is not.

    Of several processes that work together all but one are not `shown`: nothing comes of them.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._terminal = shown and sys.stderr.isatty()
        self._drawn = False
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
        return self._terminal

    def show(self, fraction: float, text: str) -> None:
        """Draw the bar, ``fraction`` of it full, with ``text`` behind; often is cheap."""
        now = time.monotonic()
        if not self._terminal or now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN
        fraction = min(fraction, 1.0)
        full = round(_BAR * fraction)
        left = self._left(now, fraction)
        bar = f"[{'#' * full}{' ' * (_BAR - full)}] {fraction:4.0%} {left}{text}"
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{bar[:width]}")
        sys.stderr.flush()
        self._drawn = True

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

    def line(self, text: str) -> None:
        """Print a line to standard output; the bar moves below it."""
        self._wipe()
        if self._shown:
            print(text, flush=True)

    def _wipe(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False
            self._next = 0.0
