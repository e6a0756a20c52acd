# SPDX-License-Identifier: Apache-2.0
"""The model that most programs need: recurrent layers between an embedding and a head."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, boolean, choice, explains_options, host_array
from rnnkern.devices import get_device
from rnnkern.layers.arguments import State
from rnnkern.layers.base import Recurrent
from rnnkern.layers.embedding import Embedding
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.linear import Linear
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.stack import Stack
from rnnkern.models.asking import is_list_of_sequences, predicted, refuse_of_list
from rnnkern.models.generating import written
from rnnkern.models.losses import LOSSES, Loss, loss_named
from rnnkern.models.model_tape import ModelTape
from rnnkern.models.readout import READOUTS, Readout
from rnnkern.models.rows import checked_mask, live_within
from rnnkern.models.sampling import Sampler
from rnnkern.models.stream import ModelStream
from rnnkern.training.batches import Batches


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
    steps. One sequence, (T, I) or tokens (T,), gives outputs and a state without B. Like its parts
    the model holds no hidden state.

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
        self.batch_first: bool = recurrent.batch_first
        self._axis = 1 if self.batch_first else 0
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
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        resets: Any = None,
        reset_to: Any = "zero",
        segments: Any = None,
        x_mask: Any = None,
    ) -> tuple[Array, State]:
        """Outputs and the recurrent layers' last state, with nothing kept and no dropout.

        Args:
            x: (T, B, I) of the parts' dtype, or integer tokens (T, B); without B one sequence.
            state: The recurrent layers' initial state; ``None`` is zero.
            lengths: (B,) integers in 0..T, in host memory; ``None`` means T throughout. Outputs of
                "all" steps are the head's bias past a row's length.
            resets: (T, B) bool: before these steps a row's state begins anew, as of a layer.
            reset_to: What it begins with then, as of a layer.
            segments: (T, B) integers: which of several sequences of its row a step belongs to, as
                of a layer.
            x_mask: (T, B) bool: where it is False the row skips the step, as by a layer's ``mask``.
                No readout sees it; outputs of "all" steps are the head's bias there.

        Raises:
            TypeError, ValueError: As the parts raise.

        """
        x, mask = self._input(x, x_mask)
        features = x if self.embedding is None else self.embedding(x)
        y, last_state = self.recurrent(
            features, state, lengths, resets=resets, reset_to=reset_to, segments=segments, mask=mask
        )
        last = self.recurrent.last_output(y, last_state, lengths, mask=mask)
        return self.head(self._readout(y, lengths, mask).forward(last)), last_state

    def predict(
        self,
        x: Any,
        lengths: Any = None,
        *,
        batch_first: bool | None = None,
        resets: Any = None,
        segments: Any = None,
        x_mask: Any = None,
    ) -> Any:
        """The outputs alone, from a state of zero: of an array, or of a list of sequences.

        Args:
            x: As in a call. Or a list of N sequences of any lengths, tokens (T_n,) or features
                (T_n, I), or what `batches` makes of such: they are gone through in batches of
                sequences of like lengths, which changes no bit.
            lengths: As in a call; those of a list are known.
            batch_first: Whether an array x, outputs of "all" steps and the three below are
                (B, T, ...); ``None`` is as the layers have it.
            resets: As in a call, of an array x.
            segments: As in a call, likewise.
            x_mask: As in a call, likewise.

        Returns:
            As a call gives them. Of N sequences, in their order: (N, K), or of "all" steps a list
            of N arrays (T_n, K).

        Raises:
            TypeError, ValueError: As the parts raise, or `batches`.

        Example:
            >>> model = rk.Model(rk.GRU(9, 8), rk.Linear(8, 3), readout="last")
            >>> model.predict([[5, 7, 1, 2], [8], [3, 3]]).shape
            (3, 3)

        """
        rows = {"resets": resets, "segments": segments, "x_mask": x_mask}
        if isinstance(x, Batches) or is_list_of_sequences(x):
            refuse_of_list("x", {"lengths": lengths, **rows})
            return predicted(self, x)
        as_it_is = batch_first is None or boolean("batch_first", batch_first) == (self._axis == 1)
        if as_it_is or self._is_alone(x := self._checked(x)):
            return self(x, None, lengths, **rows)[0]
        rows = {n: None if a is None else host_array(n, a).T for n, a in rows.items()}
        outputs, _ = self(x.swapaxes(0, 1), None, lengths, **rows)
        return outputs.swapaxes(0, 1) if self.readout == "all" else outputs

    def generate(
        self,
        prompt: Any,
        max_length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        stop: int | None = None,
        seed: int | None = None,
    ) -> Any:
        """Tokens that go on from a prompt, each drawn by its probability and read in turn.

        The model gives logits of the next token, as one does that learned from x = text[:-1] and
        targets = text[1:].

        Args:
            prompt: One sequence of tokens (T,); or several, as in a call or as a list of sequences
                of any lengths. Each has at least one token.
            max_length: The most tokens to draw, at least 1.
            temperature: As of `sample`: below 1 likely tokens become likelier.
            top_k: Draw among so many likeliest tokens, of which 1 is always the likeliest; ``None``
                takes all.
            stop: The token that ends a sequence, and is no part of it; ``None`` draws
                ``max_length``.
            seed: Of the draws, of which each step has one a row; ``None`` draws one.

        Returns:
            The tokens after the prompt (U,), int64; of several prompts a list of such arrays.

        Raises:
            TypeError: Tokens that are no integers, or an argument of the wrong type.
            ValueError: The model cannot write: a readout of the whole sequence, a bidirectional
                layer, more outputs than there are tokens. A prompt is empty, or an argument is out
                of range.

        Example:
            >>> model = rk.Model(rk.GRU(128, 32, seed=0), rk.Linear(32, 128, seed=1))
            >>> prompt = np.frombuffer(b"The ", np.uint8)
            >>> model.generate(prompt, 5, temperature=0.7, seed=0).shape
            (5,)

        """
        return written(self, prompt, max_length, Sampler(temperature, top_k, seed), stop)

    def forward(
        self,
        x: Any,
        state: State | None = None,
        lengths: Any = None,
        *,
        dropout_key: SupportsIndex | None = None,
        recompute: SupportsIndex | None = None,
        tbptt: SupportsIndex | None = None,
        resets: Any = None,
        reset_to: Any = "zero",
        segments: Any = None,
        x_mask: Any = None,
    ) -> tuple[Array, State, ModelTape]:
        """As a call, with dropout where the layers have it, and a tape.

        Args:
            x: As in a call; leave it and ``state`` unchanged until ``tape.backward``.
            state: As in a call.
            lengths: As in a call.
            dropout_key: Of the layers' dropout, needed where they have some.
            recompute: As of a layer's ``forward``, for long sequences.
            tbptt: As of a layer's ``forward``.
            resets: As in a call.
            reset_to: As in a call.
            segments: As in a call.
            x_mask: As in a call.

        """
        (x, mask), embedding_tape = self._input(x, x_mask), None
        if self.embedding is not None:
            x, embedding_tape = self.embedding.forward(x)
        y, last_state, tape = self.recurrent.forward(
            x,
            state,
            lengths,
            dropout_key=dropout_key,
            recompute=recompute,
            tbptt=tbptt,
            resets=resets,
            reset_to=reset_to,
            segments=segments,
            mask=mask,
        )
        readout = self._readout(y, lengths, mask)
        last = self.recurrent.last_output(y, last_state, lengths, mask=mask)
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
        tbptt: SupportsIndex | None = None,
        resets: Any = None,
        reset_to: Any = "zero",
        segments: Any = None,
        x_mask: Any = None,
        loss: Loss | None = None,
        x_gradient: bool = True,
    ) -> tuple[float, Gradients]:
        """The mean loss of the targets that count, and its gradients.

        Args:
            x: As in a call.
            targets: What the loss takes: of classes (T, B), or (B,) where the head sees one thing a
                row; of numbers shaped as the outputs.
            lengths: As in a call. Of "all" steps those past a row's length do not count, nor those
                that ``x_mask`` has a row skip.
            mask: Bool (T, B), or (B,): the targets that count; ``None`` is all of them.
            state: As in a call.
            dropout_key: As in ``forward``.
            recompute: As in ``forward``.
            tbptt: As in ``forward``.
            resets: As in a call.
            reset_to: As in a call.
            segments: As in a call.
            x_mask: As in a call.
            loss: Another loss: a name, or a function of outputs, targets and mask that gives the
                mean and its gradient in the outputs.
            x_gradient: As of the tape's ``backward``: a step of training has no use for ∂L/∂x.

        Returns:
            The loss, on a GPU an array of shape (), and the ``Gradients``.

        """
        outputs, _, tape = self.forward(
            x,
            state,
            lengths,
            dropout_key=dropout_key,
            recompute=recompute,
            tbptt=tbptt,
            resets=resets,
            reset_to=reset_to,
            segments=segments,
            x_mask=x_mask,
        )
        counted = self._counted(outputs.shape[:-1], lengths, mask, x_mask)
        value, doutputs = loss_named(loss, self.loss)(outputs, targets, counted)
        return value, tape.backward(doutputs, x_gradient=x_gradient)

    def evaluate(
        self,
        x: Any,
        targets: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        state: State | None = None,
        resets: Any = None,
        reset_to: Any = "zero",
        segments: Any = None,
        x_mask: Any = None,
        loss: Loss | None = None,
    ) -> float:
        """The loss without dropout and without gradients; arguments as in ``loss_and_grads``."""
        outputs, _ = self(
            x, state, lengths, resets=resets, reset_to=reset_to, segments=segments, x_mask=x_mask
        )
        counted = self._counted(outputs.shape[:-1], lengths, mask, x_mask)
        value: float = loss_named(loss, self.loss)(outputs, targets, counted)[0]
        return value

    def places(
        self, x: Any, targets: Any, lengths: Any = None, *, mask: Any = None, x_mask: Any = None
    ) -> int:
        """How many targets the mean of ``loss_and_grads`` is over, for means over batches."""
        x = self._checked(x)
        shape = x.shape[: 1 if self._is_alone(x) else 2]  # of the steps
        if self.readout != "all":
            shape = shape[1 - self._axis :][:1] if len(shape) == 2 else ()
        counted = self._counted(shape, lengths, mask, x_mask)
        return math.prod(shape) if counted is None else int(counted.sum())

    def part(
        self, x: Any, targets: Any, lengths: Any, mask: Any, share: Callable[[int], slice]
    ) -> tuple[Any, Any, Any, Any]:
        """Some rows of a batch, of which ``share`` says which of how many: `Ranks.share`, say."""
        if self._is_alone(x):
            raise ValueError(f"x must have an axis of rows to be shared out, got shape {x.shape}")
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
        """A batch, or one sequence."""
        array = self._device.array("x", x)
        tokens = array.dtype.kind in "iu"
        if array.ndim not in ((1, 2) if tokens else (2, 3)):
            order = ("T, B", "B, T")[self._axis]
            raise ValueError(
                f"x must have shape ({order}) of tokens or ({order}, I), or (T,) or (T, I) of "
                f"one sequence, got {array.dtype.name} {array.shape}"
            )
        return array

    def _is_alone(self, x: Array) -> bool:
        """Whether it is one sequence, without an axis of rows."""
        return bool(x.ndim == (1 if x.dtype.kind in "iu" else 2))

    def _input(self, x: Any, x_mask: Any) -> tuple[Array, NDArray[np.bool_] | None]:
        """What the first part is given, and which steps of it rows go through."""
        x = self._checked(x)
        mask = checked_mask(x, x_mask)
        if mask is not None and self.embedding is not None and x.dtype.kind in "iu":
            x = self._device.xp.where(self._device.put(mask), x, x.dtype.type(0))  # nobody looks
        return x, mask

    def _readout(self, y: Array, lengths: Any, x_mask: Any) -> Readout:
        live = live_within(y.shape[:-1], self._axis, lengths, x_mask)
        return Readout(self.readout, self._device, self._axis, y, live)

    def _counted(self, shape: tuple[int, ...], lengths: Any, mask: Any, x_mask: Any = None) -> Any:
        """Which targets count: those of the mask, and of steps those that rows go through."""
        counted = None if mask is None else self._device.array("mask", mask)
        if self.readout != "all":
            return counted
        live = live_within(shape, self._axis, lengths, x_mask)
        if live is None:
            return counted
        there = self._device.put(live)
        return there if counted is None else there & counted


def _check_part(name: str, part: Any, wanted: str, good: bool) -> None:
    if not good:
        raise TypeError(f"{name} must be {wanted}, got {type(part).__name__}")
