# SPDX-License-Identifier: Apache-2.0
"""Answers of a decoder token by token: the likeliest at every step, drawn ones, a beam of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array
from rnnkern.layers.linear import FrozenLinear
from rnnkern.layers.stream import Stream
from rnnkern.models.attention import Memory, attend_step

Ints = NDArray[np.int64]


@dataclass
class Decoder:
    """A decoder that has read a source, some rows for each of the source's.

    Attributes:
        xp: The array module.
        rows: Of the source.
        bos: What is fed first.
        eos: What ends an answer.
        stream: The decoder's layer, step by step.
        head: Its outputs' logits.
        memory: What the encoder gave, where it is attended to.
        combine: What joins the context and the decoder's output there.

    """

    xp: Any
    rows: int
    bos: int
    eos: int
    stream: Stream
    head: FrozenLinear
    memory: Memory | None
    combine: FrozenLinear | None

    @property
    def first(self) -> Ints:
        """The tokens (rows,) that are fed first."""
        tokens: Ints = self.xp.full(self.rows, self.bos, np.int64)
        return tokens

    def step(self, token: Ints) -> Array:
        """The logits after these tokens, one a row."""
        h = self.stream.step(token)
        if self.memory is not None:
            h = attend_step(self.memory, self.combine, h)
        return self.head(h)


def decode(
    xp: Any,
    step: Callable[[Ints], Array],
    first: Ints,
    eos: int,
    max_length: int,
    pick: Callable[[Array], Ints],
) -> tuple[Ints, Ints]:
    """Answers (T, B), filled with eos, and their lengths (B,).

    ``step`` gives the logits after a token of each row, of which ``first`` (B,) are the first, and
    ``pick`` the next tokens of these.
    """
    if len(first) == 0:
        return xp.zeros((0, 0), np.int64), xp.zeros(0, np.int64)
    token = first
    ended = xp.zeros(len(first), np.bool_)
    tokens: list[Ints] = []
    while len(tokens) < max_length and xp.count_nonzero(ended) < len(ended):
        token = pick(step(token))
        ended |= token == eos
        tokens.append(token)
    answer = xp.stack(tokens)
    lengths = lengths_of(xp, answer, eos)
    # All rows go on until the last has ended; what an ended one gave since is no answer.
    past = xp.arange(len(answer))[:, np.newaxis] >= lengths
    return xp.where(past, eos, answer), lengths


def search(
    decoder: Decoder, max_length: int, width: int, best: int, length_penalty: float
) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """The ``best`` answers (best, T, B) of a beam, their lengths and log-probabilities (best, B).

    The decoder has ``width`` rows for each of the source's.
    """
    xp, rows = decoder.xp, decoder.rows
    if rows == 0:
        return xp.zeros((best, 0, 0), np.int64), xp.zeros((best, 0), np.int64), xp.zeros((best, 0))
    first = xp.arange(rows) * width  # each row's leading beam
    token = xp.full(rows * width, decoder.bos, np.int64)
    # One beam per row is alive at first: equal beams would stay equal.
    scores = xp.where(xp.arange(rows * width) % width == 0, 0.0, -np.inf)
    ended = xp.zeros(rows * width, np.bool_)
    counts = xp.zeros(rows * width, np.int64)
    taken: list[tuple[Ints, Ints]] = []  # (from which beam, token)
    # Without a length penalty no answer overtakes ended ones that lead.
    leading = width if length_penalty else best
    while len(taken) < max_length and not ended.reshape(rows, width)[:, :leading].all():
        logits = decoder.step(token)
        # Of one beam at most ``width`` continuations can stay, the likeliest. An ended answer has
        # one, another eos that leaves its score as it is.
        branches = min(width, logits.shape[1])
        again = xp.where(xp.arange(branches) == 0, 0.0, -np.inf)
        likeliest, steps = _likeliest(xp, logits, branches)
        over = ended[:, np.newaxis]
        chosen = xp.where(over, decoder.eos, likeliest)
        totals = scores[:, np.newaxis] + xp.where(over, again, steps)
        ranks = totals
        if length_penalty:
            counts += ~ended
            ranks = totals / counts[:, np.newaxis] ** length_penalty
        kept = xp.argsort(-ranks.reshape(rows, -1), axis=1, kind="stable")[:, :width]
        parent, branch = xp.divmod(kept, branches)
        origin, branch = (first[:, np.newaxis] + parent).reshape(-1), branch.reshape(-1)
        token, scores, counts = chosen[origin, branch], totals[origin, branch], counts[origin]
        ended = token == decoder.eos
        if width > 1:
            decoder.stream.take(origin)  # each goes on with a beam of its own row
        taken.append((origin, token))
    beams = first + xp.arange(best)[:, np.newaxis]
    beam, answer = beams, []
    for origin, token in reversed(taken):
        answer.append(token[beam])
        beam = origin[beam]
    tokens = xp.stack(answer[::-1], axis=1)
    return tokens, lengths_of(xp, tokens, decoder.eos), scores[beams]


def lengths_of(xp: Any, tokens: Ints, eos: int) -> Ints:
    """Tokens before the first eos along the last axis but one."""
    ends = xp.cumsum(tokens == eos, axis=-2)
    lengths: Ints = (ends == 0).sum(axis=-2, dtype=np.int64)
    return lengths


def _likeliest(xp: Any, logits: Array, count: int) -> tuple[Ints, NDArray[np.float64]]:
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
