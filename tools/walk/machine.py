# SPDX-License-Identifier: Apache-2.0
"""One thread followed through its machine code, with the cycles that it takes, without a GPU.

A branch on something unknown is counted, and taken where it passes over a call: that is how a
quotient of floats leaves the rare cases to a function.

Time is the stall counts and scoreboards that ptxas wrote, and ``LATENCY`` for what they wait for:
assumed, not measured. Other warps take no turns away from this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from walk.code import Code, Instruction
from walk.registers import Memory, Registers

# Cycles of an H100 until a result is there, by the beginning of an instruction's name; the first
# that matches.
LATENCY = {
    "LDG.E.STRONG": 320,  # to L2, past the multiprocessor's own cache
    "LDGSTS": 290,  # likewise: how long until DEPBAR lets go
    "LDG": 290,  # each poll of a flag empties the own cache, so these go to L2 too
    "LDS": 30,
    "LDC": 40,
    "ULDC": 40,
    "MUFU": 26,
    "I2F": 22,
    "F2I": 22,
    "S2": 25,
    "HMMA": 33,
    "MEMBAR": 700,
    "SHFL": 25,
    "ST": 20,
}
OTHERS, READ_OF_SOURCES, BRANCH, CALL, BARRIER = 12, 15, 8, 10, 25
TRAVEL = 290  # from a flag's store until L2 has it: other blocks are taken to be as far as this one


class Visit(NamedTuple):
    """An instruction that was followed: where, and when it went."""

    place: int
    time: int
    instruction: Instruction


def latency(name: str) -> int:
    """Cycles until what an instruction makes is there."""
    return next((cycles for start, cycles in LATENCY.items() if name.startswith(start)), OTHERS)


class Thread(Registers):
    """A thread of a kernel; ``run`` follows it."""

    def __init__(
        self, code: Code, parameters: bytes, memory: Memory, *, thread: int = 0, block: int = 0
    ) -> None:
        super().__init__(parameters, memory, thread=thread, block=block)
        self.code = code
        self.unknown = 0  # branches that nothing decided
        self.time = 0
        self.published = -LATENCY["LDG.E.STRONG"]  # when this block's flag was stored

    def _passes_over_a_call(self, place: int) -> bool:
        """Whether a branch at `place` is one."""
        end = self._target(self.code.at[place])
        between = (self.code.at[k] for k in range(place + 16, min(end, place + 256), 16))
        return any(i.name.startswith("CALL") for i in between)

    def _target(self, i: Instruction) -> int:
        """Where a branch or a call goes."""
        found = re.search(r"`\((.*?)\)", " ".join(i.operands))
        assert found, i
        return self.code.labels[found[1]]

    def run(self, most: int = 200_000) -> Iterator[Visit]:
        """Every instruction until the end, or `most` of them."""
        boards, sums = [0] * 8, dict[str, int]()
        place, copies = 0, 0
        returns: list[int] = []
        for _ in range(most):
            i = self.code.at[place]
            base = i.name.split(".")[0]
            runs = self.holds(i.guard) if i.guard else True
            self.time = max([self.time, *(boards[b] for b in range(6) if i.waits >> b & 1)])
            if runs is not False:
                if base == "DEPBAR":
                    self.time = max(self.time, copies)
                if base == "HMMA":  # sums follow each other
                    self.time = max(self.time, sums.get(i.operands[3], 0))
                    sums[i.operands[0]] = self.time + LATENCY["HMMA"]
            yield Visit(place, self.time, i)
            if runs is not False:
                done = self.time + latency(i.name)
                if base == "LDGSTS":
                    copies = max(copies, done)
                    done = self.time + OTHERS
                if i.name.startswith("LDG.E.STRONG"):  # asked until the flag is there
                    done = max(done, self.published + TRAVEL + LATENCY["LDG.E.STRONG"] // 2)
                if i.name.startswith("STG.E.STRONG"):
                    self.published = self.time
                boards[i.sets] = max(boards[i.sets], done)
                boards[i.frees] = max(boards[i.frees], self.time + READ_OF_SOURCES)
            self.time += max(i.stall, 1)
            if base == "MEMBAR" and runs is not False:
                self.time += LATENCY["MEMBAR"]
            following = place + 16
            if base in ("BRA", "CALL", "RET", "EXIT", "BPT"):
                condition = runs
                own = [t for t in i.operands if re.fullmatch(r"!?U?P[T\d]", t)]
                if own and condition:
                    condition = self.holds(own[0])
                if "DIV" in i.name:
                    condition = False  # the lanes of a warp stay together
                if condition is None and base == "BRA":
                    self.unknown += 1
                    condition = self._passes_over_a_call(place)
                if condition and base in ("EXIT", "BPT"):
                    return
                if condition and base == "RET":
                    back = self.get(i.operands[0].split()[0])
                    following = returns.pop() if back is None else back
                    self.time += CALL
                elif condition:
                    if base == "CALL":
                        returns.append(following)
                    following = self._target(i)
                    self.time += CALL if base == "CALL" else BRANCH
            elif runs is None:
                before = dict(self.registers)
                self.execute(i)
                for register, value in self.registers.items():
                    if before.get(register) != value:
                        self.registers[register] = None
            elif runs:
                self.execute(i)
                self.time += BARRIER if base == "BAR" else 0
            place = following
