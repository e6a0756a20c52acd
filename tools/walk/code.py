# SPDX-License-Identifier: Apache-2.0
"""Machine code (sm_90) as nvdisasm lists it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line of nvdisasm, with the control bits of its encoding."""

    guard: str  # "", "P0", "!P0"
    name: str
    operands: tuple[str, ...]
    stall: int
    sets: int  # the scoreboard of its result; 7: none
    frees: int  # that of its sources
    waits: int  # for these, as bits


_LINE = re.compile(
    r"\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z][\w.]*)"
    r"\s*(?P<rest>[^;]*);\s*/\* 0x[0-9a-f]{16} \*/"
)
_UPPER = re.compile(r"\s*/\* 0x(?P<bits>[0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"(\.L_x_\d+|\$\S+):")


@dataclass
class Code:
    """The instructions of one kernel, by their places."""

    at: dict[int, Instruction] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


def read(listing: Iterable[str]) -> dict[str, Code]:
    """Mangled kernel -> its code, as ``nvdisasm -c -hex`` lists it."""
    kernels: dict[str, Code] = {}
    code, waiting, pending = Code(), None, list[str]()
    for line in listing:
        if line.startswith(".text."):
            code = kernels.setdefault(line.strip()[6:-1], Code())
        elif found := _LABEL.match(line):
            pending.append(found[1])
        elif found := _LINE.match(line):
            waiting = found
            code.labels |= dict.fromkeys(pending, int(found["at"], 16))
            pending.clear()
        elif waiting and (upper := _UPPER.match(line)):
            bits = int(upper["bits"], 16) >> 41
            operands = [o.strip().replace(".reuse", "") for o in waiting["rest"].split(",")]
            code.at[int(waiting["at"], 16)] = Instruction(
                waiting["guard"] or "",
                waiting["name"],
                tuple(o for o in operands if o),
                bits & 15,
                bits >> 5 & 7,
                bits >> 8 & 7,
                bits >> 11 & 63,
            )
            waiting = None
    return {name: code for name, code in kernels.items() if code.at}
