# SPDX-License-Identifier: Apache-2.0
"""A progress bar on a terminal, and lines that stay above it."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

_SECONDS_BETWEEN = 0.1
_BAR = 24  # characters


class Progress:
    """Draws on standard error when that is a terminal, and nothing when it is not."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._drawn = False
        self._next = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wipe()

    def show(self, fraction: float, text: str) -> None:
        """Draw the bar, ``fraction`` of it full, with ``text`` behind; often is cheap."""
        if not self._terminal or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SECONDS_BETWEEN
        full = round(_BAR * min(fraction, 1.0))
        bar = f"[{'#' * full}{' ' * (_BAR - full)}] {min(fraction, 1.0):4.0%} {text}"
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{bar[:width]}")
        sys.stderr.flush()
        self._drawn = True

    def line(self, text: str) -> None:
        """Print a line to standard output; the bar moves below it."""
        self._wipe()
        print(text, flush=True)

    def _wipe(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False
            self._next = 0.0
