# SPDX-License-Identifier: Apache-2.0
"""Programs under a real mpiexec."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MPIEXEC = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
with_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpi4py and mpiexec: pip install 'rnnkern[mpi]'",
)


def mpi(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program under mpiexec."""
    assert MPIEXEC is not None
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, *arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
