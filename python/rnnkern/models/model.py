# SPDX-License-Identifier: Apache-2.0
"""The model that most programs need: recurrent layers between an embedding and a head."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np

from rnnkern._checks import Array, choice, explains_options
from rnnkern.devices import get_device
from rnnkern.layers.arguments import State
from rnnkern.layers.base import Recurrent
from rnnkern.layers.embedding import Embedding, EmbeddingTape
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.linear import Linear, LinearTape
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.stack import Stack
from rnnkern.layers.steps import live_steps
from rnnkern.models.losses import LOSSES, Loss, loss_named
from rnnkern.models.readout import READOUTS, Readout
from rnnkern.models.stream import ModelStream


class Model(Fixed):
    """Recurrent layers, a linear head on what they give, and an embedding before them if wanted.

    Args:
        recurrent: The recurrent layer or layers, or a ``Stack`` of them.
        head: What turns their outputs into the model's.
        embedding: What turns tokens into features; ``None`` hands x to the layers as it is.
        readout: What the head sees: the outputs of "all" steps, "last", the last h of the top layer
            (of both directions, each where it ends), or their "mean" or "max" over a row's steps.
        loss: What ``loss_and_grads`` is of, unless told otherwise: the name of a loss of this
            package that takes outputs, targets and mask.

    Attributes:
        params: Every parameter by the part's name and its own, as ``embedding.weight``,
            ``recurrent.weight_ih_l0`` or ``head.weight``: the parts' own arrays.

    Raises:
        TypeError: A part is of another class.
        ValueError: The parts do not fit each other, or a name is not known.

    With T steps, B rows and K outputs: x is (T, B, I), or tokens (T, B); outputs are (T, B, K) of
    "all" steps, else (B, K). Where the layers are ``batch_first`` so are x and the outputs of "all"
    steps. Like its parts the model holds no hidden state.

    Example:
        >>> model = rk.Model(rk.LSTM(32, 64), rk.Linear(64, 2), embedding=rk.Embedding(500, 32),
        ...                  readout="last")
        >>> x, lengths = rk.pad([[5, 7, 9], [1, 2]])
        >>> loss, grads = model.loss_and_grads(x, np.array([0, 1]), lengths)
        >>> rk.Adam(model).step(grads)
        >>> model.predict(x, lengths).shape
        (2, 2)

    """

    @explains_options
    def __init__(
        self,
        recurrent: Any,
        head: Linear,
        *,
        embedding: Embedding | None = None,
        readout: str = "all",
        loss: str = "softmax_cross_entropy",
    ) -> None:
        _check_part(
            "recurrent", recurrent, "a recurrent layer", isinstance(recurrent, (Recurrent, Stack))
        )
        _check_part("head", head, "a Linear", isinstance(head, Linear))
        parts: dict[str, Any] = {"recurrent": recurrent, "head": head}
        if embedding is not None:
            _check_part("embedding", embedding, "an Embedding", isinstance(embedding, Embedding))
            parts = {"embedding": embedding, **parts}
        for name, part in parts.items():
            for fact in ("dtype", "device"):
                own, wanted = getattr(part, fact), getattr(recurrent, fact)
                if own != wanted:
                    raise ValueError(
                        f"{name} must have the {fact} of the recurrent layers, {wanted}, got {own}"
                    )
        features = recurrent.output_size
        if head.in_features != features:
            raise ValueError(
                f"head must have in_features={features}, as many as the recurrent layers give, "
                f"got {head.in_features}"
            )
        if embedding is not None and embedding.features != recurrent.input_size:
            raise ValueError(
                f"embedding must have features={recurrent.input_size}, the recurrent layers' "
                f"input_size, got {embedding.features}"
            )
        self.recurrent = recurrent
        self.head = head
        self.embedding = embedding
        self.readout = choice("readout", readout, READOUTS)
        self.loss = choice("loss", loss, tuple(LOSSES))
        self.dtype = recurrent.dtype
        self.device = recurrent.device
        self._device = get_device(self.device)
        self._axis = 1 if recurrent.batch_first else 0
        self.params = Parameters.joined({name: part.params for name, part in parts.items()})
        self._settle()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "recurrent": self.recurrent,
            "head": self.head,
            "embedding": self.embedding,
            "readout": self.readout,
            "loss": self.loss,
        }

    def __call__(
        self, x: Any, state: State | None = None, lengths: Any = None
    ) -> tuple[Array, State]:
        """Outputs and the recurrent layers' last state, with nothing kept and no dropout.

        Args:
            x: (T, B, I) of the parts' dtype, or integer tokens (T, B).
            state: The recurrent layers' initial state; ``None`` is zero.
            lengths: (B,) integers in 0..T, in host memory; ``None`` means T throughout. Outputs of
                "all" steps are the head's bias past a row's length.

        Raises:
            TypeError, ValueError: As the parts raise.

        """
        x = self._checked(x)
        features = x if self.embedding is None else self.embedding(x)
        y, last_state = self.recurrent(features, state, lengths)
        last = self.recurrent.last_output(y, last_state, lengths)
        return self.head(self._readout(y, lengths).forward(last)), last_state

    def predict(self, x: Any, lengths: Any = None) -> Array:
        """The outputs alone, from a state of zero."""
        return self(x, None, lengths)[0]

    def forward(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        dropout_key: SupportsIndex | None = None,
        recompute: SupportsIndex | None = None,
    ) -> tuple[Array, State, ModelTape]:
        """As a call, with dropout where the layers have it, and a tape.

        Args:
            x: As in a call; leave it and ``state`` unchanged until ``tape.backward``.
            state: As in a call.
            lengths: As in a call.
            dropout_key: Of the layers' dropout, needed where they have some.
            recompute: As of a layer's ``forward``, for long sequences.

        """
        x, embedding_tape = self._checked(x), None
        if self.embedding is not None:
            x, embedding_tape = self.embedding.forward(x)
        y, last_state, tape = self.recurrent.forward(
            x, state, lengths, dropout_key=dropout_key, recompute=recompute
        )
        readout = self._readout(y, lengths)
        last = self.recurrent.last_output(y, last_state, lengths)
        outputs, head_tape = self.head.forward(readout.forward(last))
        return outputs, last_state, ModelTape(embedding_tape, tape, readout, head_tape)

    def loss_and_grads(
        self,
        x: Any,
        targets: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        state: State | None = None,
        dropout_key: SupportsIndex | None = None,
        recompute: SupportsIndex | None = None,
        loss: Loss | None = None,
    ) -> tuple[float, Gradients]:
        """The mean loss of the targets that count, and its gradients.

        Args:
            x: As in a call.
            targets: What the loss takes: of classes (T, B), or (B,) where the head sees one thing a
                row; of numbers shaped as the outputs.
            lengths: As in a call. Of "all" steps those past a row's length do not count.
            mask: Bool (T, B), or (B,): the targets that count; ``None`` is all of them.
            state: As in a call.
            dropout_key: As in ``forward``.
            recompute: As in ``forward``.
            loss: Another loss: a name, or a function of outputs, targets and mask that gives the
                mean and its gradient in the outputs.

        Returns:
            The loss, on a GPU an array of shape (), and the ``Gradients``.

        """
        outputs, _, tape = self.forward(
            x, state, lengths, dropout_key=dropout_key, recompute=recompute
        )
        value, doutputs = loss_named(loss, self.loss)(
            outputs, targets, self._counted(outputs, lengths, mask)
        )
        return value, tape.backward(doutputs)

    def evaluate(
        self,
        x: Any,
        targets: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        state: State | None = None,
        loss: Loss | None = None,
    ) -> float:
        """The loss without dropout and without gradients; arguments as in ``loss_and_grads``."""
        outputs, _ = self(x, state, lengths)
        counted = self._counted(outputs, lengths, mask)
        value: float = loss_named(loss, self.loss)(outputs, targets, counted)[0]
        return value

    def places(self, x: Any, targets: Any, lengths: Any = None, *, mask: Any = None) -> int:
        """How many targets the mean of ``loss_and_grads`` is over, for means over batches."""
        of, axes = (x, 2) if self.readout == "all" else (targets, 1)
        shape = self._device.array("x or targets", of).shape[:axes]
        counted = self._mask(shape, lengths, mask)
        return math.prod(shape) if counted is None else int(counted.sum())

    def part(
        self, x: Any, targets: Any, lengths: Any, mask: Any, share: Callable[[int], slice]
    ) -> tuple[Any, Any, Any, Any]:
        """Some rows of a batch, of which ``share`` says which of how many: `Ranks.share`, say."""
        rows = share(x.shape[1 - self._axis])
        of_x: Any = (slice(None), rows) if self._axis == 0 else rows
        own = of_x if self.readout == "all" else rows
        lengths = None if lengths is None else np.asarray(lengths)[rows]
        return x[of_x], targets[own], lengths, None if mask is None else mask[own]

    def to_onnx(
        self, path: str | os.PathLike[str], *, lengths: bool = False, tokens: bool = False
    ) -> None:
        """Write an ONNX file that gives what ``predict`` gives; see `Recurrent.to_onnx`.

        Its input is ``x``, tokens (T, B) where there is an embedding, and its output ``y``.

        Args:
            path: The file to write or to replace.
            lengths: Whether ``lengths`` (B,), int32, is an input too.
            tokens: Whether x is tokens where there is no embedding: one-hot rows.

        """
        from rnnkern.interop.onnx.model_writing import write_model

        several = isinstance(self.recurrent, Stack)
        write_model(
            self.recurrent.layers if several else [self.recurrent],
            self.recurrent.residual if several else [False],
            self.head,
            None if self.embedding is None else self.embedding.params["weight"],
            self.readout,
            path,
            lengths=lengths,
            tokens=tokens,
        )

    def stream(self, batch: int = 1, *, weights: str | None = None) -> ModelStream:
        """A stepper through embedding, layers and head for sequences that arrive piece by piece.

        Args:
            batch: Rows, each a sequence of its own.
            weights: As in a layer's ``stream``.

        Raises:
            ValueError: A layer is bidirectional, or the readout is "mean" or "max", which need the
                whole sequence.

        """
        if self.readout not in ("all", "last"):
            raise ValueError(
                f"stream needs readout='all' or 'last', got {self.readout!r}, which is of the "
                "whole sequence"
            )
        stream = self.recurrent.stream(batch, weights=weights)
        return ModelStream(self.embedding, stream, self.head)

    def _checked(self, x: Any) -> Array:
        """A batch: what has no axis of rows is refused."""
        array = self._device.array("x", x)
        tokens = array.dtype.kind in "iu"
        if array.ndim != (2 if tokens else 3):
            order = ("T, B", "B, T")[self._axis]
            raise ValueError(
                f"x must have shape ({order}) of tokens or ({order}, I), got {array.shape}: "
                f"{('x[:, None]', 'x[None]')[self._axis]} makes a batch of one sequence"
            )
        return array

    def _readout(self, y: Array, lengths: Any) -> Readout:
        lengths = None if lengths is None else np.array(lengths, np.int64)  # the tape's own
        return Readout(self.readout, self._device, self._axis, y, lengths)

    def _counted(self, outputs: Array, lengths: Any, mask: Any) -> Array | None:
        """The mask for the loss."""
        shape = outputs.shape[:-1]
        counted = self._mask(shape, lengths, mask)
        return None if counted is None else self._device.put(counted)

    def _mask(self, shape: tuple[int, ...], lengths: Any, mask: Any) -> Any:
        """Which targets count: those of the mask, and of steps those within their lengths."""
        if lengths is None or self.readout != "all":
            return mask
        live = live_steps(shape[self._axis], np.asarray(lengths), self._axis)
        if mask is None:
            return live
        return self._device.put(live) & self._device.array("mask", mask)


class ModelTape:
    """What one ``Model.forward`` kept. ``backward`` may be called any number of times.

    Attributes:
        recurrent: The recurrent layers' own tape.

    Example:
        >>> model = rk.Model(rk.GRU(3, 4, seed=0), rk.Linear(4, 2, seed=1))
        >>> outputs, h, tape = model.forward(np.ones((5, 2, 3), np.float32))
        >>> gradients = tape.backward(np.ones_like(outputs))
        >>> sorted(gradients.params) == sorted(model.params)
        True

    """

    def __init__(
        self,
        embedding: EmbeddingTape | None,
        recurrent: Any,
        readout: Readout,
        head: LinearTape,
    ) -> None:
        self.recurrent = recurrent
        self._embedding = embedding
        self._readout = readout
        self._head = head

    def __repr__(self) -> str:
        return f"ModelTape({self.recurrent!r})"

    def backward(
        self, doutputs: Any, dstate: State | None = None, *, state_gradients: bool = False
    ) -> Gradients:
        """Gradients of a loss L.

        Args:
            doutputs: ∂L/∂outputs, shaped as these.
            dstate: ∂L/∂(last state), as a layer's tape takes it; ``None`` is zero.
            state_gradients: As of a layer's tape.

        Returns:
            ``Gradients`` with ``params`` by the model's names, ``x`` (``None`` for tokens) and
            ``state``, the gradient in the initial one.

        Raises:
            TypeError, ValueError: ``doutputs`` or ``dstate`` has the wrong dtype or shape.

        """
        head = self._head.backward(doutputs)
        assert head.x is not None
        dy, dlast = self._readout.backward(head.x)
        layers = self.recurrent.backward(dy, dstate, dlast=dlast, state_gradients=state_gradients)
        parts: dict[str, Mapping[str, Array]] = {"recurrent": layers.params, "head": head.params}
        if self._embedding is not None:
            parts = {"embedding": self._embedding.backward(layers.x).params, **parts}
        return Gradients(
            params={
                f"{p}.{name}": array for p, own in parts.items() for name, array in own.items()
            },
            x=layers.x if self._embedding is None else None,
            state=layers.state,
            steps=layers.steps,
        )


def _check_part(name: str, part: Any, wanted: str, good: bool) -> None:
    if not good:
        raise TypeError(f"{name} must be {wanted}, got {type(part).__name__}")
