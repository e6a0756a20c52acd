# SPDX-License-Identifier: Apache-2.0
"""Makes docs/quickstart.ipynb of docs/quickstart.md: python tools/notebook.py.

It runs the page's code, so that the notebook has its outputs, and keeps the pictures that the code
writes in docs/quickstart. A test holds the two together.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "quickstart.md", ROOT / "docs" / "quickstart.ipynb"
PICTURES = ROOT / "docs" / "quickstart"

_CODE = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"^<!-- output -->\n```text\n.*?^```\n", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"^!\[.*\]\(quickstart/.*\)\n", re.MULTILINE)
_PAGES = re.compile(r"\]\((?!https?:)[^)]*\)")


def sources() -> list[tuple[str, str]]:
    """The notebook's cells: "markdown" or "code", and what is in them.

    What the code prints and draws is not said twice, and links, which would lead nowhere, are text.
    """
    text = _PICTURE.sub("", _SHOWN.sub("", PAGE.read_text("utf-8")))
    found = []
    for place, part in enumerate(_CODE.split(text)):
        if part.strip():
            code = place % 2 == 1
            inside = part if code else re.sub(r"\[([^\]]*)" + _PAGES.pattern, r"\1", part)
            found.append(("code" if code else "markdown", inside.strip()))
    return found


def main() -> None:
    """Run the page and write the notebook."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.documents import run

    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ran = run(PAGE, folder)
        for kind, source in sources():
            cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
            cell["source"] = source.splitlines(keepends=True)
            if kind == "code":
                before = set(folder.glob("*.png"))
                _, printed = next(ran)
                outputs = [_text(printed)] if printed else []
                for picture in sorted(set(folder.glob("*.png")) - before):
                    outputs.append(_image(picture))
                    PICTURES.mkdir(exist_ok=True)
                    shutil.copy(picture, PICTURES)
                cell |= {"execution_count": None, "outputs": outputs}
            cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    NOTEBOOK.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _text(printed: str) -> dict[str, Any]:
    return {"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}


def _image(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"data": {"image/png": data}, "metadata": {}, "output_type": "display_data"}


if __name__ == "__main__":
    main()
