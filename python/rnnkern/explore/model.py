# SPDX-License-Identifier: Apache-2.0
"""A small model that the programs train: a recurrent layer, an affine map, a loss, Adam."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, choice
from rnnkern.cells import CELLS
from rnnkern.layers import Linear, Parameters, StateGradients, Tape
from rnnkern.layers.arguments import State
from rnnkern.training.clip import clip_grad_norm
from rnnkern.training.losses import softmax_cross_entropy
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


class Model:
    """A recurrent layer or stack of them, an affine map of what it gives, and Adam.

    Args:
        cell: A name out of ``rnnkern.cells.CELLS``.
        input_size: Tokens, or features of a step.
        hidden_size: H, units of each layer and direction.
        outputs: Classes, or numbers to be predicted.
        readout: What the affine map is applied to: "all" steps, the "last" state of the top layer
            (of both directions, where there are two), or the "mean" over the live steps.
        loss: "cross-entropy" of classes, or "squared-error".
        lr: Learning rate.
        clip: Bound on the norm of the gradients.
        seed: Of the initial parameters.
        dtype: "float32" or "float64".
        num_layers: Stacked layers.
        bidirectional: Whether the layer also reads from the end.
        recurrent_init: As the layer's.
        forget_bias: The layer's, where its cell has one.

    Attributes:
        recurrent: The layer.
        head: The affine map.
        params: Those of both, by ``recurrent.`` and ``head.`` and their own name.

    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        outputs: int,
        *,
        readout: str = "all",
        loss: str = "cross-entropy",
        lr: float = 1e-3,
        clip: float = 1.0,
        seed: int = 0,
        dtype: str = "float32",
        num_layers: int = 1,
        bidirectional: bool = False,
        recurrent_init: str = "uniform",
        forget_bias: float | None = None,
    ) -> None:
        self.readout = choice("readout", readout, ("all", "last", "mean"))
        self.loss = choice("loss", loss, ("cross-entropy", "squared-error"))
        own, of_head = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        kind = CELLS[choice("cell", cell, tuple(CELLS))]
        has_forget_bias = "forget_bias" in inspect.signature(kind.layer).parameters
        self.recurrent = kind.build(
            input_size,
            hidden_size,
            num_layers,
            dtype=dtype,
            bidirectional=bidirectional,
            recurrent_init=recurrent_init,
            seed=own,
            **({"forget_bias": forget_bias} if has_forget_bias else {}),
        )
        features = self.recurrent.num_directions * hidden_size
        self.head = Linear(features, outputs, dtype=dtype, seed=of_head)
        self.params = Parameters.joined(
            {"recurrent": self.recurrent.params, "head": self.head.params}
        )
        self.clip = clip
        self.optimizer = Adam(self.params, lr)

    @property
    def parameter_count(self) -> int:
        """Numbers that training changes."""
        return sum(p.size for p in self.params.values())

    def predict(self, x: Array, lengths: Ints | None = None) -> Array:
        """The outputs, logits or numbers: (T, B, outputs) of "all" steps, else (B, outputs)."""
        y, state = self.recurrent(x, None, lengths)
        return self.head(self._features(y, state, lengths))

    def accuracy(self, batch: Batch) -> float:
        """The share of the targets that count whose class is the likeliest by the model."""
        right = self.predict(batch.x, batch.lengths).argmax(axis=-1) == batch.targets
        counted = self._counted(batch)
        return float((right if counted is None else right[counted]).mean())

    def loss_of(self, batch: Batch) -> float:
        """The loss on a batch that is not learned from."""
        return self._loss(self.predict(batch.x, batch.lengths), batch)[0]

    def loss_and_gradients(self, batch: Batch) -> tuple[float, dict[str, Array]]:
        """The loss, and its gradients by the names in ``params``."""
        loss, tape, dy, dstate, of_head = self._forward(batch)
        return loss, _joined(tape.backward(dy, dstate).params, of_head)

    def trace(self, batch: Batch) -> tuple[Tape, list[StateGradients]]:
        """The tape, and the gradients of every step's state and gates in the loss."""
        _, tape, dy, dstate, _ = self._forward(batch)
        traced = tape.backward(dy, dstate, state_gradients=True).steps
        assert traced is not None
        return tape, traced

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

    def _forward(
        self, batch: Batch
    ) -> tuple[float, Tape, Array | None, State | None, dict[str, Array]]:
        y, state, tape = self.recurrent.forward(batch.x, None, batch.lengths)
        outputs, head_tape = self.head.forward(self._features(y, state, batch.lengths))
        loss, doutputs = self._loss(outputs, batch)
        dfeatures, of_head = head_tape.backward(doutputs)
        dy, dstate = self._to_layer(dfeatures, y, state, batch.lengths)
        return loss, tape, dy, dstate, of_head

    def _features(self, y: Array, state: State, lengths: Ints | None) -> Array:
        """What the affine map sees."""
        if self.readout == "all":
            return y
        if self.readout == "last":
            h = state[0] if isinstance(state, tuple) else state
            return np.concatenate(list(h[-self.recurrent.num_directions :]), axis=-1)
        mean: Array = y.sum(axis=0) * self._share(y, lengths)
        return mean

    def _to_layer(
        self, dfeatures: Array, y: Array, state: State, lengths: Ints | None
    ) -> tuple[Array | None, State | None]:
        """The gradients in y and in the last state, from that in what the affine map saw."""
        if self.readout == "all":
            return dfeatures, None
        if self.readout == "last":
            directions = self.recurrent.num_directions
            h = state[0] if isinstance(state, tuple) else state
            dh = np.zeros_like(h)
            dh[-directions:] = np.stack(np.split(dfeatures, directions, axis=-1))
            return None, (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
        live = np.ones(y.shape[:2], bool) if lengths is None else _live(len(y), lengths)
        return live[:, :, None] * (dfeatures * self._share(y, lengths)), None

    def _share(self, y: Array, lengths: Ints | None) -> Array:
        """One over each row's length, (B, 1)."""
        if lengths is None:
            return np.full((y.shape[1], 1), 1.0 / len(y), y.dtype)
        return (1.0 / np.maximum(lengths, 1)).astype(y.dtype)[:, None]

    def _counted(self, batch: Batch) -> Array | None:
        """The mask of the targets that count."""
        if batch.mask is not None or batch.lengths is None or self.readout != "all":
            return batch.mask
        return _live(len(batch.x), batch.lengths)

    def _loss(self, outputs: Array, batch: Batch) -> tuple[float, Array]:
        counted = self._counted(batch)
        if self.loss == "cross-entropy":
            return softmax_cross_entropy(outputs, batch.targets, counted)
        return squared_error(outputs, batch.targets, counted)


def squared_error(outputs: Array, targets: Array, mask: Array | None = None) -> tuple[float, Array]:
    """Mean of (output - target)², and its gradient in the outputs (..., N).

    ``mask`` (...), bool, picks the places that count; elsewhere the gradient is 0.
    """
    if targets.shape != outputs.shape:
        raise ValueError(f"targets must have shape {outputs.shape}, got {targets.shape}")
    difference = (outputs - targets).astype(outputs.dtype, copy=False)
    if mask is not None:
        difference = np.where(mask[..., None], difference, outputs.dtype.type(0))
    count = outputs.size if mask is None else int(np.count_nonzero(mask)) * outputs.shape[-1]
    weight = 1.0 / max(count, 1)
    loss = float(np.square(difference, dtype=np.float64).sum()) * weight
    return loss, difference * outputs.dtype.type(2.0 * weight)


def _joined(recurrent: Mapping[str, Array], head: Mapping[str, Array]) -> dict[str, Array]:
    """One mapping of a layer's and an affine map's arrays."""
    return {
        **{f"recurrent.{name}": array for name, array in recurrent.items()},
        **{f"head.{name}": array for name, array in head.items()},
    }


def _live(steps: int, lengths: Ints) -> Array:
    """(T, B): whether a step is within its row's length."""
    live: Array = np.arange(steps)[:, None] < lengths
    return live
