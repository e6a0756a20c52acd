# SPDX-License-Identifier: Apache-2.0
"""Layers of different make but of as good as equal numbers of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def equal_units(counts: Sequence[Callable[[int], int]], about: int) -> list[int]:
    """Hidden sizes that make several models alike in their number of parameters.

    Args:
        counts: For each model, its number of parameters by its hidden size; increasing.
        about: The number of parameters looked for; what fits best within a tenth of it is taken.

    Returns:
        A hidden size for each model, such that the largest deviation from one common number of
        parameters is as small as it can be.

    """
    sizes = [_sizes(count, 2 * about) for count in counts]
    best: tuple[float, list[int]] = (float("inf"), [])
    for target in range(about - about // 10, about + about // 10, max(1, about // 500)):
        units = [min(known, key=lambda n: abs(known[n] - target)) for known in sizes]
        worst = max(abs(known[n] / target - 1.0) for known, n in zip(sizes, units, strict=True))
        best = min(best, (worst, units))
    return best[1]


def _sizes(count: Callable[[int], int], most: int) -> dict[int, int]:
    """The number of parameters by the hidden size, up to ``most`` of them."""
    sizes = {1: count(1)}
    while sizes[len(sizes)] < most:
        sizes[len(sizes) + 1] = count(len(sizes) + 1)
    return sizes
