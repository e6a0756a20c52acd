# SPDX-License-Identifier: Apache-2.0
"""What decides a training run of the adder."""

from __future__ import annotations

from dataclasses import dataclass

from rnnkern._checks import boolean, choice, finite_float, positive_int
from rnnkern.cells import CELLS


@dataclass(frozen=True)
class Settings:
    """What decides a training run; a resumed run keeps them.

    Attributes:
        digits: The most digits of a number, 1 to 6.
        cell: A name out of ``rnnkern.cells.CELLS``, for the encoder and the decoder.
        hidden: Hidden size.
        layers: Stacked layers of the encoder and of the decoder.
        bidirectional: Whether the encoder reads both ways; the decoder is then twice as wide.
        attention: Whether the decoder sees all that the encoder gave, and not its last states
            alone.
        steps: Steps of the whole run.
        minutes: Minutes of the whole run; the steps do not matter then.
        batch: Questions per step.
        lr: The highest learning rate of the run.
        clip: The bound on the norm of the gradients.
        compute: How the cells' products are done: ``None`` for float32, or ``"bfloat16"``.
        seed: Seed of the initial values and of the order of the questions.
        share: The share of all pairs that training draws from; the others are held out.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A value out of range.

    """

    digits: int = 3
    cell: str = "lstm"
    hidden: int = 128
    layers: int = 1
    bidirectional: bool = False
    attention: bool = False
    steps: int = 5000
    minutes: float | None = None
    batch: int = 256
    lr: float = 6e-3
    clip: float = 1.0
    compute: str | None = None
    seed: int = 0
    share: float = 0.2

    def __post_init__(self) -> None:
        if positive_int("digits", self.digits) > 6:
            raise ValueError(f"digits must be at most 6, got {self.digits}")
        boolean("bidirectional", self.bidirectional)
        boolean("attention", self.attention)
        choice("cell", self.cell, tuple(CELLS))
        choice("compute", self.compute, (None, "bfloat16"))
        for name in ("hidden", "layers", "steps", "batch"):
            positive_int(name, getattr(self, name))
        if positive_int("seed", self.seed, minimum=0) >= 1 << 63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        finite_float("lr", self.lr, minimum=0.0, exclusive=True)
        finite_float("clip", self.clip, minimum=0.0, exclusive=True)
        finite_float("share", self.share, minimum=0.0, maximum=1.0, exclusive=True)
        if self.minutes is not None:
            finite_float("minutes", self.minutes, minimum=0.0, exclusive=True)
