# SPDX-License-Identifier: Apache-2.0
"""Times what a newcomer waits for: python bench/two_commands.py [--tests] [--record FILE].

In a clone of HEAD, without a cache of compiled files: an environment, ``pip install .`` and the
training of the README's first command, then what the second one adds until its first test has run,
with --tests until its last too; and what ``import rnnkern`` takes beyond ``import numpy``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_IMPORTS = 31


class Clone:
    """A clone of HEAD, and the environment in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rnnkern"
        self.python = self.folder / ".venv" / "bin" / "python"
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CCACHE", "CMAKE", "SKBUILD", "PYTHON", "VIRTUAL"))
        }
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.folder)], check=True)

    def seconds(self, *command: str | Path) -> float:
        """How long a command takes that must succeed."""
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")
        return time.perf_counter() - began

    def pip(self, *what: str) -> float:
        """How long it takes to install."""
        return self.seconds(self.python, "-m", "pip", "install", *what)

    def first_test(self) -> float:
        """How long until the first result of a test is there."""
        began = time.perf_counter()
        with subprocess.Popen(
            [self.python, "-m", "pytest", "-v"],
            cwd=self.folder, env=self._environment, stdout=subprocess.PIPE, text=True,
        ) as tests:  # fmt: skip
            assert tests.stdout is not None
            for line in tests.stdout:
                if "PASSED" in line or "FAILED" in line:
                    break
            taken = time.perf_counter() - began
            tests.kill()
        return taken

    def import_seconds(self, module: str) -> float:
        """The median of an interpreter that imports it and ends."""
        times = [self.seconds(self.python, "-c", f"import {module}") for _ in range(_IMPORTS)]
        return statistics.median(times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tests", action="store_true", help="run all of them, for minutes")
    parser.add_argument("--record", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rnnkern-") as folder:
        clone = Clone(Path(folder))
        seconds["an environment"] = clone.seconds(sys.executable, "-m", "venv", ".venv")
        seconds["`pip install .`"] = clone.pip(".")
        train = clone.python.with_name("rnnkern"), "adder", "train"
        seconds["`rnnkern adder train`"] = clone.seconds(*train)
        numpy = clone.import_seconds("numpy")
        seconds["`import rnnkern`, beyond `import numpy`"] = clone.import_seconds("rnnkern") - numpy
        tests = 'then `pip install --no-compile ".[test]"`'
        seconds[tests] = clone.pip("--no-compile", ".[test]")
        seconds["`pytest`, until the first test has run"] = clone.first_test()
        if options.tests:
            seconds["`pytest`, all tests"] = clone.seconds(clone.python, "-m", "pytest", "-q")
        facts = json.loads(
            subprocess.run(
                [clone.python, "-c", "import json; from rnnkern.record import facts; "
                 "print(json.dumps(facts()))"],
                check=True, capture_output=True, text=True, cwd=folder,
            ).stdout
        )  # fmt: skip
    rows = [
        [what, f"{taken:.0f} s" if taken >= 1.0 else f"{taken * 1e3:.0f} ms"]
        for what, taken in seconds.items()
    ]
    for what, taken in rows:
        print(f"{what:50} {taken}")
    if options.record:
        table = {"header": ["what", "time"], "rows": rows}
        record = {"facts": facts, "seconds": seconds, "table": table}
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
