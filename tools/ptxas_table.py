"""What ptxas says of every GPU kernel: registers, stack and spills, as a table for docs/cuda.md.

    python tools/ptxas_table.py                 # all that a wheel has machine code for
    python tools/ptxas_table.py sm_90           # one of them

Needs nvcc. Exits with status 1 if any kernel spills a register.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"
MODES = ["float32", "tfloat32", "bfloat16", "float16", "float64", "common"]
CODE = ["sm_80", "sm_90", "sm_100", "sm_120"]
KERNEL = re.compile(r"\d+([A-Z][A-Za-z]+)KernelI?")
PRODUCT = re.compile(r"\d(Scalar|Tensor)ProductINS0_.*?Li(\d+)E(?:Li(\d+)E)?")


@dataclass
class Row:
    """The kernels of one kind, all cells together."""

    cells: int = 0
    registers: list[int] = field(default_factory=list)
    stack: int = 0
    spilled: int = 0


def kind(mangled: str) -> str:
    """The kernel and the product that it is built on, from its symbol."""
    kernel, product = KERNEL.search(mangled), PRODUCT.search(mangled)
    assert kernel, mangled
    if not product:
        return kernel[1]
    unit, m, n = product.groups()
    shape = f"{16 * int(m)}x{8 * int(n)}" if unit == "Tensor" else f"32x{m}"
    return f"{kernel[1]}, {unit.lower()} {shape}"


def rows_of(log: str) -> dict[str, Row]:
    """Kinds of kernels in ptxas' words about one file for one GPU."""
    rows: dict[str, Row] = defaultdict(Row)
    row = Row()
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            row = rows[kind(entry[1])]
            row.cells += 1
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads", line):
            row.stack = max(row.stack, int(frame[1]))
            row.spilled += int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            row.registers.append(int(used[1]))
    return rows


def compile_mode(mode: str, code: str) -> str:
    """What nvcc and ptxas print when they compile one file."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("nvcc", "-std=c++20", "--expt-relaxed-constexpr", f"-I{SOURCES}", "-Xptxas=-v"),
                *(f"-gencode=arch=compute_80,code={code}", "-cubin", "-o", f"{folder}/out.cubin"),
                str(SOURCES / "cuda" / f"{mode}.cu"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stderr


def main() -> None:
    """Print the table."""
    spilled = 0
    print("| file | kernel | GPU | kernels | registers | stack, bytes | spilled, bytes |")
    print("|---|---|---|---|---|---|---|")
    for mode in MODES:
        for code in sys.argv[1:] or CODE:
            for name, row in rows_of(compile_mode(mode, code)).items():
                low, high = min(row.registers), max(row.registers)
                registers = f"{low}" if low == high else f"{low}-{high}"
                facts = [mode, name, code, row.cells, registers, row.stack, row.spilled]
                print("| " + " | ".join(map(str, facts)) + " |", flush=True)
                spilled += row.spilled
    sys.exit(spilled > 0)


if __name__ == "__main__":
    main()
