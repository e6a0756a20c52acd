# SPDX-License-Identifier: Apache-2.0
"""A sequence-to-sequence model over tokens: encoder, decoder, output head, decoding."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array, DType, choice, explains_options, finite_float, positive_int
from rnnkern.cells import layer_classes
from rnnkern.devices import get_device
from rnnkern.layers.arguments import check_dropout_key
from rnnkern.layers.base import stream_of_tokens
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.linear import Linear
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.steps import live_steps
from rnnkern.models.asking import Question, checked_token, checked_tokens, question
from rnnkern.models.attention import Memory, attend
from rnnkern.models.bridge import check_bridge, check_options, handed_back, handed_over
from rnnkern.models.decoding import Decoder, decode, search
from rnnkern.models.losses import Loss, loss_named
from rnnkern.models.sampling import Sampler
from rnnkern.models.seq2seq_tape import Seq2SeqTape
from rnnkern.models.teaching import Teaching, teach


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
        cell_options: Further arguments of that layer, as ``{"reset": "after"}``. Of the encoder
            alone, with a ``decoder_cell``, they may have ``reverse`` or ``merge``, but no ``merge``
            under attention.
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
        attention: ``"dot"`` lets the decoder see all that the encoder gave, and not its last states
            alone. With its h_t, the encoder's outputs m_s and α_t, the softmax over s of h_t·m_s,
            the head is given tanh(W [Σ_s α_ts m_s; h_t]), W being ``attention.weight``: the global
            attention of Luong et al. (2015), arXiv:1508.04025. ``None`` has none.

    Attributes:
        params: Every parameter by the part's name and its own, as ``encoder.weight_ih_l0``,
            ``decoder.bias_l0`` or ``output.weight``: the parts' own arrays.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An argument out of range, decoder options without a decoder cell, or layers of
            which no decoder can be made.

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
        attention: str | None = None,
    ) -> None:
        classes = layer_classes()
        choice("cell", cell, tuple(classes))
        if decoder_cell is not None:
            choice("decoder_cell", decoder_cell, tuple(classes))
        elif decoder_options is not None:
            raise ValueError("decoder_options needs a decoder_cell, got None")
        check_options(cell_options, decoder_options, one_cell=decoder_cell is None)
        seed = None if seed is None else positive_int("seed", seed, minimum=0)
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]

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
        attends = choice("attention", attention, (None, "dot")) is not None
        check_bridge(self.encoder, self.decoder, attends=attends)
        self.attention = None
        if attends:
            self.attention = Linear(
                2 * size, size, bias=False, dtype=dtype, seed=seeds[3], device=device
            )
        self.output = Linear(size, target_vocab, dtype=dtype, seed=seeds[2], device=device)
        self.bos = checked_token("bos", bos, self.output.out_features)
        self.eos = checked_token("eos", eos, self.output.out_features)
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
            "attention": attention,
        }
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        if self.attention is not None:
            parts["attention"] = self.attention
        parts["output"] = self.output
        self.params = Parameters.joined({name: part.params for name, part in parts.items()})
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
        source = checked_tokens(self._device, "source", source)
        target = checked_tokens(self._device, "target", target)
        if source.shape[1] != target.shape[1]:
            raise ValueError(
                f"source and target must agree in B, got {source.shape[1]} and {target.shape[1]}"
            )
        # Two keys of one: the two parts must not drop the same units.
        keys: tuple[int | None, int | None] = None, None
        if dropout_key is not None:
            key = check_dropout_key(dropout_key, 63)
            keys = 2 * key, 2 * key + 1
        memory, state, encoder_tape = self.encoder.forward(
            source, None, source_lengths, dropout_key=keys[0]
        )
        y, _, decoder_tape = self.decoder.forward(
            target,
            handed_over(self.encoder, self.decoder, state),
            target_lengths,
            dropout_key=keys[1],
        )
        attention_tape = None
        if self.attention is not None:
            live = None
            if target_lengths is not None:
                steps = live_steps(len(target), np.asarray(target_lengths), 0)
                live = self._device.put(steps[..., None].astype(y.dtype))
            seen = Memory(self._device, memory, source_lengths)
            y, attention_tape = attend(seen, self.attention, y, live)
        logits, output_tape = self.output.forward(y)
        back = functools.partial(handed_back, self.encoder, self.decoder)
        tape = Seq2SeqTape(encoder_tape, decoder_tape, attention_tape, output_tape, back)
        return logits, tape

    def teach(self, answers: Any, lengths: Any = None) -> Teaching:
        """What to feed the decoder, and what it is to say, for answers that are known.

        Args:
            answers: (T, B) integers without ``bos``, as `pad` or `batches` make them with ``eos``
                as the padding.
            lengths: (B,) integers in 0..T; ``None`` takes the tokens before each first ``eos``.

        Returns:
            ``Teaching``: ``fed`` (U, B), ``bos`` and then the answer; ``targets`` (U, B), the
            answer and then ``eos``; and ``lengths`` (B,), one more than the answers', of which U is
            the greatest.

        """
        answers = checked_tokens(self._device, "answers", answers)
        return teach(self._device, answers, lengths, self.bos, self.eos)

    def loss_and_grads(
        self,
        source: Any,
        answers: Any,
        source_lengths: Any = None,
        *,
        mask: Any = None,
        dropout_key: SupportsIndex | None = None,
        loss: Loss | None = None,
    ) -> tuple[float, Gradients]:
        """The mean loss of every token of the answers, each with its ``eos``, and its gradients.

        Args:
            source: (S, B) integers.
            answers: (T, B) integers filled with ``eos``, as in ``teach``.
            source_lengths: (B,) integers in 0..S; ``None`` means S throughout.
            mask: (B,), bool: the rows that count; ``None`` is all of them.
            dropout_key: As in ``forward``.
            loss: A loss of classes other than ``softmax_cross_entropy``: its name, or a function of
                logits, targets and mask that gives the mean and its gradient in the logits.

        Returns:
            The loss, on a GPU an array of shape (), and the ``Gradients``.

        """
        taught = self.teach(answers)
        logits, tape = self.forward(
            source, source_lengths, taught.fed, taught.lengths, dropout_key=dropout_key
        )
        value, dlogits = loss_named(loss)(logits, taught.targets, self._counted(taught, mask))
        return value, tape.backward(dlogits)

    def evaluate(
        self,
        source: Any,
        answers: Any,
        source_lengths: Any = None,
        *,
        mask: Any = None,
        loss: Loss | None = None,
    ) -> float:
        """The loss without dropout and without gradients; arguments as in ``loss_and_grads``."""
        taught = self.teach(answers)
        source = checked_tokens(self._device, "source", source)
        memory, state = self.encoder(source, None, source_lengths)
        y, _ = self.decoder(
            taught.fed, handed_over(self.encoder, self.decoder, state), taught.lengths
        )
        if self.attention is not None:
            seen = Memory(self._device, memory, source_lengths)
            y, _ = attend(seen, self.attention, y, None)
        counted = self._counted(taught, mask)
        value: float = loss_named(loss)(self.output(y), taught.targets, counted)[0]
        return value

    def places(
        self, source: Any, answers: Any, source_lengths: Any = None, *, mask: Any = None
    ) -> int:
        """How many tokens the mean of ``loss_and_grads`` is over, for means over batches."""
        return int(np.count_nonzero(self._device.get(self._counted(self.teach(answers), mask))))

    def part(
        self,
        source: Any,
        answers: Any,
        source_lengths: Any,
        mask: Any,
        share: Callable[[int], slice],
    ) -> tuple[Any, Any, Any, Any]:
        """Some rows of a batch, of which ``share`` says which of how many: `Ranks.share`, say."""
        rows = share(source.shape[1])
        lengths = None if source_lengths is None else np.asarray(source_lengths)[rows]
        return source[:, rows], answers[:, rows], lengths, None if mask is None else mask[rows]

    def _counted(self, taught: Teaching, mask: Any) -> Array:
        """The mask for the loss."""
        live = self._device.put(live_steps(len(taught.targets), taught.lengths, 0))
        return live if mask is None else live & self._device.array("mask", mask)

    def greedy(
        self, source: Any, source_lengths: Any = None, max_length: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Decode by taking the likeliest token at every step.

        A row ends at its first ``eos``, or after ``max_length`` tokens; decoding stops when all
        rows have ended.

        Args:
            source: (S, B) integers; (S,) of one sequence; or a list of B sequences of any lengths.
            source_lengths: (B,) integers in 0..S; ``None`` means S throughout. Those of a list are
                known.
            max_length: The most tokens of an answer, at least 1; ``None`` is 2·S + 10.

        Returns:
            Tokens (T, B) with T ≤ max_length, and lengths (B,) without the ``eos``: row b's answer
            is ``tokens[:lengths[b], b]``, and ``eos`` fills the rest; `unpad` makes a list of them.
            Of one sequence both are without B.

        """
        return self._answers(source, source_lengths, max_length, lambda y: y.argmax(axis=-1))

    def sample(
        self,
        source: Any,
        source_lengths: Any = None,
        max_length: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Decode by drawing every token by its probability.

        Args:
            source: As in ``greedy``.
            source_lengths: As in ``greedy``.
            max_length: As in ``greedy``.
            temperature: What logits are divided by, above 0.
            top_k: Draw among so many likeliest tokens; ``None`` takes all.
            seed: Of the draws; ``None`` draws one.

        Returns:
            Tokens (T, B) and lengths (B,), as ``greedy`` gives them.

        """
        pick = Sampler(temperature, top_k, seed)
        return self._answers(source, source_lengths, max_length, pick)

    def beam(
        self,
        source: Any,
        source_lengths: Any = None,
        max_length: int | None = None,
        width: int = 4,
        length_penalty: float = 0.0,
        *,
        n_best: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Decode by keeping the ``width`` best answers of every row at every step.

        Ended answers stay in the beam and compete with longer ones. Answers are ranked by
        log-probability / tokens**length_penalty, the ``eos`` counted as a token: 0 ranks by
        probability, 1 by the mean over the tokens, which favours longer answers. Width 1 is
        greedy decoding.

        Args:
            source: As in ``greedy``.
            source_lengths: As in ``greedy``.
            max_length: As in ``greedy``; an answer cut off there is ranked as it stands.
            width: Answers kept per row, at least 1.
            length_penalty: At least 0.
            n_best: So many answers of each row, at most ``width``; ``None`` is the best alone.

        Returns:
            Tokens (T, B) and lengths (B,) of the best answer, as ``greedy`` gives them, and its
            natural log-probability (B,), the ``eos`` included. With ``n_best`` all three have a
            first axis of so many, the best first; where a row has fewer answers, those beyond them
            have a log-probability of -inf.

        """
        asked = question(self._device, source, source_lengths, max_length)
        positive_int("width", width)
        finite_float("length_penalty", length_penalty, minimum=0.0)
        best = 1 if n_best is None else positive_int("n_best", n_best)
        if best > width:
            raise ValueError(f"n_best must be at most the width, {width}, got {best}")
        decoder = self._decoding(asked, width)
        found = search(decoder, asked.most, width, best, length_penalty)
        tokens, lengths, scores = asked.answered(*found)
        return (tokens[0], lengths[0], scores[0]) if n_best is None else (tokens, lengths, scores)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file that gives the logits of ``forward``; see `Recurrent.to_onnx`.

        Its inputs are ``source`` (S, B) and ``target`` (T, B), int64, and ``source_lengths`` (B,),
        int32; its output is ``logits`` (T, B, target_vocab). To decode, feed it what it has
        answered so far.
        """
        from rnnkern.interop.onnx.seq2seq import write_seq2seq

        if self.attention is not None:
            raise ValueError("to_onnx needs a model without attention, got attention='dot'")
        write_seq2seq(self.encoder, self.decoder, self.output, path)

    def _answers(
        self, source: Any, lengths: Any, max_length: int | None, pick: Callable[[Array], Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What ``greedy`` and ``sample`` give."""
        asked = question(self._device, source, lengths, max_length)
        decoder = self._decoding(asked, 1)
        tokens, ends = asked.answered(
            *decode(decoder.xp, decoder.step, decoder.first, self.eos, asked.most, pick)
        )
        return tokens, ends

    def _decoding(self, asked: Question, width: int) -> Decoder:
        """The decoder after the source, ``width`` rows for each of its rows: packed."""
        device, rows = self._device, asked.source.shape[1]
        y, encoded = self.encoder(asked.source, None, asked.lengths)
        stream = stream_of_tokens(self.decoder, rows * width)
        stream.state = handed_over(self.encoder, self.decoder, encoded, width)
        memory = combine = None
        if self.attention is not None:
            memory = Memory(device, y, asked.lengths)
            combine = self.attention.freeze()
        head = self.output.freeze()
        return Decoder(device.xp, rows, self.bos, self.eos, stream, head, memory, combine)
