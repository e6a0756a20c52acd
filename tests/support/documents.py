# SPDX-License-Identifier: Apache-2.0
"""The code blocks of a document in Markdown, and how they are run.

All blocks of a page run in order, in one folder, those in Python in one namespace. A comment right
above a block says what else it is:

- ``<!-- not run: REASON -->``: not run here.
- ``<!-- command: NAME -->``: one of the README's commands, which CI runs as it stands.
- ``<!-- needs: PACKAGE -->``: run where that is installed.
- ``<!-- output -->``: what the block before printed; ``...`` stands for anything.

A block in Python that is the line ``--8<-- "examples/NAME.py"`` shows an example, which has a test
of its own.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = {"python", "bash"}  # that are run
NOT_RUN = {"", "text", "json", "toml", "yaml"}

_BLOCK = re.compile(
    r"^(?:(?P<indent> *)<!-- (?P<comment>[^\n]*?) -->\n)?"
    r"^(?P<space> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=space)```$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"output|command: \w+|not run: .+|needs: \w+|(end of )?table.*")
_SNIPPET = re.compile(r'--8<-- "(?P<path>[^"]+)"\n')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: As the fence says it.
        comment: The text of the comment right above, or nothing.
        code: Its lines.
        line: Of the document, its first one's number.

    """

    language: str
    comment: str
    code: str
    line: int

    @property
    def snippet(self) -> str | None:
        """The file that it shows."""
        found = _SNIPPET.fullmatch(self.code)
        return found["path"] if found else None

    @property
    def runs(self) -> bool:
        plain = not self.comment or self.needs is not None
        return self.language in LANGUAGES and plain and self.snippet is None

    @property
    def needs(self) -> str | None:
        """The package without which it is not run."""
        return self.comment.removeprefix("needs: ") if self.comment.startswith("needs: ") else None


def blocks(path: Path) -> list[Block]:
    """Those of a document, in order."""
    text = path.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        space = len(match["space"])
        code = "".join(line[space:] for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"].strip(), match["comment"] or "", code, line))
    return found


def wrong(path: Path) -> Iterator[str]:
    """What keeps a document's blocks from being run."""
    for block in blocks(path):
        where = f"{path.name}:{block.line}"
        if block.language not in LANGUAGES | NOT_RUN:
            yield f"{where}: the language {block.language!r} is not known"
        if block.comment and not _COMMENT.fullmatch(block.comment):
            yield f"{where}: the comment {block.comment!r} is not known"
        if block.comment == "output" and block.language != "text":
            yield f"{where}: an output is a block of text"


def run(path: Path, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run a document's blocks in that folder: each that ran, and what it printed.

    Raises:
        AssertionError: A command failed, or a block printed something else than is shown.

    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = ""
    for block in blocks(path):
        if block.needs is not None and importlib.util.find_spec(block.needs) is None:
            printed = None
        elif block.comment == "output" and printed is not None:
            assert_same(block.code, printed, f"{path.name}:{block.line}")
        elif block.runs:
            with _inside(folder):
                printed = _run(block, path, namespace)
            yield block, printed


def _run(block: Block, path: Path, namespace: dict[str, Any]) -> str:
    if block.language == "bash":
        bin_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": bin_first},
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{path.name}:{block.line}: {done.stderr}"
        return done.stdout
    out = io.StringIO()
    code = "\n" * (block.line - 1) + block.code  # so that tracebacks have the document's lines
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(path), "exec"), namespace)
    return out.getvalue()


def assert_same(shown: str, printed: str, where: str) -> None:
    """What was printed is what is shown."""
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert checker.check_output(shown, printed, options), (
        f"{where} shows\n{shown}\nbut what was printed is\n{printed}"
    )


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """``contextlib.chdir``, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
