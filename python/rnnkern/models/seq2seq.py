# SPDX-License-Identifier: Apache-2.0
"""A sequence-to-sequence model over tokens: encoder, decoder, output head, decoding."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, DType, choice, explains_options, finite_float, positive_int
from rnnkern.cells import layer_classes
from rnnkern.devices import Device, get_device
from rnnkern.layers.arguments import check_dropout_key
from rnnkern.layers.base import state_names, stream_of_tokens
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.linear import Linear, LinearTape
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.stream import Stream


class Seq2Seq(Fixed):
    """An encoder's last states start a decoder, whose outputs a linear head turns into logits.

    All sequences are time-major integer tokens: S source steps, T target steps, B rows. A
    bidirectional encoder hands over the last states of its two directions side by side, so the
    decoder's hidden size is then twice ``hidden_size``. Where the two cells differ in kind, h is
    handed over, a c without a counterpart is dropped and a missing one starts at 0.

    Args:
        source_vocab: Number of source tokens.
        target_vocab: Number of target tokens, ``bos`` and ``eos`` among them.
        hidden_size: Hidden size of the encoder, per direction.
        cell: Encoder's layer: the name of a recurrent layer's class, as ``"GRU"`` or ``"LSTM"``.
        cell_options: Further arguments of that layer, as ``{"reset": "after"}``.
        decoder_cell: Decoder's layer; ``None`` takes the encoder's, options included.
        decoder_options: Further arguments of ``decoder_cell``.
        num_layers: Stacked layers of the encoder and of the decoder.
        bidirectional: Whether the encoder runs both ways.
        dropout: Dropout between stacked layers while training, in 0..1.
        dtype: ``"float32"`` or ``"float64"``.
        compute: How the encoder's and the decoder's products are done, as a layer's ``compute``;
            the head's are of the dtype.
        seed: Seed of the initial values; ``None`` draws a fresh one.
        bos: Target token that the decoder is fed first.
        eos: Target token that ends a sequence; it may be the same as ``bos``.
        device: ``"cpu"`` or ``"cuda"``, as for the layers. Decoding on a GPU waits for each step,
            to see whether all rows have ended.

    Attributes:
        params: Every parameter by the part's name and its own, as ``encoder.weight_ih_l0``,
            ``decoder.bias_l0`` or ``output.weight``: the parts' own arrays.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An argument out of range, or decoder options without a decoder cell.

    Example:
        >>> model = rk.Seq2Seq(10, 12, 16, bos=10, eos=11, seed=0)
        >>> source, target = np.zeros((5, 2), int), np.zeros((4, 2), int)
        >>> logits, tape = model.forward(source, [5, 3], target)
        >>> logits.shape
        (4, 2, 12)

    """

    @explains_options
    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        hidden_size: int,
        *,
        bos: int,
        eos: int,
        cell: str = "LSTM",
        cell_options: Mapping[str, Any] | None = None,
        decoder_cell: str | None = None,
        decoder_options: Mapping[str, Any] | None = None,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        dtype: DType = "float32",
        compute: str | None = None,
        seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        classes = layer_classes()
        choice("cell", cell, tuple(classes))
        if decoder_cell is not None:
            choice("decoder_cell", decoder_cell, tuple(classes))
        elif decoder_options is not None:
            raise ValueError("decoder_options needs a decoder_cell, got None")
        seed = None if seed is None else positive_int("seed", seed, minimum=0)
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]

        def part(
            kind: str,
            tokens: int,
            units: int,
            options: Mapping[str, Any] | None,
            seed: int,
            both: bool,
        ) -> Any:
            return classes[kind](
                tokens,
                units,
                num_layers,
                bidirectional=both,
                batch_first=False,
                dropout=dropout,
                dtype=dtype,
                compute=compute,
                seed=seed,
                device=device,
                **(options or {}),
            )

        self._device = get_device(device)
        self.device = self._device.name
        tokens = positive_int("source_vocab", source_vocab)
        self.encoder = part(cell, tokens, hidden_size, cell_options, seeds[0], bidirectional)
        size = self.encoder.num_directions * self.encoder.hidden_size
        tokens = positive_int("target_vocab", target_vocab)
        if decoder_cell is None:
            self.decoder = part(cell, tokens, size, cell_options, seeds[1], False)
        else:
            self.decoder = part(decoder_cell, tokens, size, decoder_options, seeds[1], False)
        self.output = Linear(size, target_vocab, dtype=dtype, seed=seeds[2], device=device)
        self.bos = _token("bos", bos, self.output.out_features)
        self.eos = _token("eos", eos, self.output.out_features)
        self._config = {
            "source_vocab": self.encoder.input_size,
            "target_vocab": self.output.out_features,
            "hidden_size": self.encoder.hidden_size,
            "bos": self.bos,
            "eos": self.eos,
            "cell": cell,
            "cell_options": None if cell_options is None else dict(cell_options),
            "decoder_cell": decoder_cell,
            "decoder_options": None if decoder_options is None else dict(decoder_options),
            "num_layers": self.encoder.num_layers,
            "bidirectional": self.encoder.bidirectional,
            "dropout": self.encoder.dropout,
            "dtype": self.encoder.dtype.name,
            "compute": self.encoder.compute,
            "seed": seed,
            "device": self.device,
        }
        self.params = Parameters.joined(
            {
                "encoder": self.encoder.params,
                "decoder": self.decoder.params,
                "output": self.output.params,
            }
        )
        self._settle()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self._config)

    def forward(
        self,
        source: Any,
        source_lengths: Any,
        target: Any,
        target_lengths: Any = None,
        *,
        dropout_key: SupportsIndex | None = None,
    ) -> tuple[Array, Seq2SeqTape]:
        """Logits with the decoder fed the true target (teacher forcing), and the tape.

        Args:
            source: (S, B) integers.
            source_lengths: (B,) integers in 0..S; ``None`` means S throughout.
            target: (T, B) integers, what the decoder is fed: ``bos``, then the answer but for
                its last token.
            target_lengths: (B,) integers in 0..T; ``None`` means T throughout. Past a row's
                length its logits are the head's bias: mask them in the loss.
            dropout_key: Needed with dropout, an integer of 0..2**63-1: the same key draws the
                same masks.

        Returns:
            Logits (T, B, target_vocab), and the tape for ``backward``.

        Raises:
            TypeError: As the layers raise.
            ValueError: As the layers raise, or source and target differ in B.

        """
        source = _tokens(self._device, "source", source)
        target = _tokens(self._device, "target", target)
        if source.shape[1] != target.shape[1]:
            raise ValueError(
                f"source and target must agree in B, got {source.shape[1]} and {target.shape[1]}"
            )
        # Two keys of one: the two parts must not drop the same units.
        keys: tuple[int | None, int | None] = None, None
        if dropout_key is not None:
            key = check_dropout_key(dropout_key, 63)
            keys = 2 * key, 2 * key + 1
        _, state, encoder_tape = self.encoder.forward(
            source, None, source_lengths, dropout_key=keys[0]
        )
        y, _, decoder_tape = self.decoder.forward(
            target, self._bridge(state), target_lengths, dropout_key=keys[1]
        )
        logits, output_tape = self.output.forward(y)
        return logits, Seq2SeqTape(self, encoder_tape, decoder_tape, output_tape)

    def greedy(
        self, source: Any, source_lengths: Any, max_length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Decode by taking the likeliest token at every step.

        A row ends at its first ``eos``, or after ``max_length`` tokens; decoding stops when all
        rows have ended.

        Args:
            source: (S, B) integers.
            source_lengths: (B,) integers in 0..S; ``None`` means S throughout.
            max_length: The most tokens of an answer, at least 1.

        Returns:
            Tokens (T, B) with T ≤ max_length, and lengths (B,) without the ``eos``: row b's answer
            is ``tokens[:lengths[b], b]``, and ``eos`` fills the rest.

        """
        positive_int("max_length", max_length)
        xp, source = self._device.xp, _tokens(self._device, "source", source)
        if source.shape[1] == 0:
            return xp.zeros((0, 0), np.int64), xp.zeros(0, np.int64)
        stream, head = self._decoding(source, source_lengths, 1)
        token = xp.full(source.shape[1], self.bos, np.int64)
        ended = xp.zeros(source.shape[1], np.bool_)
        tokens: list[NDArray[np.int64]] = []
        while len(tokens) < max_length and xp.count_nonzero(ended) < len(ended):
            token = head(stream.step(token)).argmax(axis=-1)
            ended |= token == self.eos
            tokens.append(token)
        answer = xp.stack(tokens)
        lengths = self._lengths(answer)
        # All rows go on until the last has ended; what an ended one gave since is no answer.
        past = xp.arange(len(answer))[:, np.newaxis] >= lengths
        return xp.where(past, self.eos, answer), lengths

    def beam(
        self,
        source: Any,
        source_lengths: Any,
        max_length: int,
        width: int,
        length_penalty: float = 0.0,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Decode by keeping the ``width`` best answers of every row at every step.

        Ended answers stay in the beam and compete with longer ones. Answers are ranked by
        log-probability / tokens**length_penalty, the ``eos`` counted as a token: 0 ranks by
        probability, 1 by the mean over the tokens, which favours longer answers. Width 1 is
        greedy decoding.

        Args:
            source: (S, B) integers.
            source_lengths: (B,) integers in 0..S; ``None`` means S throughout.
            max_length: The most tokens of an answer, at least 1; an answer cut off there is
                ranked as it stands.
            width: Answers kept per row, at least 1.
            length_penalty: At least 0.

        Returns:
            Tokens (T, B) and lengths (B,) of the best answer, as ``greedy`` gives them, and its
            natural log-probability (B,), the ``eos`` included.

        """
        positive_int("max_length", max_length)
        positive_int("width", width)
        finite_float("length_penalty", length_penalty, minimum=0.0)
        xp, source = self._device.xp, _tokens(self._device, "source", source)
        if source.shape[1] == 0:
            return xp.zeros((0, 0), np.int64), xp.zeros(0, np.int64), xp.zeros(0)
        stream, head = self._decoding(source, source_lengths, width)
        rows = source.shape[1]
        first = xp.arange(rows) * width  # each row's leading beam
        token = xp.full(rows * width, self.bos, np.int64)
        # One beam per row is alive at first: equal beams would stay equal.
        scores = xp.where(xp.arange(rows * width) % width == 0, 0.0, -np.inf)
        ended = xp.zeros(rows * width, np.bool_)
        counts = xp.zeros(rows * width, np.int64)
        # Of one beam at most ``width`` continuations can stay, the likeliest. An ended answer has
        # one, another eos that leaves its score as it is.
        branches = min(width, self.output.out_features)
        again = xp.where(xp.arange(branches) == 0, 0.0, -np.inf)
        taken: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # (from which beam, token)
        # Without a length penalty no answer overtakes an ended one that leads.
        while len(taken) < max_length and not (ended if length_penalty else ended[first]).all():
            likeliest, steps = _likeliest(xp, head(stream.step(token)), branches)
            over = ended[:, np.newaxis]
            chosen = xp.where(over, self.eos, likeliest)
            totals = scores[:, np.newaxis] + xp.where(over, again, steps)
            ranks = totals
            if length_penalty:
                counts += ~ended
                ranks = totals / counts[:, np.newaxis] ** length_penalty
            best = xp.argsort(-ranks.reshape(rows, -1), axis=1, kind="stable")[:, :width]
            parent, branch = xp.divmod(best, branches)
            origin, branch = (first[:, np.newaxis] + parent).reshape(-1), branch.reshape(-1)
            token, scores, counts = chosen[origin, branch], totals[origin, branch], counts[origin]
            ended = token == self.eos
            if width > 1:
                stream.take(origin)
            taken.append((origin, token))
        beam = first
        answer = []
        for origin, token in reversed(taken):
            answer.append(token[beam])
            beam = origin[beam]
        tokens = xp.stack(answer[::-1])
        return tokens, self._lengths(tokens), scores[first]

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file that gives the logits of ``forward``; see `Recurrent.to_onnx`.

        Its inputs are ``source`` (S, B) and ``target`` (T, B), int64, and ``source_lengths`` (B,),
        int32; its output is ``logits`` (T, B, target_vocab). To decode, feed it what it has
        answered so far.
        """
        from rnnkern.interop.onnx.seq2seq import write_seq2seq

        write_seq2seq(self.encoder, self.decoder, self.output, path)

    def _decoding(
        self, source: Array, source_lengths: Any, width: int
    ) -> tuple[Stream, Callable[[Array], Array]]:
        """The decoder after the source, ``width`` rows for each of its rows; the head: packed."""
        _, encoded = self.encoder(source, None, source_lengths)
        stream = stream_of_tokens(self.decoder, source.shape[1] * width)
        states = _as_tuple(self._bridge(encoded))
        stream.state = _as_state(tuple(self._device.xp.repeat(s, width, axis=1) for s in states))
        return stream, self.output.freeze()

    def _lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each column before its first eos."""
        ends = self._device.xp.cumsum(tokens == self.eos, axis=0)
        lengths: NDArray[np.int64] = (ends == 0).sum(axis=0, dtype=np.int64)
        return lengths

    def _bridge(self, state: Any) -> Any:
        """The encoder's last state as the decoder's first."""
        layers, directions = self.decoder.num_layers, self.encoder.num_directions

        def side_by_side(s: Array) -> Array:
            _, rows, size = s.shape
            split = s.reshape(layers, directions, rows, size).transpose(0, 2, 1, 3)
            merged: Array = split.reshape(layers, rows, directions * size)
            return merged

        states = tuple(side_by_side(s) for s in _as_tuple(state))
        return self._handed_over(self.encoder, states, self.decoder)

    def _bridge_backward(self, dstate: Any) -> Any:
        """The gradient of ``_bridge``."""
        layers, directions = self.decoder.num_layers, self.encoder.num_directions

        def apart(d: Array) -> Array:
            _, rows, size = d.shape
            split = d.reshape(layers, rows, directions, size // directions).transpose(0, 2, 1, 3)
            merged: Array = split.reshape(layers * directions, rows, size // directions)
            return merged

        states = tuple(apart(d) for d in _as_tuple(dstate))
        return self._handed_over(self.decoder, states, self.encoder)

    def _handed_over(self, giver: Any, states: tuple[Array, ...], taker: Any) -> Any:
        """One layer's states as another takes them: a missing one is 0, one too many is dropped."""
        given = dict(zip(state_names(giver), states, strict=True))
        zero = self._device.xp.zeros_like
        names = state_names(taker)
        return _as_state(tuple(given[n] if n in given else zero(states[0]) for n in names))


class Seq2SeqTape:
    """What one ``Seq2Seq.forward`` kept. ``backward`` may be called any number of times."""

    def __init__(
        self, model: Seq2Seq, encoder_tape: Any, decoder_tape: Any, output_tape: LinearTape
    ) -> None:
        self._model = model
        self._encoder_tape = encoder_tape
        self._decoder_tape = decoder_tape
        self._output_tape = output_tape

    def backward(self, dlogits: Array) -> Gradients:
        """``Gradients`` whose ``params`` are named like those of the ``Seq2Seq``; there is no x.

        Args:
            dlogits: Gradient of the loss in the logits (T, B, target_vocab).

        """
        output = self._output_tape.backward(dlogits)
        decoder = self._decoder_tape.backward(output.x)
        dstate = self._model._bridge_backward(decoder.state)
        encoder = self._encoder_tape.backward(None, dstate)
        parts = {"encoder": encoder, "decoder": decoder, "output": output}
        return Gradients(
            {
                f"{part}.{name}": array
                for part, gradients in parts.items()
                for name, array in gradients.params.items()
            }
        )


def _token(name: str, value: int, vocabulary: int) -> int:
    """`value`, which must be one of the vocabulary's tokens."""
    token = positive_int(name, value, minimum=0)
    if token >= vocabulary:
        raise ValueError(f"{name} must be in 0..{vocabulary - 1}, got {token}")
    return token


def _tokens(device: Device, name: str, value: Any) -> Array:
    """`value` as the device's array (steps, B) of integers."""
    array = device.array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (steps, B), got {array.shape}")
    return array


def _as_tuple(state: Any) -> tuple[Array, ...]:
    """A layer's state, ``h`` or ``(h, c)``, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def _as_state(states: tuple[Array, ...]) -> Any:
    """The inverse of ``_as_tuple``."""
    return states if len(states) > 1 else states[0]


def _likeliest(xp: Any, logits: Array, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``count`` likeliest tokens of each row, ties by token, and their log-probabilities.

    Both are (rows, count). The logits are spoilt.
    """
    rows = xp.arange(len(logits))
    top = logits.max(axis=1)
    with np.errstate(all="ignore"):  # what is far from likely vanishes
        total = top + np.log(np.exp(logits - top[:, np.newaxis]).sum(axis=1, dtype=np.float64))
    tokens, steps = [], []
    for _ in range(count):  # a few maxima cost less than a partition
        tokens.append(logits.argmax(axis=1))
        steps.append(logits[rows, tokens[-1]] - total)
        logits[rows, tokens[-1]] = -np.inf
    return xp.stack(tokens, axis=1), xp.stack(steps, axis=1)
