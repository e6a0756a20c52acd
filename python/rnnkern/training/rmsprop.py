# SPDX-License-Identifier: Apache-2.0
"""The optimizer RMSprop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkern._checks import Array, boolean, explains_options, finite_float, fraction, positive_float
from rnnkern.training.optim import STEPS_TO_TIDY, Optimizer, Rate


class RMSprop(Optimizer):
    """Steps relative to the root of the mean square of the gradients.

    With v the running mean of g² and m that of g, of which ``centered`` takes the square off,
    ``p ← p - lr·g / (√(v - m²) + eps)``; with a momentum such steps add up to a velocity.

    A gradient so large that its square is infinite counts as the largest that is not. One that is
    infinite or NaN makes its parameter NaN, for good: see what ``clip_grad_norm`` returns before a
    step.

    Args:
        params: What is learned, as for ``Optimizer``: a layer, arrays by name, a dict of these.
        lr: Learning rate, at least 0: a number or a `Schedule`.
        decay: Of the running means, in 0..1, 1 excluded.
        eps: Above 0.
        momentum: In 0..1, 1 excluded.
        centered: Whether the variance is taken for the mean square.
        weight_decay: At least 0; adds ``weight_decay·p`` to the gradient.

    Raises:
        TypeError: As for ``Optimizer``.
        ValueError: As for ``Optimizer``, or a hyper-parameter out of range.

    Example:
        >>> head = rk.Linear(3, 2)
        >>> y, tape = head.forward(np.ones((4, 3), np.float32))
        >>> rk.RMSprop(head, lr=1e-3).step(tape.backward(y))

    Source: Tieleman and Hinton, lecture 6.5 of "Neural networks for machine learning" (2012);
    centered: Graves, "Generating sequences with recurrent neural networks" (2013),
    arXiv:1308.0850. The defaults are PyTorch's.

    """

    @explains_options
    def __init__(
        self,
        params: Any,
        lr: Rate = 1e-2,
        decay: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.decay = fraction("decay", decay)
        self.momentum = fraction("momentum", momentum)
        self.centered = boolean("centered", centered)
        self.weight_decay = finite_float("weight_decay", weight_decay, minimum=0.0)
        kinds = {"square": True, "mean": self.centered, "velocity": self.momentum > 0.0}
        super().__init__(params, lr, tuple(kind for kind, kept in kinds.items() if kept))
        self.eps = positive_float("eps", eps, self._scratch)
        self._squares = {dtype: array.copy() for dtype, array in self._scratch.items()}

    def step(self, grads: Any, lr: float | None = None) -> None:
        """As ``Optimizer.step``."""
        grads, rate = self._begin(grads, lr)
        with np.errstate(all="ignore"):  # a number may vanish
            for scratch, p, g, *state in self._blocks(grads):
                self._descend(scratch, p, g, state, rate)
            if self.steps % STEPS_TO_TIDY == 0:
                for scratch, p, _, *state in self._blocks(grads):
                    for array in state:
                        np.abs(array, out=scratch)
                        array *= scratch >= np.finfo(p.dtype).tiny

    def _descend(self, step: Array, p: Array, g: Array, state: list[Array], rate: float) -> None:
        of_kind = dict(zip(self._state, state, strict=True))
        root = self._squares[p.dtype][: len(p)]
        np.multiply(p, self.weight_decay, out=step)
        step += g
        limit = math.sqrt(float(np.finfo(p.dtype).max) * (1.0 - self.decay)) / 2.0
        np.multiply(step, 0.0, out=root)  # NaN where it is not finite
        self._device.xp.clip(step, -limit, limit, out=step)
        step += root
        square = of_kind["square"]
        square *= self.decay
        np.square(step, out=root)
        root *= 1.0 - self.decay
        square += root
        if self.centered:
            mean = of_kind["mean"]
            mean *= self.decay
            np.multiply(step, 1.0 - self.decay, out=root)
            mean += root
            np.square(mean, out=root)
            np.subtract(square, root, out=root)
            np.maximum(root, 0.0, out=root)  # what rounding leaves below
        else:
            root[...] = square
        np.sqrt(root, out=root)
        root += self.eps
        step /= root
        if self.momentum:
            velocity = of_kind["velocity"]
            velocity *= self.momentum
            velocity += step
            np.multiply(velocity, rate, out=step)
        else:
            step *= rate
        p -= step
