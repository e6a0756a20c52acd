# SPDX-License-Identifier: Apache-2.0
"""How all here is timed, contenders alternating in one process, and what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkern import _core, get_num_threads
from rnnkern._checks import Array

_SAMPLE = 1e-3  # seconds that one reading of the clock spans at least
_TURN = 0.05  # seconds, about, of a contender's turn
_FEWEST = 4  # readings of a contender
_REST = 0.1  # seconds in which the last contender's idle threads stop spinning

Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the time of a call, in seconds."""

    low: float
    median: float
    high: float

    def describe(self) -> dict[str, float]:
        """Milliseconds, for a report."""
        return {"low_ms": self.low * 1e3, "ms": self.median * 1e3, "high_ms": self.high * 1e3}


def alternate(contenders: Mapping[str, Call], seconds: float) -> dict[str, Spread]:
    """Time calls alternately, so that noise of the machine meets them alike.

    Each turn begins with a call that does not count, unless it fills the turn alone.

    Args:
        contenders: The calls by name.
        seconds: To spend on each, about.

    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    while True:
        for name, call in contenders.items():
            if get_num_threads() > 1:
                time.sleep(_REST)
            times[name] += _turn(call)
        fewest = min(map(len, times.values()))
        if fewest >= _FEWEST and time.perf_counter() - began > seconds * len(contenders):
            return {name: Spread(*statistics.quantiles(t, n=4)) for name, t in times.items()}


def _turn(call: Call) -> list[float]:
    first = _timed(call, 1)
    if first > _TURN:
        return [first]
    repeat = max(1, round(_SAMPLE / first))
    readings = max(2, round(_TURN / (first * repeat)))
    return [_timed(call, repeat) for _ in range(readings)]


def _timed(call: Call, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


class Calm:
    """Whether others use the machine: told by a product that takes the same time when none do."""

    _MOST = 1.15  # times the least that it has ever taken
    _SIZE = 192

    def __init__(self) -> None:
        a, out = (np.ones((self._SIZE, self._SIZE), np.float32) for _ in range(2))
        self._call: Call = lambda: _core.matmul(a, a, out)
        self._least = float("inf")

    def __call__(self) -> bool:
        """Whether the product takes as long as at best; the median of several readings."""
        taken = statistics.median(_timed(self._call, 4) for _ in range(9))
        self._least = min(self._least, taken)
        return taken <= self._MOST * self._least


def product_peak(dtype: str, seconds: float) -> float:
    """Flops a second of the best product of 1024 x 1024 matrices here, ours or PyTorch's.

    Args:
        dtype: "float32", "float64" or "bfloat16"; the last is PyTorch's alone.
        seconds: To spend on each.

    Returns:
        0 where nobody can tell.

    """
    size = 1024
    random = np.random.default_rng(0)
    kind = np.float64 if dtype == "float64" else np.float32
    a, b = (random.standard_normal((size, size)).astype(kind) for _ in range(2))
    out = np.empty_like(a)
    contenders: dict[str, Call] = {}
    if dtype != "bfloat16":
        contenders["rnnkern"] = lambda: _core.matmul(a, b, out)
    try:
        import torch
    except ImportError:
        pass
    else:
        ta, tb, tout = (torch.from_numpy(m).to(getattr(torch, dtype)) for m in (a, b, out))
        contenders["torch"] = lambda: torch.mm(ta, tb, out=tout)
    if not contenders:
        return 0.0
    return 2.0 * size**3 / min(s.median for s in alternate(contenders, seconds).values())


class Bandwidth:
    """Bytes a second that this machine reads, again and again, of a set of given size.

    Measured once for each size, by a kernel that only sums squares.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: dict[int, float] = {}

    def __call__(self, size: int) -> float:
        """For a set of ``size`` bytes, on one thread."""
        if size not in self._known:
            numbers: Array = np.ones(max(1, size // 4), np.float32)
            times = alternate({"read": lambda: _core.sum_of_squares(numbers)}, self._seconds)
            self._known[size] = numbers.nbytes / times["read"].low
        return self._known[size]

    def describe(self) -> dict[str, Any]:
        """What was measured, for a report: GB/s by bytes."""
        return {str(size): speed / 1e9 for size, speed in sorted(self._known.items())}
