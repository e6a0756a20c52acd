# SPDX-License-Identifier: Apache-2.0
"""Sums as tokens, and which of them are learned from and which are held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_EXTREME, _CHOICE = 4, 16  # of the questions that training draws, see ``Pairs.batch``


class Encoding:
    """Questions and answers as the model sees them: the one place that knows.

    ``61+535`` of up to 3 digits is filled to ``061+535`` and read from its end, ``535+160``; its
    answer ``0596`` is produced from its end, ``6950``. So every sequence of a model is of one
    length, every place of a number keeps its place in the sequence, and each carry comes before
    the digit that needs it.
    """

    PLUS = 10  # in questions
    START = 10  # in answers
    VOCABULARY = 11

    def __init__(self, digits: int) -> None:
        self.digits = digits
        self._places = 10 ** np.arange(digits + 1, dtype=np.int64)[:, np.newaxis]

    def questions(self, a: Ints, b: Ints) -> Ints:
        """Tokens (2·digits + 1, B) of the questions ``a+b``, for numbers (B,)."""
        tokens = np.empty((2 * self.digits + 1, len(a)), np.int64)
        tokens[: self.digits] = b // self._places[:-1] % 10
        tokens[self.digits] = self.PLUS
        tokens[self.digits + 1 :] = a // self._places[:-1] % 10
        return tokens

    def answers(self, total: Ints) -> Ints:
        """Tokens (digits + 1, B) of the sums (B,)."""
        return total // self._places % 10

    def fed(self, answers: Ints) -> Ints:
        """What the decoder is fed to learn ``answers``: START, then all but the last."""
        return np.concatenate([np.full_like(answers[:1], self.START), answers[:-1]])

    def totals(self, tokens: Ints, lengths: Ints) -> Ints:
        """The sums (B,) that answers (T, B) of these lengths (B,) spell."""
        digits = np.where(np.arange(len(tokens))[:, np.newaxis] < lengths, tokens, 0)
        totals: Ints = (digits * self._places[: len(tokens)]).sum(axis=0)
        return totals


class Pairs:
    """All pairs of numbers of up to ``digits`` digits, shuffled once and for all.

    The first ``trained`` of the shuffled order are those that training draws from; the others are
    held out. The order depends on ``digits`` alone. Pairs are ordered: ``1+2`` may be held out
    where ``2+1`` is not.
    """

    _KEY = 535_061
    _ROUNDS = 4

    def __init__(self, digits: int, share: float) -> None:
        self._limit = 10**digits
        self.count = self._limit**2
        self.trained = int(self.count * share)
        if not 0 < self.trained < self.count:
            raise ValueError(f"share {share} of {self.count} pairs leaves none to learn or to hold")
        # Raw bits, because NumPy promises to keep those the same in every version.
        bits = np.random.Philox(key=self._KEY).random_raw(self._ROUNDS * self._limit)
        table = (bits % np.uint64(self._limit)).astype(np.int64)
        self._rounds = table.reshape(self._ROUNDS, self._limit)

    def at(self, index: Ints) -> tuple[Ints, Ints]:
        """The two numbers of the pairs at these places, 0..count-1, of the shuffled order.

        A Feistel network: each round shifts one number by a random function of the other, which
        can be undone, so that no two places hold the same pair.
        """
        a, b = np.divmod(index, self._limit)
        for function in self._rounds:
            a, b = b, (a + function[b]) % self._limit
        return a, b

    def batch(self, size: int, seed: int, step: int) -> tuple[Ints, Ints]:
        """Pairs to learn from; the same for the same seed and step.

        Most are drawn evenly. One in ``_EXTREME`` is chosen of ``_CHOICE``: for half of them the
        pair with the smallest number, for the others the one whose numbers are both large. Numbers
        with fewer digits are rare, and so are carries all the way, and what a trained model gets
        wrong are sums of these.
        """
        chosen = size // _EXTREME
        even = size - chosen
        key = np.array([seed, step], np.uint64)
        bits = np.random.Philox(key=key).random_raw(even + _CHOICE * chosen)
        a, b = self.at((bits % np.uint64(self.trained)).astype(np.int64))
        smaller = np.minimum(a, b)[even:].reshape(chosen, _CHOICE)
        half = chosen // 2
        choice = np.append(smaller[:half].argmin(axis=1), smaller[half:].argmax(axis=1))
        taken = np.append(np.arange(even), even + _CHOICE * np.arange(chosen) + choice)
        return a[taken], b[taken]

    def held_out(self, size: int) -> tuple[Ints, Ints]:
        """``size`` different held-out pairs, or all there are when those are fewer."""
        available = self.count - self.trained
        size = min(size, available)
        return self.at(self.trained + np.arange(size, dtype=np.int64) * (available // size))
