"""What the machine code of the GPU kernels looks like: python tools/check_sass.py FILE...

FILE is a cubin, or the built module (rnnkern/_cuda*.so), of which the code for sm_90 is taken.
Needs nvdisasm and, for a module, cuobjdump: from the PATH, or of the packages nvidia-cuda-nvdisasm
and nvidia-cuda-cuobjdump.

A row counts the instructions of the kernels of one kind, the most of any cell. Exits with status 1
where a kernel of the time loop, or a product, has what it must not: memory of a thread's own,
loads and stores that do not say which memory they mean, no loads of 16 bytes from shared memory, or
no tensor cores where it is built on them.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ptxas_table import kind

CODE = "sm_90"
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)")
FUNCTION = re.compile(r"\.text\.(\w+):")
# What an instruction counts as, by its name; the first that matches.
CLASSES = (
    ("local", re.compile(r"LDL|STL")),
    ("generic", re.compile(r"(LD|ST|ATOM)\.E")),
    ("mma", re.compile(r"[HBI]MMA")),
    ("LDS.128", re.compile(r"LDS\.128")),
    ("LDS", re.compile(r"LDS")),
    ("STS", re.compile(r"STS")),
    ("cp.async 16", re.compile(r"LDGSTS\S*\.128")),
    ("cp.async", re.compile(r"LDGSTS")),
    ("LDG", re.compile(r"LDG|LD\.E")),
    ("STG", re.compile(r"STG")),
    ("barrier", re.compile(r"BAR")),
)


def classify(name: str) -> str | None:
    """The class of an instruction, if any."""
    return next((what for what, pattern in CLASSES if pattern.match(name)), None)


def read(listing: Iterable[str]) -> dict[str, Counter[str]]:
    """Mangled kernel -> how many instructions of each class, and "all", as nvdisasm lists them.

    Functions that a kernel calls are in its section.
    """
    kernels: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in listing:
        if function := FUNCTION.match(line):
            current = kernels.setdefault(function[1], Counter())
        elif instruction := INSTRUCTION.match(line):
            current["all"] += 1
            if what := classify(instruction[1]):
                current[what] += 1
    return {name: counts for name, counts in kernels.items() if counts}


def faults(kernel: str, counts: Counter[str]) -> Iterator[str]:
    """What a kernel of that kind must not have, or lacks."""
    if not kernel.startswith(("Forward", "Backward", "Matmul")):
        return
    for what in ("local", "generic"):
        if counts[what]:
            yield f"{counts[what]} {what} loads and stores"
    if ("tensor" in kernel) != (counts["mma"] > 0):
        yield f"{counts['mma']} instructions of the tensor cores"
    if not counts["LDS.128"]:
        yield "no loads of 16 bytes from shared memory"


def tool(name: str) -> str:
    """The path of one of NVIDIA's tools."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("nvidia")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    inside = [path for place in places for path in place.glob(f"cu*/bin/{name}")]
    if found is None and not inside:
        sys.exit(f"{name} is not there: pip install nvidia-cuda-{name}")
    if found is None:
        inside[0].chmod(0o755)  # a wheel's files may not be executable
    return found or str(inside[0])


def listing(file: Path) -> Iterator[str]:
    """The lines of all machine code in a file."""
    with tempfile.TemporaryDirectory() as folder:
        cubins = [file.resolve()]
        if file.suffix != ".cubin":
            command = [tool("cuobjdump"), "-xelf", CODE, str(file.resolve())]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            cubins = sorted(Path(folder).glob("*.cubin"))
        for cubin in cubins:
            done = subprocess.run(
                [tool("nvdisasm"), "-c", str(cubin)], capture_output=True, text=True, check=True
            )
            yield from done.stdout.splitlines()


def main() -> None:
    """Print a line for each kind of kernel, then every fault."""
    kernels: dict[str, Counter[str]] = {}
    for file in sys.argv[1:]:
        kernels |= read(listing(Path(file)))
    of_kind: dict[tuple[str, str], list[Counter[str]]] = defaultdict(list)
    found: list[str] = []
    for name, counts in kernels.items():
        kernel, element = kind(name)
        of_kind[kernel, element].append(counts)
        found += [f"{kernel} {element} ({name}): {fault}" for fault in faults(kernel, counts)]
    columns = ("all", *(what for what, _ in CLASSES))
    print("| kernel, tile of a warp | operands | cells | " + " | ".join(columns) + " |")
    print("|---|---|---|" + "---|" * len(columns))
    for (kernel, element), those in sorted(of_kind.items()):
        most = [str(max(counts[what] for counts in those)) for what in columns]
        print("| " + " | ".join([kernel, element, str(len(those)), *most]) + " |")
    print("\n".join(found), file=sys.stderr)
    sys.exit(bool(found) or not kernels)


if __name__ == "__main__":
    main()
