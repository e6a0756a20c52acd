# SPDX-License-Identifier: Apache-2.0
"""A problem's numbers, who does the work on them, and the comparison of their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.bench.problems import Problem
from rnnkern.cells import CELLS

# Norm-wise relative error allowed between two answers, by how the products are done.
_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}


class DisagreementError(ArithmeticError):
    """A contender gave another answer than rnnkern: its time would mean nothing."""


@dataclass(frozen=True)
class Case:
    """A problem's numbers: the layer whose parameters the peers take over, input and gradient."""

    problem: Problem
    layer: Any
    x: Array
    dy: Array
    lengths: Array | None


@dataclass(frozen=True)
class Contender:
    """``run`` does the work once; ``answer`` is what is compared.

    An answer is y and, when training, dx and the parameters' gradients in the layer's order; a
    library that keeps those gradients to itself ends with dx.
    """

    name: str
    run: Callable[[], object]
    answer: Callable[[], list[Array]]


def make_case(problem: Problem) -> Case:
    """The same numbers for the same problem; raises as ``make_layer``."""
    random = np.random.default_rng(0)
    x, dy = (
        random.standard_normal((problem.steps, problem.batch, features)).astype(problem.dtype)
        for features in (problem.hidden, problem.hidden * problem.directions)
    )
    return Case(problem, make_layer(problem), x, dy, problem.lengths())


def make_layer(problem: Problem) -> Any:
    """The layer of a problem.

    Raises:
        ValueError: rnnkern cannot do it.

    """
    return CELLS[problem.cell].build(
        problem.hidden,
        problem.hidden,
        problem.layers,
        bidirectional=problem.bidirectional,
        dtype=problem.dtype,
        compute=problem.compute,
        seed=0,
    )


def compare(able: list[Contender], tolerance: float) -> None:
    """Hold all answers against the first one's.

    Raises:
        DisagreementError: one is further from it than the norm-wise relative ``tolerance``, or NaN.

    """
    wanted = able[0].answer()
    for contender in able[1:]:
        given = contender.answer()
        if len(given) not in (len(wanted), min(len(wanted), 2)):
            raise DisagreementError(
                f"{contender.name} gives {len(given)} arrays, expected {len(wanted)}"
            )
        for want, got in zip(wanted, given, strict=False):
            error = relative_error(got, want)
            if not error <= tolerance:
                raise DisagreementError(
                    f"{contender.name} disagrees with {able[0].name}: relative error {error:.2g}, "
                    f"expected at most {tolerance:g}"
                )


def relative_error(got: Array, want: Array) -> float:
    """Of norms; infinite where the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def tolerance(problem: Problem) -> float:
    """What ``compare`` may allow between answers to a problem."""
    return _TOLERANCE[problem.compute or problem.dtype]
