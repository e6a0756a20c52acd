# SPDX-License-Identifier: Apache-2.0
"""Threads as if the machine had other cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rnnkern import _core


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Within, calls use up to ``count`` threads, as if there were as many cores, all free."""
    before = _core.process_threads()
    _core.pretend_cores(count)
    _core.set_process_threads(count)
    try:
        yield
    finally:
        _core.pretend_cores(0)
        _core.set_process_threads(before)


@contextmanager
def using_teams(sizes: list[int]) -> Iterator[None]:
    """Within, calls go on with another team wherever they can: of each of these sizes in turn."""
    with using_threads(max(sizes)):
        _core.pretend_teams(sizes)
        try:
            yield
        finally:
            _core.pretend_teams([])
