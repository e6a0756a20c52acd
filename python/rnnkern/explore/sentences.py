# SPDX-License-Identifier: Apache-2.0
"""What the programs over generated sentences share: words as tokens, and a held-out part."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
T = TypeVar("T")

_PARTS = 4  # one of so many parts of all sentences is held out


class Vocabulary:
    """The words of a grammar and their tokens, 0 and up.

    Attributes:
        words: Each word once, in alphabetical order; a word's place is its token.

    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(sorted(set(words)))
        self._token = {word: token for token, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def tokens(self, sentences: Sequence[Sequence[str]]) -> tuple[Ints, Ints]:
        """The sentences as columns (T, B), filled with token 0, and their lengths (B,).

        Raises:
            KeyError: A word is not of the vocabulary.

        """
        lengths = np.array([len(sentence) for sentence in sentences], np.int64)
        tokens = np.zeros((int(lengths.max(initial=0)), len(sentences)), np.int64)
        for column, sentence in enumerate(sentences):
            tokens[: len(sentence), column] = [self._token[word] for word in sentence]
        return tokens, lengths


def split_words(text: str) -> tuple[str, ...]:
    """Those of a text."""
    return tuple(text.split())


def is_held_out(words: Sequence[str]) -> bool:
    """Whether a sentence is never trained on, which depends on its words alone."""
    return zlib.crc32(" ".join(words).encode()) % _PARTS == 0


def pick(random: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(random.integers(len(options)))]


def collect(
    draw: Callable[[], T], count: int, words_of: Callable[[T], Sequence[str]], held_out: bool
) -> list[T]:
    """The first ``count`` drawn sentences that are, or are not, held out."""
    found: list[T] = []
    while len(found) < count:
        sentence = draw()
        if is_held_out(words_of(sentence)) == held_out:
            found.append(sentence)
    return found
