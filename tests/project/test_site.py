# SPDX-License-Identifier: Apache-2.0
"""What the site is made of beside its pages: drawings, formulas, links out of docs/."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from rnnkern.cells import CELLS

ROOT = Path(__file__).parents[2]
drawings: Any = pytest.importorskip("cell_drawings", reason="tools are not in an sdist")
hooks: Any = pytest.importorskip("site_hooks", reason="tools are not in an sdist")


def test_drawings_are_those_of_the_tool() -> None:
    page = (ROOT / "docs" / "cells.md").read_text("utf-8")
    for file, text in drawings.drawings().items():
        assert file.read_text("utf-8") == text, "run: python tools/cell_drawings.py"
        assert f"](cells/{file.name})" in page
        ElementTree.fromstring(text)
    assert {file.stem for file in (ROOT / "docs" / "cells").iterdir()} == set(CELLS)


def test_the_page_of_cells_has_every_layer() -> None:
    page = (ROOT / "docs" / "cells.md").read_text("utf-8")
    assert all(f"rk.{cell.layer.__name__}(" in page for cell in CELLS.values())


def test_links_out_of_the_folder(caplog: pytest.LogCaptureFixture) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="concepts.md"))

    def led(text: str, url: str | None = None) -> str:
        return str(hooks.on_page_markdown(text, page, {"repo_url": url}, None))

    assert led("[a](cells.md#lstm), [b](api/index.md)") == "[a](cells.md#lstm), [b](api/index.md)"
    assert led("[how](../CONTRIBUTING.md)") == "[how](contributing.md)"
    assert led("[tool](../tools/surface.py)") == "tool"
    shown = led("[tool](../tools/surface.py)", "https://example.org/rnnkern/")
    assert shown == "[tool](https://example.org/rnnkern/blob/main/tools/surface.py)"
    assert (
        led("[x](https://example.org), ![y](../z.png)")
        == "[x](https://example.org), ![y](../z.png)"
    )
    assert led("```\n[tool](../tools/surface.py)\n```") == "```\n[tool](../tools/surface.py)\n```"
    assert not caplog.records
    led("[gone](../tools/gone.py)")
    assert "concepts.md has a link to tools/gone.py, which is not there" in caplog.text


def test_links_of_a_page_from_outside() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="contributing.md"))
    text = hooks.on_page_markdown("[built](docs/architecture.md#words)", page, {}, None)
    assert text == "[built](architecture.md#words)"


def test_formulas_need_no_script() -> None:
    pytest.importorskip("latex2mathml")
    html = r'<p>a <span class="arithmatex">\(x_t &lt; 1\)</span></p>'
    made = hooks.on_page_content(html, None, None, None)
    assert re.search(r"<math [^>]*inline[^>]*>.*<msub>.*</math></p>", made, re.DOTALL)


def test_the_projects_address_can_be_written() -> None:
    tool: Any = pytest.importorskip("project_url", reason="tools are not in an sdist")
    url, site = "https://example.org/rnnkern", "https://example.org/docs/"
    readme = tool.absolute((ROOT / "README.md").read_text("utf-8"), url, site)
    assert not re.findall(r"\]\((?!https?:)", readme)
    assert f"]({url}/raw/main/docs/speed/speed.svg)" in readme
    assert f"]({url}/blob/main/docs/cells.md)" in readme
    assert tool.absolute(readme, url, site) == readme
    read = (ROOT / "pyproject.toml").read_text("utf-8")
    project = tool.project(read, url, site)
    assert f'[project.urls]\nRepository = "{url}"' in project
    assert project.count("[project.scripts]") == 1
    assert tool.project(project, url, site) == project
    pages = tool.documentation((ROOT / "mkdocs.yml").read_text("utf-8"), url, site)
    assert f"repo_url: {url}\nsite_url: {site}\ndocs_dir" in pages
    assert tool.documentation(pages, url, site) == pages
