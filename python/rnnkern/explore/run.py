# SPDX-License-Identifier: Apache-2.0
"""What a program is, and what is asked of it: cells, seeds, how much work, a bar to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from rnnkern._checks import boolean, choice, positive_int
from rnnkern.cells import CELLS
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.result import Result
from rnnkern.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")


class Run:
    """What is asked of a program, checked.

    Args:
        seed: The first seed.
        seeds: How many of them, from ``seed`` up.
        cells: Names out of ``rnnkern.cells.CELLS``.
        quick: Whether seconds are to do: the results are less clear.
        progress: Where a bar is drawn; ``None`` draws none.

    Attributes:
        seeds: Those to run, in order.
        cells: Those to run, in order.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A negative seed, no seeds, no cells, a cell twice or one that is not known.

    """

    def __init__(
        self,
        *,
        seed: int = 0,
        seeds: int = 1,
        cells: Sequence[str],
        quick: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.quick = boolean("quick", quick)
        first = positive_int("seed", seed, minimum=0)
        self.seeds = range(first, first + positive_int("seeds", seeds))
        if isinstance(cells, str):
            raise TypeError(f"cells must be a sequence of names, got the string {cells!r}")
        for cell in cells:
            choice("cells", cell, tuple(CELLS))
        if not cells or len(set(cells)) != len(cells):
            raise ValueError(f"cells must be different names, at least one, got {list(cells)}")
        self.cells = tuple(cells)
        self._progress = progress
        self._expected = self._done = 0

    def pick(self, full: T, quick: T) -> T:
        """The second where the run is quick, else the first."""
        return quick if self.quick else full

    def expect(self, steps: int) -> None:
        """Say how many steps of training the whole program takes: what the bar is a share of."""
        self._expected = steps

    def tell(self, text: str) -> None:
        """A step of training is done: the bar grows, with ``text`` behind it."""
        self._done += 1
        if self._progress is not None:
            self._progress.show(self._done / max(self._expected, self._done), text)

    def train(
        self,
        model: Model,
        draw: Callable[[np.random.Generator], Batch],
        steps: int,
        *,
        rng: np.random.Generator,
        text: str = "",
        decay: float = 0.0,
        until: Callable[[list[float]], bool] | None = None,
    ) -> list[float]:
        """Take steps on fresh batches.

        Args:
            model: Changed in place.
            draw: Makes a batch from random numbers.
            steps: How many.
            rng: Where the batches come from.
            text: What the bar says before the step and the loss.
            decay: The share of the steps, the last ones, in which the learning rate falls to 0.
            until: Looks at the losses so far, and ends the training where it says so.

        Returns:
            The loss of every step, before it.

        Raises:
            ArithmeticError: The gradients are no longer finite.

        """
        losses = []
        for step in range(steps):
            rate = min(1.0, (steps - step) / (decay * steps)) if decay else 1.0
            losses.append(model.step(draw(rng), rate * model.optimizer.lr))
            self.tell(f"{text}: step {step} of {steps}, loss {losses[-1]:.4f}")
            if until is not None and until(losses):
                self._done += steps - step - 1
                break
        return losses


@dataclass(frozen=True)
class Experiment:
    """A program, to be called like a function.

    Attributes:
        name: As ``rnnkern explore NAME`` takes it.
        summary: What ``rnnkern explore --list`` says of it.
        measure: Does the work.
        figure: Draws what was found.
        cells: Those that it runs unless told otherwise; ``None`` is all.

    """

    name: str
    summary: str
    measure: Callable[[Run], Result]
    figure: Callable[[Result], Figure]
    cells: tuple[str, ...] | None = None

    def __call__(
        self,
        *,
        seed: int = 0,
        seeds: int = 1,
        cells: Sequence[str] | None = None,
        quick: bool = False,
        progress: Progress | None = None,
    ) -> Result:
        """Run the program; ``cells=None`` takes those that it is about. The rest as in ``Run``.

        Raises:
            TypeError, ValueError: As ``Run``.

        """
        if cells is None:
            cells = tuple(CELLS) if self.cells is None else self.cells
        return self.measure(
            Run(seed=seed, seeds=seeds, cells=cells, quick=quick, progress=progress)
        )
