# SPDX-License-Identifier: Apache-2.0
"""Instruction sets by name."""

from __future__ import annotations

from rnnkern import _core

# Every name that the package knows, best first; then those that are never the default, in builds
# with RNNKERN_EMULATE=instructions alone: they are scalar but for their bfloat16 products.
REAL = ["amx", "avx512bf16", "avx512", "avx2", "scalar"]
EMULATED = ["emulated-amx", "emulated-avx512bf16"]
HERE = _core.supported_isas()
REAL_HERE = [isa for isa in HERE if isa in REAL]
