# SPDX-License-Identifier: Apache-2.0
"""Print one of the README's two commands, so that CI runs what the reader is told to run.

A command is a fenced bash block right below the comment `<!-- command: NAME -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

NAMES = ("train", "test")
README = Path(__file__).resolve().parent.parent / "README.md"

MARKER = re.compile(r"<!-- command:")
BLOCK = re.compile(r"^<!-- command: (\S+) -->\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(text: str) -> dict[str, str]:
    """Extract the marked commands of a README, by name.

    Raises ValueError unless they are `train` and `test`, once each, every one well formed.
    """
    blocks = BLOCK.findall(text)
    names = [name for name, _ in blocks]
    if len(MARKER.findall(text)) != len(blocks):
        raise ValueError("a `<!-- command: NAME -->` is not right above a ```bash block")
    if sorted(names) != sorted(NAMES):
        raise ValueError(f"expected the commands {sorted(NAMES)}, found {sorted(names)}")
    return dict(blocks)


def main() -> int:
    """Print the command asked for and return the exit status."""
    parser = argparse.ArgumentParser(description="print one of the README's two commands")
    parser.add_argument("name", choices=NAMES)
    name = parser.parse_args().name
    try:
        print(commands(README.read_text(encoding="utf-8"))[name], end="")
    except ValueError as error:
        print(f"{README.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
