# SPDX-License-Identifier: Apache-2.0
"""What a planted fault is."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
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
        begin = self.place(text)
        return text[:begin] + self.new + text[begin + len(self.old) :]

    def place(self, text: str) -> int:
        """Where in the file's text the piece begins.

        Raises:
            ValueError: The piece does not stand there, or more than once.

        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.name}: {self.file} has this piece {count} times, expected once; mend the "
                f"list of faults:\n{self.old}"
            )
        return text.index(self.old)

    @property
    def number(self) -> int:
        """By which the environment names it; no other fault's place in a list changes it."""
        return zlib.crc32(self.name.encode()) >> 1

    def switched(self) -> str:
        """C++ of both pieces, of which the fault counts where the environment has its number."""
        counts = f"{SWITCH}({self.number})"
        if self.old.endswith(";"):
            return f"{{ if ({counts}) {{ {self.new} }} else {{ {self.old} }} }}"
        return f"({counts} ? ({self.new}) : ({self.old}))"


SWITCH = "rnnkern_planted"  # the function in C++, and in capitals the name in the environment

# For all sources of a build with faults, by -include. Without a linkage of its own: no instruction
# set's copy serves another one.
SWITCH_SOURCE = f"""#pragma once
#include <cstdlib>
static const char* const {SWITCH}_text = std::getenv("{SWITCH.upper()}");
static const int {SWITCH}_number = {SWITCH}_text ? std::atoi({SWITCH}_text) : -1;
[[maybe_unused]] static inline bool {SWITCH}(int number) {{ return {SWITCH}_number == number; }}
"""


def switched(text: str, faults: Iterable[Fault]) -> str:
    """A file's text in C++ with all of its faults in it, of which none counts until asked.

    Raises:
        ValueError: A piece is not there once, or two have the same text in common.

    """
    end = len(text)
    for begin, fault in sorted(
        ((f.place(text), f) for f in faults), reverse=True, key=itemgetter(0)
    ):
        if begin + len(fault.old) > end:
            raise ValueError(f"{fault.name}: its piece overlaps another fault's in {fault.file}")
        text = text[:begin] + fault.switched() + text[begin + len(fault.old) :]
        end = begin
    return text


def fault(file: str, name: str, old: str, new: str, *tests: str, peers: bool = False) -> Fault:
    """A fault, as the lists write one down."""
    return Fault(name, file, old, new, tests, peers)
