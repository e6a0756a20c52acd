# SPDX-License-Identifier: Apache-2.0
"""What tests do about a GPU: where there is none, and to tell what failed on one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NoReturn

import pytest


def no_gpu(reason: str) -> NoReturn:
    """Skips a test that needs a GPU; fails it where RNNKERN_REQUIRE_GPU says that there is one."""
    if os.environ.get("RNNKERN_REQUIRE_GPU"):
        pytest.fail(f"RNNKERN_REQUIRE_GPU is set: {reason}", pytrace=False)
    pytest.skip(reason)


def record_failure(report: pytest.TestReport) -> None:
    """A failure goes to bench/gpu's records at once: the end of the run may never come."""
    path = os.environ.get("RNNKERN_RESULTS")
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        record = {"test": report.nodeid, "detail": report.longreprtext[-2000:]}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
