# SPDX-License-Identifier: Apache-2.0
"""Fail when a stub in python/rnnkern, _core.pyi or _cuda.pyi, is not the compiled module's surface.

pybind11-stubgen writes down what the installed module offers; rnnkern._cuda is passed over where
it was not built. The committed stub must have the same classes, functions, overloads and
variables, and every function the same parameters: name, kind and default. Types are not compared,
for the committed ones may say more than C++ can.
What a stub needs for itself is passed over: assignments without an annotation (aliases), and
variables and classes that begin with one underscore.
"""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

STUBS = Path(__file__).resolve().parent.parent / "python" / "rnnkern"


def is_private(name: str) -> bool:
    """Tell whether a name is of the stub alone."""
    return name == "__all__" or (name.startswith("_") and not name.startswith("__"))


def signature(function: ast.FunctionDef) -> str:
    """Render a function without its types: decorators, name and parameters."""
    for node in ast.walk(function.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    decorators = (f"@{ast.unparse(node).split('.')[-1]} " for node in function.decorator_list)
    return f"{''.join(decorators)}{function.name}({ast.unparse(function.args)})"


def surface(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Yield one line for every class, function, overload and variable of a module or class."""
    for node in body:
        match node:
            case ast.FunctionDef():
                yield prefix + signature(node)
            case ast.ClassDef(name=name) if not is_private(name):
                yield f"{prefix}class {name}"
                yield from surface(node.body, f"{prefix}{name}.")
            case ast.AnnAssign(target=ast.Name(id=name)) if not is_private(name):
                yield prefix + name


def generate(module: str, folder: Path) -> Path:
    """Write the stub of an installed module below `folder` and return its path."""
    subprocess.run(
        [sys.executable, "-m", "pybind11_stubgen", module, "--exit-code", "-o", str(folder)],
        check=True,
        cwd=folder,
    )
    return folder.joinpath(*module.split(".")).with_suffix(".pyi")


def differs(name: str) -> bool:
    """Compare the two stubs of a module of rnnkern, and print the difference."""
    with tempfile.TemporaryDirectory() as folder:
        stubs = [STUBS / f"{name}.pyi", generate(f"rnnkern.{name}", Path(folder))]
        committed, generated = (sorted(surface(ast.parse(p.read_text()).body)) for p in stubs)
    difference = difflib.unified_diff(
        committed, generated, f"{name}.pyi", "compiled module", lineterm="", n=0
    )
    lines = list(difference)
    print("\n".join(lines) or f"{name}.pyi has the {len(generated)} names of the module")
    return bool(lines)


def main() -> int:
    """Compare the stubs of all modules and return the exit status."""
    built = ["_core", *(["_cuda"] if find_spec("rnnkern._cuda") else [])]
    return 1 if sum(map(differs, built)) else 0


if __name__ == "__main__":
    sys.exit(main())
