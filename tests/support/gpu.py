# SPDX-License-Identifier: Apache-2.0
"""The GPU that tests run on, and how it is told what failed there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rnnkern.devices import Cuda, get_device


def the_gpu() -> Cuda:
    """The device. Tests that need one run where there is none only when there must be one."""
    try:
        found = get_device("cuda")
    except ValueError as error:
        pytest.fail(f"RNNKERN_REQUIRE_GPU is set: {error}", pytrace=False)
    assert isinstance(found, Cuda)
    return found


def record_failure(report: pytest.TestReport) -> None:
    """A failure goes to bench/gpu's records at once: the end of the run may never come."""
    path = os.environ.get("RNNKERN_RESULTS")
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        record = {"test": report.nodeid, "detail": report.longreprtext[-2000:]}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
