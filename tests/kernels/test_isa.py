# SPDX-License-Identifier: Apache-2.0
"""Every instruction set this CPU has is forced, proved to be the one that ran, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core

from support.activations import NAMES, check_float32, check_float64
from support.layers import CELLS, DTYPES, check_against_reference, make, random_state
from support.processes import run_python
from support.training_passes import check_training_passes

# What a child needs to import this file.
HERE = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
# Every name that the package knows, best first; then those that are never the default, in builds
# with RNNKERN_EMULATE=instructions alone: they are scalar but for their bfloat16 products, which
# test_bfloat16.py checks.
REAL = ["amx", "avx512bf16", "avx512", "avx2", "scalar"]
EMULATED = ["emulated-amx", "emulated-avx512bf16"]
ISAS = REAL + EMULATED


def check() -> None:
    """A compact run of everything under whatever instruction set is in force; run in a child."""
    rng = np.random.default_rng(0)
    for cell in CELLS:
        for dtype in DTYPES:
            for steps, batch, inputs, hidden in [(7, 5, 5, 17), (3, 33, 16, 64), (50, 2, 1, 3)]:
                layer = make(cell, inputs, hidden, 2, bidirectional=True, dtype=dtype)
                check_against_reference(
                    layer,
                    cell,
                    rng.standard_normal((steps, batch, inputs)).astype(dtype),
                    state=random_state(cell, (4, batch, hidden)),
                    lengths=rng.integers(0, steps + 1, batch),
                    dy=rng.standard_normal((steps, batch, 2 * hidden)),
                    dstate=random_state(cell, (4, batch, hidden), seed=1),
                )
                check_against_reference(
                    layer,
                    cell,
                    rng.integers(0, inputs, (steps, batch)),
                    dy=rng.standard_normal((steps, batch, 2 * hidden)),
                )
    for name in NAMES:
        check_float32(name)
        check_float64(name)
    check_training_passes()
    print(_core.isa())


@pytest.mark.parametrize("isa", [isa for isa in _core.supported_isas() if isa not in EMULATED])
def test_forced(isa: str) -> None:
    done = run_python(HERE + "import test_isa; test_isa.check()", RNNKERN_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


def test_supported_names_and_default() -> None:
    """Supported sets stand best first, scalar after all real ones; unforced, the best one runs."""
    supported = _core.supported_isas()
    # Intel's AVX512-BF16 is slower than its AVX-512: csrc/cpu/isa/detect.h.
    on_intel = ["amx", "avx512", "avx512bf16", *ISAS[3:]]
    assert supported in ([i for i in order if i in supported] for order in (ISAS, on_intel))
    assert "scalar" in supported
    done = run_python(
        "import os; os.environ.pop('RNNKERN_ISA', None)\n"
        "from rnnkern import _core; print(_core.isa())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == supported[:1]


@pytest.mark.parametrize(
    "name",
    ["sse9", "AVX2", "avx2 ", "avx2,scalar", *sorted(set(ISAS) - set(_core.supported_isas()))],
)
def test_unknown_or_unsupported_is_an_error(name: str) -> None:
    done = run_python("import rnnkern", RNNKERN_ISA=name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "RNNKERN_ISA" in last
    assert name in last
    for choice in _core.supported_isas():
        assert choice in last


def test_info_tells_which_and_why() -> None:
    assert _core.isa() in str(rk.info())
