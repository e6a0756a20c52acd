# SPDX-License-Identifier: Apache-2.0
"""Fail when objects compiled for different instruction sets define the same weak symbol.

The linker keeps one copy of a weak symbol (an inline function, an instantiated template). If that
is the copy of `isa_avx512.cpp`, the baseline's calls end in AVX-512 code, and a processor without
it stops with an illegal instruction. Objects named `isa_NAME.cpp.o` are compiled for NAME; all
others share the baseline's flags with `isa_scalar.cpp.o`, and what those share among themselves is
harmless.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

BASELINE = "scalar"
ISA_OBJECT = re.compile(r"isa_(\w+)\.cpp\.o$")
WEAK = frozenset("WVu")
CODE = frozenset("TtW")
# A pointer to the exception personality, the same whatever the flags: no code of ours.
HARMLESS = re.compile(r"DW\.ref\.")


def instruction_set(path: Path) -> str:
    """Tell which instruction set an object was compiled for."""
    match = ISA_OBJECT.fullmatch(path.name)
    return match[1] if match else BASELINE


def defined_symbols(path: Path) -> dict[str, str]:
    """List what an object defines: mangled name -> nm's type letter."""
    listing = subprocess.run(
        ["nm", "--format=posix", "--defined-only", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {name: kind for name, kind, *_ in map(str.split, listing.splitlines())}


def demangled(name: str) -> str:
    """Give a symbol's name as C++ writes it."""
    return subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout[:-1]


def problems(build: Path) -> list[str]:
    """Say what is wrong with the objects below a build directory, one message each."""
    paths = sorted(build.rglob("*.o"))
    compiled = {path: instruction_set(path) for path in paths if ISA_OBJECT.fullmatch(path.name)}
    if len(set(compiled.values())) < 2:
        found = ", ".join(path.name for path in compiled) or "none"
        return [f"{build}: expected isa_*.cpp.o of two or more instruction sets, found {found}"]

    messages = []
    owners: defaultdict[str, defaultdict[str, set[Path]]]
    owners = defaultdict(lambda: defaultdict(set))
    for path in paths:
        symbols = defined_symbols(path)
        if path in compiled and CODE.isdisjoint(symbols.values()):
            messages.append(
                f"{path}: defines no code (was it compiled for link-time optimisation?)"
            )
        for name, kind in symbols.items():
            if kind in WEAK and not HARMLESS.match(name):
                owners[name][instruction_set(path)].add(path)
    for name, by_set in sorted(owners.items()):
        if len(by_set) > 1:
            where = "; ".join(f"{isa}: {min(by_set[isa]).name}" for isa in sorted(by_set))
            messages.append(f"shared weak symbol {demangled(name)} ({where})")
    return messages


def main() -> int:
    """Check the build directory given, print the findings and return the exit status."""
    parser = argparse.ArgumentParser(description="fail when instruction sets share a weak symbol")
    parser.add_argument("build", type=Path, help="build directory that holds the objects")
    messages = problems(parser.parse_args().build)
    print("\n".join(messages) or "no weak symbol is shared between instruction sets")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
