# SPDX-License-Identifier: Apache-2.0
"""The code in README and docs runs and prints what they say it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rnnkern as rk

from support.documents import Block, assert_same, blocks, run, wrong

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    count = rk.get_num_threads()
    yield
    rk.set_num_threads(count)


def test_every_block_is_run_or_says_why_not() -> None:
    found = [text for path in DOCUMENTS for text in wrong(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_blocks_run(path: Path, tmp_path: Path) -> None:
    assert all(block.runs for block, _ in run(path, tmp_path))


def test_examples_that_are_shown_are_there() -> None:
    shown = {block.snippet for path in DOCUMENTS for block in blocks(path)} - {None}
    examples = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert shown == examples


def document(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_a_page_is_run_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    page = document(
        tmp_path,
        "```python\nx = 2\n```\n1. in a list:\n\n   ```python\n   print(x, 0.123)\n   ```\n"
        "<!-- output -->\n```text\n2 0.1...\n```\n"
        "```bash\necho 3 > file\n```\n"
        "```python\nfrom pathlib import Path\nprint(Path('file').read_text())\n```\n"
        "<!-- output -->\n```text\n3\n```\n"
        "<!-- not run: it would fail -->\n```bash\nfalse\n```\n",
    )
    assert [block.runs for block in blocks(page)] == [True, True, False, True, True, False, False]
    assert not list(wrong(page))
    assert [printed for _, printed in run(page, tmp_path)] == ["", "2 0.123\n", "", "3\n\n"]


def test_a_block_whose_package_is_not_there_is_passed_over(tmp_path: Path) -> None:
    text = "<!-- needs: {} -->\n```python\nprint(2)\n```\n<!-- output -->\n```text\n3\n```\n"
    list(run(document(tmp_path, text.format("no_such_package")), tmp_path))
    with pytest.raises(AssertionError, match=r"page\.md:7 shows"):
        list(run(document(tmp_path, text.format("numpy")), tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```bash\necho no >&2; false\n```\n", "page.md:2: no"),
        ("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n", "page.md:6 shows"),
    ],
)
def test_what_fails_is_told(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError), match=re.escape(message)):
        list(run(document(tmp_path, text), tmp_path))


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    page = document(
        tmp_path,
        "```cobol\n```\n<!-- never mind -->\n```bash\n```\n<!-- output -->\n```python\n```\n",
    )
    assert [text.split(": ")[1] for text in wrong(page)] == [
        "the language 'cobol' is not known",
        "the comment 'never mind' is not known",
        "an output is a block of text",
    ]
    assert blocks(page)[0] == Block("cobol", "", "", 2)


def test_the_notebook_is_the_quick_start() -> None:
    tool: Any = pytest.importorskip("notebook", reason="tools are not in an sdist")
    cells = json.loads(tool.NOTEBOOK.read_text("utf-8"))["cells"]
    told = "run: python tools/notebook.py"
    assert [(c["cell_type"], "".join(c["source"])) for c in cells] == tool.sources(), told
    code = iter([c["outputs"] for c in cells if c["cell_type"] == "code"])
    outputs: list[Any] = []
    for block in blocks(tool.PAGE):
        if block.runs:
            outputs = next(code)
        elif block.comment == "output":
            assert_same(block.code, "".join(outputs[0]["text"]), told)
    pictures = [o for c in cells for o in c.get("outputs", ()) if "data" in o]
    assert [list(o["data"]) for o in pictures] == [["image/png"]]
