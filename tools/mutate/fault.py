# SPDX-License-Identifier: Apache-2.0
"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fault:
    """One wrong line, and the tests that must fail for it.

    Attributes:
        name: What is wrong, in words that a shell takes as one.
        file: Where, from the repository's root.
        old: A piece of that file that stands there once.
        new: What stands there instead.
        tests: Files or names of tests, as pytest takes them, below ``tests/``.
        peers: Whether the fault is in what only runs with PyTorch; all others must be found
            without it.

    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    peers: bool = False

    def planted(self, text: str) -> str:
        """The file's text with the fault in it.

        Raises:
            ValueError: The piece does not stand there, or more than once.

        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.name}: {self.file} has this piece {count} times, expected once; mend the "
                f"list of faults:\n{self.old}"
            )
        return text.replace(self.old, self.new)


def fault(file: str, name: str, old: str, new: str, *tests: str, peers: bool = False) -> Fault:
    """A fault, as the lists write one down."""
    return Fault(name, file, old, new, tests, peers)
