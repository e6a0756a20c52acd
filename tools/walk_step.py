# SPDX-License-Identifier: Apache-2.0
"""Where the cycles of a step go, predicted from its machine code.

    python tools/walk_step.py CELL UNITS BATCH [--backward]

Compiles the kernel of one cell's time loop for sm_90 in float16 and follows the first thread of its
middle block, with the arguments that the host gives it on an H100, through four steps; prints the
stages of the last, between one barrier and the next. Needs nvcc, g++ and nvdisasm (from the PATH,
or of the package nvidia-cuda-nvdisasm).

Nothing is measured. Assumed are the latencies of tools/walk/machine.py; that a warp never waits for
another's turn; that every block is as far as this one, so that a flag is there as long after this
block's own as it travels; that all rows have all steps. Trust it to a quarter, and differences of
two versions more than that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from check_sass import CODE, run, tool
from walk.code import Code, read
from walk.machine import Thread, Visit
from walk.registers import Memory

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    "tools/walk/arguments.cpp",
    *(f"csrc/cuda/{name}.cpp" for name in ("engine", "plan", "forward_call", "backward_call")),
    *(f"csrc/core/{name}.cpp" for name in ("cells", "schedule", "stretches")),
]
STEPS, FOLLOWED, CLOCK = 1024, 4, 1750  # of the problem; of it walked; cycles a microsecond
# What a stretch between two barriers is about, by an instruction that only it has; the first that
# one has.
STAGES = (
    ("flag", "STG.E.STRONG"),
    ("products", "HMMA"),
    ("wait for flags", "LDG.E.STRONG"),
    ("copy of the operand", "LDGSTS.E.BYPASS"),
    ("equations", "F2FP.F16"),
    ("what the equations read", "LDGSTS"),
    ("sums of a warp", "STS"),
)


class Stage(NamedTuple):
    """A stretch of a step."""

    name: str
    instructions: int
    cycles: int


def memory_of(facts: dict[str, Any], batch: int) -> Memory:
    """The schedule of rows that all have all steps, and flags that are up."""
    order, offset, flags = (int(facts[what]) for what in ("order", "offset", "flags"))
    blocks = int(facts["blocks"])

    def at(address: int, size: int) -> int | None:
        if order <= address < order + 4 * batch:
            return (address - order) // 4
        if offset <= address <= offset + 4 * STEPS:
            return (address - offset) // 4 * batch
        if flags <= address < flags + 4 * blocks:
            return 1 << 30
        return None

    return at


def stages(visits: Sequence[Visit], phases: int) -> list[Stage]:
    """Those of the last whole step that was followed."""
    flags = [k for k, v in enumerate(visits) if v.instruction.name.startswith("STG.E.STRONG")]
    begin, end = flags[-1 - phases], flags[-1]
    cuts = [k for k in range(begin, end) if is_barrier(visits[k])]
    found: list[Stage] = []
    for first, last in zip([begin, *cuts], [*cuts, end], strict=True):
        names = [v.instruction.name for v in visits[first + 1 : last + 1]]
        what = next((s for s, key in STAGES if any(n.startswith(key) for n in names)), "others")
        cycles = visits[last].time - visits[first].time
        if what == "others" and found:
            found[-1] = Stage(
                found[-1].name, found[-1].instructions + len(names), found[-1].cycles + cycles
            )
        else:
            found.append(Stage(what, len(names), cycles))
    return found


def is_barrier(visit: Visit) -> bool:
    """Whether all warps meet there."""
    return visit.instruction.name.startswith("BAR.SYNC")


def follow(
    code: Code, facts: dict[str, Any], batch: int, *, thread: int = 0
) -> tuple[list[Visit], int]:
    """The visits of some steps, and how many branches nothing decided."""
    block = facts["blocks"] // 2
    parameters = bytes.fromhex(facts["parameters"])
    walker = Thread(code, parameters, memory_of(facts, batch), thread=thread, block=block)
    visits: list[Visit] = []
    flags = 0
    for visit in walker.run():
        visits.append(visit)
        flags += visit.instruction.name.startswith("STG.E.STRONG")
        if flags > FOLLOWED * facts["phases"]:
            break
    return visits, walker.unknown


def disassemble(cubin: Path) -> list[str]:
    """Its listing, with the encodings."""
    return run(tool("nvdisasm"), "-c", "-hex", str(cubin)).splitlines()


def compile_kernel(folder: Path, way: str, facts: dict[str, Any]) -> Path:
    """The kernel of one cell's time loop, as a cubin."""
    cubin = folder / f"{way}.cubin"
    options = [f"-DRNNKERN_CELL={facts['cell']}", f"-DRNNKERN_WAY={way.title()}Kernel"]
    options += ["-DRNNKERN_FEW_ROWS"] * bool(facts["few_rows"])
    command = ["nvcc", "-std=c++20", "--expt-relaxed-constexpr", f"-arch={CODE}", "-cubin"]
    run(
        *command,
        *options,
        f"-I{ROOT / 'csrc'}",
        "-o",
        str(cubin),
        str(ROOT / "tools/walk/kernel.cu"),
    )
    return cubin


def arguments_of(folder: Path, *words: str) -> dict[str, Any]:
    """What the host hands to the kernel."""
    program = folder / "arguments"
    if not program.exists():
        sources = [str(ROOT / source) for source in SOURCES]
        options = ["-std=c++20", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
        run("g++", *options, "-o", str(program), *sources)
    found: dict[str, Any] = json.loads(run(str(program), *words))
    return found


def main() -> None:
    """Print the stages of a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell")
    parser.add_argument("units", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--cubin", type=Path, help="a kernel that is there already")
    parser.add_argument("--visits", type=Path, help="a file for every instruction of that step")
    options = parser.parse_args()
    way = "backward" if options.backward else "forward"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = (options.cell, str(options.units), str(options.batch), str(STEPS))
        facts = arguments_of(folder, *words, str(options.units), way)
        cubin = options.cubin or compile_kernel(folder, way, facts)
        (code,) = read(disassemble(cubin)).values()
    visits, unknown = follow(code, facts, options.batch)
    print_table(stages(visits, facts["phases"]))
    print(f"{unknown} branches undecided; predicted, not measured", file=sys.stderr)
    if options.visits:
        lines = (f"{v.place:05x} {v.time:8} {' '.join(map(str, v.instruction))}\n" for v in visits)
        options.visits.write_text("".join(lines))


def print_table(found: Sequence[Stage]) -> None:
    """The stages, and all of them."""
    print("| stage | instructions | cycles |\n|---|---|---|")
    for stage in found:
        print(f"| {stage.name} | {stage.instructions} | {stage.cycles} |")
    cycles = sum(stage.cycles for stage in found)
    instructions = sum(stage.instructions for stage in found)
    print(f"| the step: {cycles / CLOCK:.2f} µs | {instructions} | {cycles} |")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} failed")
