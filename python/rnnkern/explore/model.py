# SPDX-License-Identifier: Apache-2.0
"""What the programs train: a `Model` by a cell's name, with its Adam."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, choice
from rnnkern.cells import CELLS
from rnnkern.explore.memory import remember
from rnnkern.layers.gradients import StateGradients
from rnnkern.layers.linear import Linear
from rnnkern.layers.tape import Tape
from rnnkern.models.losses import loss_named
from rnnkern.models.model import Model as RecurrentModel
from rnnkern.training.clip import clip_grad_norm
from rnnkern.training.optim import Adam

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Sequences and what a model is to say of them.

    Attributes:
        x: Tokens (T, B), int64, or features (T, B, I) of the model's dtype.
        targets: Of a model that reads out "all" steps (T, B, ...), of another (B, ...): classes,
            int64, without a further axis, or numbers with the axis of the model's outputs.
        lengths: (B,), where rows end before T.
        mask: (T, B) or (B,), bool: the targets that count. ``None`` is all, up to the lengths.

    """

    x: Array
    targets: Array
    lengths: Ints | None = None
    mask: Array | None = None


class Model(RecurrentModel):
    """A recurrent layer or stack of them, an affine map of what it gives, and Adam.

    Args:
        cell: A name out of ``rnnkern.cells.CELLS``.
        input_size: Tokens, or features of a step.
        hidden_size: H, units of each layer and direction.
        outputs: Classes, or numbers to be predicted.
        readout: As of a ``rnnkern.Model``.
        loss: As of a ``rnnkern.Model``: "softmax_cross_entropy" of classes, or "mse".
        lr: Learning rate.
        clip: Bound on the norm of the gradients.
        seed: Of the initial parameters.
        dtype: "float32" or "float64".
        num_layers: Stacked layers.
        bidirectional: Whether the layer also reads from the end.
        recurrent_init: As the layer's.
        forget_bias: The layer's, where its cell has one.
        memory: Over how many steps its gates start to keep the state; see ``remember``.

    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        outputs: int,
        *,
        readout: str = "all",
        loss: str = "softmax_cross_entropy",
        lr: float = 1e-3,
        clip: float = 1.0,
        seed: int = 0,
        dtype: str = "float32",
        num_layers: int = 1,
        bidirectional: bool = False,
        recurrent_init: str = "uniform",
        forget_bias: float | None = None,
        memory: int | None = None,
    ) -> None:
        own, of_head = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        kind = CELLS[choice("cell", cell, tuple(CELLS))]
        has_forget_bias = "forget_bias" in inspect.signature(kind.layer).parameters
        recurrent = kind.build(
            input_size,
            hidden_size,
            num_layers,
            dtype=dtype,
            bidirectional=bidirectional,
            recurrent_init=recurrent_init,
            seed=own,
            **({"forget_bias": forget_bias} if has_forget_bias else {}),
        )
        if memory is not None:
            remember(recurrent, memory, np.random.default_rng(seed))
        features = recurrent.num_directions * hidden_size
        head = Linear(features, outputs, dtype=dtype, seed=of_head)
        super().__init__(recurrent, head, readout=readout, loss=loss)
        self.clip = clip
        self.optimizer = Adam(self.params, lr)

    def accuracy(self, batch: Batch) -> float:
        """The share of the targets that count whose class is the likeliest by the model."""
        outputs = self.predict(batch.x, batch.lengths)
        right = outputs.argmax(axis=-1) == batch.targets
        counted = self._counted(outputs.shape[:-1], batch.lengths, batch.mask)
        return float((right if counted is None else right[counted]).mean())

    def loss_of(self, batch: Batch) -> float:
        """The loss on a batch that is not learned from."""
        return self.evaluate(batch.x, batch.targets, batch.lengths, mask=batch.mask)

    def loss_and_gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """The loss, and its gradients by the names in ``params``."""
        loss, grads = self.loss_and_grads(
            batch.x, batch.targets, batch.lengths, mask=batch.mask, x_gradient=False
        )
        return loss, grads.params

    def trace(self, batch: Batch) -> tuple[Tape, list[StateGradients]]:
        """The tape, and the gradients of every step's state and gates in the loss."""
        outputs, _, tape = self.forward(batch.x, None, batch.lengths)
        counted = self._counted(outputs.shape[:-1], batch.lengths, batch.mask)
        _, doutputs = loss_named(self.loss)(outputs, batch.targets, counted)
        traced = tape.backward(doutputs, state_gradients=True, x_gradient=False).steps
        assert traced is not None
        return tape.recurrent, traced

    def step(self, batch: Batch, lr: float | None = None) -> float:
        """Learn from a batch; its loss before.

        Raises:
            ArithmeticError: The gradients are not finite; nothing was changed.

        """
        loss, grads = self.loss_and_gradients(batch)
        if not math.isfinite(clip_grad_norm(grads, self.clip)):
            raise ArithmeticError(
                f"training diverged in step {self.optimizer.steps}: the gradients are not finite"
            )
        self.optimizer.step(grads, lr)
        return loss
