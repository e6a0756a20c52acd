# SPDX-License-Identifier: Apache-2.0
"""What ptxas says of every GPU kernel: registers, stack and spills, as a table for docs/cuda.md.

    cmake -B build/ptxas -DRNNKERN_CUDA=ON -DCMAKE_CUDA_FLAGS=-Xptxas=-v
    cmake --build build/ptxas --target _cuda | python tools/ptxas_table.py

Exits with status 1 if any kernel spills a register, or if nothing was compiled.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

KERNEL = re.compile(r"\d+([A-Z][A-Za-z]+)KernelI?")
PRODUCT = re.compile(r"\d(Scalar|Tensor)ProductINS0_.*?Li(\d+)E(?:Li(\d+)E)?")
ELEMENTS = {
    "ExactIfE": "float32",
    "ExactIdE": "float64",
    "TensorFloat32": "tfloat32",
    "BrainFloat16": "bfloat16",
    "7Float16": "float16",
    "KernelIfE": "float32",
    "KernelIdE": "float64",
}


@dataclass
class Row:
    """The kernels of one kind for one GPU, all cells together."""

    registers: list[int] = field(default_factory=list)
    stack: int = 0
    spilled: int = 0


def kind(mangled: str) -> tuple[str, str]:
    """The kernel with the product that it is built on, and the operands, from its symbol."""
    kernel, product = KERNEL.search(mangled), PRODUCT.search(mangled)
    assert kernel, mangled
    element = next((name for part, name in ELEMENTS.items() if part in mangled), "-")
    if not product:
        return kernel[1], element
    unit, m, n = product.groups()
    shape = f"{16 * int(m)}x{8 * int(n)}" if unit == "Tensor" else f"32x{m}"
    given = ", given functions" * ("GivenFunctions" in mangled)
    return f"{kernel[1]}, {unit.lower()} {shape}{given}", element


def read(log: Iterable[str]) -> dict[tuple[str, str, str], Row]:
    """(kernel, operands, GPU) -> what ptxas printed."""
    rows: dict[tuple[str, str, str], Row] = defaultdict(Row)
    row = Row()
    for line in log:
        if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel, element = kind(entry[1])
            row = rows[kernel, element, entry[2]]
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads", line):
            row.stack = max(row.stack, int(frame[1]))
            row.spilled += int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            row.registers.append(int(used[1]))
    return rows


def main() -> None:
    """Print a line for each kernel; the registers are the least and the most of its cells."""
    rows = read(sys.stdin)
    codes = sorted({code for _, _, code in rows}, key=lambda code: int(code[3:]))
    print(
        "| kernel, tile of a warp | operands | cells | "
        + " | ".join(codes)
        + " | stack | spilled |"
    )
    print("|---|---|---|" + "---|" * len(codes) + "---|---|")
    for kernel, element in sorted({key[:2] for key in rows}):
        of_codes = [rows[kernel, element, code] for code in codes]
        registers = [f"{min(r.registers)}-{max(r.registers)}" for r in of_codes]
        cells = str(len(of_codes[0].registers))
        stack, spilled = max(r.stack for r in of_codes), sum(r.spilled for r in of_codes)
        cell = [kernel, element, cells, *registers, str(stack), str(spilled)]
        print("| " + " | ".join(cell) + " |")
    sys.exit(not rows or any(row.spilled for row in rows.values()))


if __name__ == "__main__":
    main()
