# SPDX-License-Identifier: Apache-2.0
"""Instruction sets, one after another within a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rnnkern import _core

# Every name that the package knows, best first; then those that are never the default, in builds
# with RNNKERN_EMULATE=instructions alone: they are scalar but for their bfloat16 products.
REAL = ["amx", "avx512bf16", "avx512", "avx2", "scalar"]
EMULATED = ["emulated-amx", "emulated-avx512bf16"]
HERE = _core.supported_isas()
REAL_HERE = [isa for isa in HERE if isa in REAL]


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Within, calls run on that instruction set; layers that are packed there end there."""
    _core.use_isa(name)
    try:
        yield
    finally:
        _core.use_isa("")
