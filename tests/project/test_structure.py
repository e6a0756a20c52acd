# SPDX-License-Identifier: Apache-2.0
"""How the sources hang together: no circles, private parts are left alone, no file is too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "rnnkern"
PUBLIC = {"_asdict", "_fields", "_replace"}  # of a NamedTuple
PUBLIC |= {"_flatten_layers"}  # Keras has no other way to all layers of a model
OTHERS = {"sys", "threadpoolctl"}  # whose own these are


def modules() -> dict[str, ast.Module]:
    """Module -> its syntax, for all of the package."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = ast.parse(file.read_text("utf-8"))
    return found


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The package's modules that this one imports: loaded, in its functions, or for its types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


def test_no_module_imports_itself_by_way_of_others() -> None:
    trees = modules()
    # The package itself imports what users see; nothing below asks it for that.
    known = trees.keys() - {"rnnkern"}
    graph = {name: set(imported(tree, set(known))) for name, tree in trees.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join((*way, name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())


def test_private_attributes_are_used_where_they_are_made() -> None:
    wrong = []
    for name, tree in modules().items():
        own = {"_core", *PUBLIC}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr in own:
                continue
            if not node.attr.startswith("_") or node.attr.endswith("__"):
                continue
            of = node.value
            if not (isinstance(of, ast.Name) and of.id in {"self", "cls", *OTHERS}):
                wrong.append(f"{name}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_no_file_has_more_than_500_lines() -> None:
    sources = [
        file
        for folder in ("bench", "csrc", "docs", "examples", "python", "tests", "tools")
        for ending in ("*.py", "*.h", "*.cpp", "*.cu", "*.md")
        for file in (ROOT / folder).rglob(ending)
    ]
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in sources}
    assert not [f"{file}: {n}" for file, n in lengths.items() if n > 500]
