# SPDX-License-Identifier: Apache-2.0
"""What tests need that is not everywhere; those that cannot run are left out, and counted."""

from __future__ import annotations

import functools
import os
from collections import Counter

import pytest

from rnnkern import _core
from rnnkern.devices import get_device

from support.emulation import emulated_kernels
from support.isa import EMULATED, REAL_HERE

emulated_device = pytest.mark.emulation("device")
emulated_instructions = pytest.mark.emulation("instructions")
# Instruction sets as parameters: those that run here, emulated ones too.
ISAS = [*REAL_HERE, *(pytest.param(name, marks=emulated_instructions) for name in EMULATED)]


@functools.cache
def no_gpu() -> str | None:
    """Why there is none to use, or None where there is one."""
    try:
        get_device("cuda")
    except ValueError as error:
        return str(error)
    return None


def _lacks(test: pytest.Item) -> str | None:
    """What the test needs and is not here, with how to get it."""
    # Where there must be one the test is to fail rather than to be missing.
    if test.get_closest_marker("gpu") and not os.environ.get("RNNKERN_REQUIRE_GPU") and no_gpu():
        return f"a GPU ({no_gpu()})"
    emulation = test.get_closest_marker("emulation")
    built = {"device": emulated_kernels(), "instructions": EMULATED[0] in _core.supported_isas()}
    if emulation and not built[emulation.args[0]]:
        define = "--config-settings=cmake.define.RNNKERN_EMULATE"
        return f"the emulation (build with {define}='{';'.join(built)}')"
    return None


def leave_out(tests: list[pytest.Item]) -> Counter[str]:
    """Takes those that cannot run here out of the list; how many need what."""
    lacks = [_lacks(test) for test in tests]
    tests[:] = [test for test, lack in zip(tests, lacks, strict=True) if lack is None]
    return Counter(lack for lack in lacks if lack is not None)
