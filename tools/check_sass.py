# SPDX-License-Identifier: Apache-2.0
"""What the machine code of the GPU kernels looks like: python tools/check_sass.py FILE...

FILE is a cubin, or the built module (rnnkern/_cuda*.so), of which the code for sm_90 is taken.
Needs nvdisasm and cuobjdump: from the PATH, or of the packages nvidia-cuda-nvdisasm and
nvidia-cuda-cuobjdump.

A row has the kernels of one kind: the registers of a thread, the least and the most of the cells',
and how many instructions of each class, the most of any cell. Exits with status 1 where a kernel of
the time loop, or a product, has what it must not: memory of a thread's own (spills, a stack), loads
and stores that do not say which memory they mean, no loads of 16 bytes from shared memory, or no
tensor cores where it is built on them.
"""

from __future__ import annotations

import importlib.util
import os
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
USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)")
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


def read_usage(text: str) -> dict[str, tuple[int, int]]:
    """Mangled kernel -> registers and bytes of stack, as cuobjdump prints them."""
    return {name: (int(used), int(stack)) for name, used, stack in USAGE.findall(text)}


def faults(kernel: str, counts: Counter[str]) -> Iterator[str]:
    """What a kernel of that kind must not have, or lacks."""
    if not kernel.startswith(("Forward", "Backward", "Matmul")):
        return
    for what in ("local", "generic", "stack"):
        if counts[what]:
            yield f"{what}: {counts[what]}"
    if ("tensor" in kernel) != (counts["mma"] > 0):
        yield f"{counts['mma']} instructions of the tensor cores"
    if not counts["LDS.128"]:
        yield "no loads of 16 bytes from shared memory"


def found(name: str) -> str | None:
    """The path of one of NVIDIA's tools, on the PATH or of a package, if it is there."""
    if path := shutil.which(name):
        return path
    spec = importlib.util.find_spec("nvidia")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    inside = [path for place in places for path in place.glob(f"cu*/bin/{name}")]
    return str(inside[0]) if inside else None


def tool(name: str) -> str:
    """The path of one of NVIDIA's tools, to be run; the program ends where it is not there."""
    if (path := found(name)) is None:
        sys.exit(f"{name} is not there: pip install nvidia-cuda-{name}")
    if not os.access(path, os.X_OK):
        Path(path).chmod(0o755)  # a wheel's files may not be executable
    return path


def run(*command: str, folder: str | None = None) -> str:
    """What a command prints."""
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def read_file(file: Path) -> dict[str, Counter[str]]:
    """As ``read``, of all kernels in a file, with "registers" and "stack"."""
    kernels: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cubins = [file.resolve()]
        if file.suffix != ".cubin":
            run(tool("cuobjdump"), "-xelf", CODE, str(file.resolve()), folder=folder)
            cubins = sorted(Path(folder).glob("*.cubin"))
        for cubin in cubins:
            listed = read(run(tool("nvdisasm"), "-c", str(cubin)).splitlines())
            usage = read_usage(run(tool("cuobjdump"), "--dump-resource-usage", str(cubin)))
            for name, counts in listed.items():
                counts["registers"], counts["stack"] = usage[name]
            kernels |= listed
    return kernels


def main() -> None:
    """Print a line for each kind of kernel, then every fault."""
    kernels: dict[str, Counter[str]] = {}
    for file in sys.argv[1:]:
        kernels |= read_file(Path(file))
    of_kind: dict[tuple[str, str], list[Counter[str]]] = defaultdict(list)
    wrong: list[str] = []
    for name, counts in kernels.items():
        kernel, element = kind(name)
        of_kind[kernel, element].append(counts)
        wrong += [f"{kernel} {element} ({name}): {fault}" for fault in faults(kernel, counts)]
    columns = ("stack", "all", *(what for what, _ in CLASSES))
    print("| kernel, tile of a warp | operands | cells | registers | " + " | ".join(columns) + " |")
    print("|---|---|---|---|" + "---|" * len(columns))
    for (kernel, element), those in sorted(of_kind.items()):
        most = [str(max(counts[what] for counts in those)) for what in columns]
        used = [counts["registers"] for counts in those]
        registers = f"{min(used)}-{max(used)}"
        print("| " + " | ".join([kernel, element, str(len(those)), registers, *most]) + " |")
    print("\n".join(wrong), file=sys.stderr)
    sys.exit(bool(wrong) or not kernels)


if __name__ == "__main__":
    main()
