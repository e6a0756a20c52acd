# SPDX-License-Identifier: Apache-2.0
"""Learning rates that follow the steps of training.

A schedule is a function of the number of steps taken before, and of nothing else: an optimizer that
counts on from where it was goes on with the same rates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from rnnkern._checks import finite_float, positive_int
from rnnkern.layers.fixed import Fixed


class Schedule(Fixed, ABC):
    """A learning rate by the number of steps taken before: ``schedule(0)`` is that of the first.

    Optimizers take one for ``lr``, as they take any function of that kind. Schedules are made of
    one another: ``a.then(100, b)`` is a for 100 steps, then b from its beginning; ``0.5 * a`` is
    half of a, and ``a * b`` their product.

    Example:
        >>> down = rk.LinearRate(1e-3, 0.0, steps=900)
        >>> rate = rk.ConstantRate(1e-3).then(100, down)
        >>> rate(0), rate(100), round(rate(550), 6), rate(2000)
        (0.001, 0.001, 0.0005, 0.0)
        >>> optimizer = rk.Adam(rk.Linear(3, 2), lr=rate)

    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The rate of a step before which so many were taken."""

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, from which an equal one can be built."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return type(self) is type(other) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((type(self), *self.config().values()))

    def then(self, steps: int, following: Schedule) -> Schedule:
        """The same for so many steps, then another from its beginning."""
        if not isinstance(following, Schedule):
            raise TypeError(f"following must be a Schedule, got {type(following)!r}")
        return _Then(self, positive_int("steps", steps, minimum=0), following)

    def __mul__(self, other: Schedule | float) -> Schedule:
        """The product with another schedule or with a number of at least 0."""
        if not isinstance(other, Schedule):
            other = ConstantRate(other)
        return _Product(self, other)

    __rmul__ = __mul__


class ConstantRate(Schedule):
    """The same rate at every step.

    Args:
        rate: At least 0.

    Raises:
        TypeError, ValueError: The rate is no number, or out of range.

    Example:
        >>> rk.ConstantRate(0.01)(1000)
        0.01

    """

    def __init__(self, rate: float) -> None:
        self.rate = finite_float("rate", rate, minimum=0.0)
        self._settle()

    def __call__(self, step: int) -> float:
        """The rate."""
        return self.rate


class LinearRate(Schedule):
    """From one rate to another along a line, then the last.

    Args:
        first: The rate of the first step, at least 0.
        last: The rate after ``steps``, at least 0.
        steps: At least 1.

    Raises:
        TypeError, ValueError: An argument is no number, or out of range.

    Example:
        >>> rate = rk.LinearRate(0.5, 0.0, steps=4)
        >>> [rate(step) for step in range(6)]
        [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]

    """

    def __init__(self, first: float, last: float, steps: int) -> None:
        self.first = finite_float("first", first, minimum=0.0)
        self.last = finite_float("last", last, minimum=0.0)
        self.steps = positive_int("steps", steps)
        self._settle()

    def __call__(self, step: int) -> float:
        """The rate of that step."""
        share = min(step / self.steps, 1.0)
        return (1.0 - share) * self.first + share * self.last


class CosineRate(Schedule):
    """From one rate to another along half a wave, then the last.

    Args:
        first: The rate of the first step, at least 0.
        steps: At least 1.
        last: The rate after ``steps``, at least 0.

    Raises:
        TypeError, ValueError: An argument is no number, or out of range.

    Example:
        >>> rate = rk.CosineRate(0.1, steps=100)
        >>> rate(0), round(rate(50), 6), rate(100)
        (0.1, 0.05, 0.0)

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017),
    without the restarts.

    """

    def __init__(self, first: float, steps: int, last: float = 0.0) -> None:
        self.first = finite_float("first", first, minimum=0.0)
        self.steps = positive_int("steps", steps)
        self.last = finite_float("last", last, minimum=0.0)
        self._settle()

    def __call__(self, step: int) -> float:
        """The rate of that step."""
        share = 0.5 * (1.0 + math.cos(math.pi * min(step / self.steps, 1.0)))
        return share * self.first + (1.0 - share) * self.last


class StepRate(Schedule):
    """A rate that is multiplied by the same factor every so many steps.

    Args:
        first: The rate of the first steps, at least 0.
        steps: After how many it is multiplied, at least 1.
        factor: At least 0.

    Raises:
        TypeError, ValueError: An argument is no number, or out of range.

    Example:
        >>> rate = rk.StepRate(0.8, steps=10, factor=0.5)
        >>> rate(9), rate(10), rate(25)
        (0.8, 0.4, 0.2)

    """

    def __init__(self, first: float, steps: int, factor: float = 0.1) -> None:
        self.first = finite_float("first", first, minimum=0.0)
        self.steps = positive_int("steps", steps)
        self.factor = finite_float("factor", factor, minimum=0.0)
        self._settle()

    def __call__(self, step: int) -> float:
        """The rate of that step."""
        return float(self.first * self.factor ** (step // self.steps))


class WarmUp(Schedule):
    """Up to a schedule's first rate along a line, then that schedule from its beginning.

    The first step's rate is 1/``steps`` of it, so that no step is without effect.

    Args:
        steps: How long, at least 1.
        following: What comes then; a number stands for a constant rate.

    Raises:
        TypeError, ValueError: An argument is no number, or out of range.

    Example:
        >>> rate = rk.WarmUp(4, rk.CosineRate(0.4, steps=100))
        >>> [round(rate(step), 3) for step in range(5)]
        [0.1, 0.2, 0.3, 0.4, 0.4]

    """

    def __init__(self, steps: int, following: Schedule | float) -> None:
        self.steps = positive_int("steps", steps)
        if not isinstance(following, Schedule):
            following = ConstantRate(following)
        self.following: Schedule = following
        self._settle()

    def __call__(self, step: int) -> float:
        """The rate of that step."""
        if step < self.steps:
            return (step + 1) / self.steps * self.following(0)
        return self.following(step - self.steps)


class _Then(Schedule):
    """One for so many steps, then another."""

    def __init__(self, first: Schedule, steps: int, following: Schedule) -> None:
        self.first, self.steps, self.following = first, steps, following
        self._settle()

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.first(step)
        return self.following(step - self.steps)

    def __repr__(self) -> str:
        first = f"({self.first!r})" if isinstance(self.first, _Product) else repr(self.first)
        return f"{first}.then({self.steps}, {self.following!r})"


class _Product(Schedule):
    """One times another."""

    def __init__(self, a: Schedule, b: Schedule) -> None:
        self.a, self.b = a, b
        self._settle()

    def __call__(self, step: int) -> float:
        return self.a(step) * self.b(step)

    def __repr__(self) -> str:
        return f"{self.a!r} * {self.b!r}"
