# SPDX-License-Identifier: Apache-2.0
"""How the tests run; what they share to write them with is in ``support``."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from hypothesis import settings

from rnnkern import devices

from support.gpu import record_failure

for profile, examples in (("rnnkern", 12), ("sanitized", 3)):
    settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, print_blob=False
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rnnkern"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    record_failure(report)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After a kernel's crash every call fails: a process of pytest-xdist ends, and is replaced."""
    found: Any = devices.base._ready.get("cuda")
    if type(found) is not devices.Cuda or "PYTEST_XDIST_WORKER" not in os.environ:
        return
    try:
        found.xp.cuda.runtime.deviceSynchronize()
    except found.xp.cuda.runtime.CUDARuntimeError as error:
        sys.stderr.write(f"{item.nodeid}: {error}\n")
        os._exit(3)
