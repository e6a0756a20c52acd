# SPDX-License-Identifier: Apache-2.0
"""Writes the project's address everywhere it is needed: python tools/project_url.py URL [SITE].

URL is the repository's, SITE the documentation's, if it is published. pyproject.toml gets
``[project.urls]``, mkdocs.yml ``repo_url`` and ``site_url``, and the README's links and pictures
become absolute, so that a package index, which shows the README alone, leads to them too.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!\w+:|#)[^)\s]+)\)")
_URLS = re.compile(r"^\[project\.urls\]\n(?:.+\n)*\n?", re.MULTILINE)
_SITE = re.compile(r"^(?:# site_url, repo_url:.*\n|(?:site|repo)_url:.*\n)+", re.MULTILINE)


def absolute(readme: str, url: str, site: str | None) -> str:
    """The README with absolute links, to the repository; what is absolute stays."""

    def led(match: re.Match[str]) -> str:
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({url}/{kind}/main/{match['target']})"

    parts = re.split(r"(^```.*?^```$)", readme, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else _LINK.sub(led, part) for i, part in enumerate(parts))


def project(pyproject: str, url: str, site: str | None) -> str:
    """pyproject.toml with the addresses."""
    lines = [f'Repository = "{url}"', f'Issues = "{url}/issues"']
    lines.append(f'Changelog = "{url}/blob/main/CHANGELOG.md"')
    if site:
        lines.append(f'Documentation = "{site}"')
    section = "\n".join(["[project.urls]", *lines, "", ""])
    return _URLS.sub("", pyproject).replace("[project.scripts]", f"{section}[project.scripts]", 1)


def documentation(mkdocs: str, url: str, site: str | None) -> str:
    """mkdocs.yml with the addresses."""
    lines = [f"repo_url: {url}", *([f"site_url: {site}"] if site else [])]
    return _SITE.sub("\n".join([*lines, ""]), mkdocs, count=1)


def main() -> None:
    """Write all three files anew."""
    parser = argparse.ArgumentParser(description="write the project's address where it is needed")
    parser.add_argument("url", help="the repository's address")
    parser.add_argument("site", nargs="?", help="the documentation's address")
    options = parser.parse_args()
    url = options.url.rstrip("/")
    site = options.site
    files = {"README.md": absolute, "pyproject.toml": project, "mkdocs.yml": documentation}
    for name, written in files.items():
        path = ROOT / name
        path.write_text(written(path.read_text("utf-8"), url, site), encoding="utf-8")


if __name__ == "__main__":
    main()
