# SPDX-License-Identifier: Apache-2.0
"""How the tests run; what they share to write them with is in ``support``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import Phase, settings

from rnnkern import devices

from support.gpu import record_failure
from support.needs import leave_out

for profile, examples in (("rnnkern", 12), ("sanitized", 3)):
    settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, print_blob=False
    )
# A planted fault has been found when an example fails: no smaller one is looked for.
settings.register_profile(
    "planted", settings.get_profile("rnnkern"), phases=(Phase.explicit, Phase.generate)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "rnnkern"))


_left_out: Counter[str] = Counter()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _left_out.update(leave_out(items))
    if hasattr(config, "workeroutput"):  # of pytest-xdist, whose parent tells it
        config.workeroutput["left out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _left_out.clear()  # every worker has left out the same
    _left_out.update(getattr(node, "workeroutput", {}).get("left out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        needs = "; ".join(f"{count} need {what}" for what, count in _left_out.items())
        terminalreporter.write_line(f"left out: {needs}")


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
