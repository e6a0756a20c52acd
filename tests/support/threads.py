# SPDX-License-Identifier: Apache-2.0
"""Threads as if the machine had other cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import rnnkern as rk
from rnnkern import _core

from support.compare import assert_same_bits
from support.reference import Array

TEAMS = ([2], [1, 3, 2])


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


def check_same_bits(
    compute: Callable[[], Mapping[str, Array] | Sequence[Array]],
    *,
    threads: Sequence[int] = (),
    teams: Sequence[list[int]] = TEAMS,
) -> dict[str, Array]:
    """One thread, other numbers of them, and teams that change in calls, give the same bits."""

    def results() -> dict[str, Array]:
        found = compute()
        if isinstance(found, Mapping):
            return dict(found)
        return {f"result {k}": array for k, array in enumerate(found)}

    with using_threads(1):
        want = results()
    for count in threads:
        with using_threads(count):
            assert rk.get_num_threads() == count
            _check(f"{count} threads", results(), want)
    for sizes in teams:
        with using_teams(sizes):
            _check(f"teams of {sizes}", results(), want)
    return want


def _check(by: str, got: dict[str, Array], want: dict[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert_same_bits(f"{name} by {by}", got[name], array)
