# SPDX-License-Identifier: Apache-2.0
"""What MkDocs does beyond its own for the site: pages from outside docs/, links there, formulas.

- CONTRIBUTING.md and CHANGELOG.md of the repository are pages.
- The API reference has every name that ``rnnkern/__init__.py`` imports, a page for each part of the
  package that it is from.
- A link to a file of the repository that is no page leads to ``repo_url``, and is plain text as
  long as mkdocs.yml has none. One to a file that is not there fails a strict build.
- Formulas become MathML here, so that readers need neither a script nor another server.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.site")

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

PARTS = {
    "cells": ("Recurrent layers", "The cells, each as a layer and as a single step."),
    "layers": ("Layers", "What recurrent layers share and give, and the pieces around them."),
    "training": ("Training", "Losses, optimizers, bounds on gradients, batches."),
    "models": ("Models", "Models of several layers."),
    "serialize": ("Files", "Saving and loading."),
    "machine": ("Threads and machine", "How many threads, and what runs."),
    "interop": ("Other libraries", "Weights and models from PyTorch and ONNX."),
}

# Imported by themselves, for each needs the library that it is for.
MODULES = {
    "rnnkern.torch": "For PyTorch",
    "rnnkern.jax": "For JAX",
    "rnnkern.keras": "For Keras",
}

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[\w-]*)?\)")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def reference() -> dict[str, str]:
    """The pages of the API reference, by their place in docs/."""
    names: dict[str, list[str]] = {}
    for node in ast.walk(_parsed("rnnkern")):
        if isinstance(node, ast.ImportFrom) and node.module and "." in node.module:
            part = node.module.split(".")[1]
            imported = [alias.name for alias in node.names]
            if imported == ["*"]:
                imported = _listed(node.module)
            public = [name for name in imported if not name.startswith("_")]
            names.setdefault(part, []).extend(public)
    pages = {}
    for part, of_part in names.items():
        if of_part:
            title, told = PARTS.get(part, (part.capitalize(), ""))
            shown = "\n\n".join(f"::: rnnkern.{name}" for name in sorted(of_part, key=str.lower))
            pages[f"api/{part}.md"] = f"# {title}\n\n{told}\n\n{shown}\n"
    for module, title in MODULES.items():
        listed = _listed(module)
        members = f"    options:\n      members: {listed}\n" if listed else ""
        page = f"api/{module.removeprefix('rnnkern.')}.md"
        pages[page] = f"# {title}\n\n::: {module}\n{members}"
    return pages


def _parsed(module: str) -> ast.Module:
    """The syntax of a module, or of a package's __init__.py."""
    path = ROOT.joinpath("python", *module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text("utf-8"))


def _listed(module: str) -> list[str]:
    """What its ``__all__`` says."""
    for node in _parsed(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def on_config(config: Any) -> Any:
    """List the pages of the reference under the entry that has its first page."""
    for entry in config.nav:
        for title, pages in entry.items():
            if isinstance(pages, list) and "api/index.md" in pages:
                entry[title] = [*pages, *reference()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside docs/."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    for page, text in reference().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links to the repository's files to where those are for a reader of the site."""
    source = PAGES.get(page.file.src_uri)
    folder = "" if source else posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def led(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        wanted = next((p for p, s in PAGES.items() if s == path), path.removeprefix("docs/"))
        if path.startswith("docs/") or wanted in PAGES:
            here = posixpath.dirname(page.file.src_uri) or "."
            return f"[{text}]({posixpath.relpath(wanted, here)}{anchor})"
        if not (ROOT / path).exists():
            log.warning("%s has a link to %s, which is not there", page.file.src_uri, path)
        repository = config.get("repo_url")
        return f"[{text}]({repository.rstrip('/')}/blob/main/{path})" if repository else text

    return _outside_code(_LINK, led, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Make MathML of the formulas."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["tag"] == "div" else "inline"
        return str(convert(unescape(match["tex"]).strip(), display=display))

    return _FORMULA.sub(formula, html)


def _outside_code(pattern: re.Pattern[str], made: Any, text: str) -> str:
    """Substitute outside fenced blocks."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else pattern.sub(made, part) for i, part in enumerate(parts))
