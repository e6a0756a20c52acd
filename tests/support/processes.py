# SPDX-License-Identifier: Apache-2.0
"""Other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def environment(**variables: str) -> dict[str, str]:
    """This process's own and these variables, for a process that can import ``support``."""
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **variables}


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that can import ``support``, with these variables set."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
