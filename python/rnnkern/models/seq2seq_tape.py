# SPDX-License-Identifier: Apache-2.0
"""What a Seq2Seq's forward pass keeps, and the backward pass over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnnkern._checks import Array
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.linear import LinearTape
from rnnkern.models.attention import AttentionTape


class Seq2SeqTape:
    """What one ``Seq2Seq.forward`` kept. ``backward`` may be called any number of times."""

    def __init__(
        self,
        encoder_tape: Any,
        decoder_tape: Any,
        attention_tape: AttentionTape | None,
        output_tape: LinearTape,
        handed_back: Callable[[Any], Any],
    ) -> None:
        self._encoder_tape = encoder_tape
        self._decoder_tape = decoder_tape
        self._attention_tape = attention_tape
        self._output_tape = output_tape
        self._handed_back = handed_back

    def __repr__(self) -> str:
        return f"Seq2SeqTape({self._encoder_tape!r}, {self._decoder_tape!r})"

    def attention(self) -> Array | None:
        """α (B, T, S): how much each target step looked at each source step; None without one."""
        return None if self._attention_tape is None else self._attention_tape.weights

    def backward(self, dlogits: Array) -> Gradients:
        """``Gradients`` whose ``params`` are named like those of the ``Seq2Seq``; there is no x.

        Args:
            dlogits: Gradient of the loss in the logits (T, B, target_vocab).

        """
        output = self._output_tape.backward(dlogits)
        dy, dmemory, parts = output.x, None, {"output": output.params}
        if self._attention_tape is not None:
            assert dy is not None
            dy, dmemory, own = self._attention_tape.backward(dy)
            parts = {"attention": own, **parts}
        decoder = self._decoder_tape.backward(dy)
        encoder = self._encoder_tape.backward(dmemory, self._handed_back(decoder.state))
        parts = {"encoder": encoder.params, "decoder": decoder.params, **parts}
        return Gradients(
            {f"{p}.{name}": array for p, own in parts.items() for name, array in own.items()}
        )
