# SPDX-License-Identifier: Apache-2.0
"""Where the cycles of a step go, predicted from its machine code.

    python tools/walk_step.py CELL UNITS BATCH [--backward]

Compiles the kernel of one cell's time loop for sm_90 in float16 and follows three threads of its
middle block, with the arguments that the host gives it on an H100, through some steps; prints the
stages of the last, between one barrier and the next, as the thread that comes there last has them.
Needs nvcc, g++ and nvdisasm (from the PATH, or of the package nvidia-cuda-nvdisasm).

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
THREADS = (224, 223, 0)  # one that publishes, one that waits, and one that has a row and a unit
# What a stretch between two barriers is about, by an instruction that only it has; the first that
# one has.
STAGES = (
    ("products", "HMMA"),
    ("flag, stores, fetches, wait for flags", "LDG.E.STRONG"),
    ("copy of the operand", "LDGSTS.E.BYPASS"),
    ("equations", "F2FP.F16"),
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


class Stretch(NamedTuple):
    """What threads do between two barriers."""

    visits: list[list[Visit]]  # of each thread
    cycles: list[int]  # likewise
    publishes: bool


def stretches(
    code: Code, facts: dict[str, Any], batch: int, threads: Sequence[int] = THREADS
) -> tuple[list[Stretch], int]:
    """Those of some steps, and how many branches nothing decided."""
    block, parameters = facts["blocks"] // 2, bytes.fromhex(facts["parameters"])
    memory = memory_of(facts, batch)
    walkers = [Thread(code, parameters, memory, thread=k, block=block) for k in threads]
    runs = [walker.run() for walker in walkers]
    found: list[Stretch] = []
    while sum(stretch.publishes for stretch in found) <= (FOLLOWED + 1) * facts["phases"]:
        before, published = walkers[0].time, walkers[0].published
        visits = []
        for walker, run_of_thread in zip(walkers, runs, strict=True):
            walker.published = max(w.published for w in walkers)
            own: list[Visit] = []
            for visit in run_of_thread:
                own.append(visit)
                if visit.instruction.name.startswith("BAR.SYNC"):
                    break
            visits.append(own)
        if not any(visits):
            flags = sum(stretch.publishes for stretch in found)
            raise RuntimeError(f"the code ended after {len(found)} stretches and {flags} flags")
        latest = max(walker.time for walker in walkers)
        flag = max(walker.published for walker in walkers)
        found.append(Stretch(visits, [w.time - before for w in walkers], flag > published))
        for walker in walkers:
            walker.time, walker.published = latest, flag
    return found, sum(walker.unknown for walker in walkers)


def stages(found: Sequence[Stretch], phases: int) -> list[Stage]:
    """Those of the last whole step that was followed, by the thread that takes the longest."""
    flags = [k for k, stretch in enumerate(found) if stretch.publishes]
    steps = []
    for stretch in found[flags[-1 - phases] : flags[-1]]:
        names = [v.instruction.name for visits in stretch.visits for v in visits]
        what = next((s for s, key in STAGES if any(n.startswith(key) for n in names)), "others")
        cycles = max(stretch.cycles)
        latest = stretch.cycles.index(cycles)
        steps.append(Stage(what, len(stretch.visits[latest]), cycles))
    return steps


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
    options = parser.parse_args()
    way = "backward" if options.backward else "forward"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = (options.cell, str(options.units), str(options.batch), str(STEPS))
        facts = arguments_of(folder, *words, str(options.units), way)
        cubin = options.cubin or compile_kernel(folder, way, facts)
        (code,) = read(disassemble(cubin)).values()
    found, unknown = stretches(code, facts, options.batch)
    print_table(stages(found, facts["phases"]))
    print(f"{unknown} branches undecided; predicted, not measured", file=sys.stderr)


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
    except RuntimeError as error:
        sys.exit(str(error))
