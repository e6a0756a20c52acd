# SPDX-License-Identifier: Apache-2.0
"""What a language model writes: each token that it draws it reads in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnnkern._checks import Array, positive_int
from rnnkern.devices import get_device
from rnnkern.models.asking import checked_token, checked_tokens, is_list_of_sequences
from rnnkern.models.decoding import Ints, decode
from rnnkern.training.batches import checked_sequences, pad, unpad

_NEVER = -1  # what no token is


def written(
    model: Any, prompt: Any, max_length: int, pick: Callable[[Array], Ints], stop: int | None
) -> Any:
    """See ``Model.generate``, whose draws are those of ``pick``."""
    if model.readout not in ("all", "last"):
        raise ValueError(
            f"generate needs readout='all' or 'last', got {model.readout!r}, which is of the whole "
            "sequence"
        )
    outputs = model.head.out_features
    known = model.recurrent.input_size if model.embedding is None else model.embedding.tokens
    if outputs > known:
        raise ValueError(
            f"generate needs a head with at most out_features={known}, as many as there are tokens "
            f"to read, got {outputs}"
        )
    most = positive_int("max_length", max_length)
    end = _NEVER if stop is None else checked_token("stop", stop, outputs)
    tokens, lengths, alone = _prompts(model, prompt)
    device, axis, rows = get_device(model.device), int(model.batch_first), len(lengths)
    stream = model.stream(rows)
    # The last token of each prompt is the first that the stream reads.
    features = tokens if model.embedding is None else model.embedding(tokens)
    _, stream.state = model.recurrent(features, None, lengths - 1)
    places = lengths - 1, np.arange(rows)
    last = tokens[tuple(device.put(place) for place in (places if axis == 0 else places[::-1]))]
    answers, ends = decode(device.xp, stream.step, last.astype(np.int64), end, most, pick)
    found = unpad(answers, ends)
    return found[0] if alone else found


def _prompts(model: Any, prompt: Any) -> tuple[Array, Ints, bool]:
    """Tokens as the layers take them, (T, B) or (B, T), lengths, and whether it was one prompt."""
    device = get_device(model.device)
    if is_list_of_sequences(prompt):
        padded, lengths = pad(
            list(checked_sequences("prompt", prompt)), batch_first=model.batch_first
        )
        tokens, alone = checked_tokens(device, "prompt", device.put(padded)), False
    else:
        tokens = device.array("prompt", prompt)
        alone = tokens.ndim == 1
        if alone:
            tokens = tokens[None] if model.batch_first else tokens[:, None]
        tokens = checked_tokens(device, "prompt", tokens)
        axis = int(model.batch_first)
        lengths = np.full(tokens.shape[1 - axis], tokens.shape[axis], np.int64)
    if lengths.min(initial=1) < 1:
        raise ValueError("prompt must have at least one token, got a sequence of none")
    return tokens, lengths, alone
