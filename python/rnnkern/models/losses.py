# SPDX-License-Identifier: Apache-2.0
"""The losses that models know by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from rnnkern._checks import choice
from rnnkern.training.losses import binary_cross_entropy, huber, mse, softmax_cross_entropy

LOSSES: dict[str, Callable[..., Any]] = {
    loss.__name__: loss for loss in (softmax_cross_entropy, binary_cross_entropy, mse, huber)
}
Loss: TypeAlias = "str | Callable[..., Any]"  # a name out of LOSSES, or a function as those are


def loss_named(loss: Loss | None, default: str = "softmax_cross_entropy") -> Callable[..., Any]:
    """The function; ``None`` is the default."""
    if callable(loss):
        return loss
    return LOSSES[default if loss is None else choice("loss", loss, tuple(LOSSES))]
