# SPDX-License-Identifier: Apache-2.0
"""Instruction sets, one after another within a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rnnkern import _core

# Never the default, and in builds with RNNKERN_EMULATE=instructions alone: they are scalar but for
# their bfloat16 and int8 products.
EMULATED = ["emulated-amx", "emulated-avx512bf16"]
HERE = _core.supported_isas()  # best first
REAL_HERE = [isa for isa in HERE if isa not in EMULATED]


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Within, calls run on that instruction set; layers that are packed there end there."""
    _core.use_isa(name)
    try:
        yield
    finally:
        _core.use_isa("")
