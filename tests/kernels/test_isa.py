# SPDX-License-Identifier: Apache-2.0
"""Every instruction set that this processor has, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core

from support.activations import NAMES, check_float32, check_float64
from support.isa import EMULATED, HERE, REAL_HERE, using_isa
from support.layers import CELLS, DTYPES, check_against_reference, make, random_state
from support.needs import ISAS
from support.processes import run_python
from support.training_passes import check_training_passes

# test_bfloat16.py checks what the emulated ones add.
every_isa = pytest.mark.parametrize("isa", REAL_HERE, indirect=True)


@every_isa
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layers(isa: str, cell: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
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
    assert _core.isa() == isa


@every_isa
@pytest.mark.parametrize("check", [check_float32, check_float64])
@pytest.mark.parametrize("name", NAMES)
def test_activations(isa: str, name: str, check: Callable[[str], None]) -> None:
    check(name)
    assert _core.isa() == isa


@every_isa
def test_training_passes(isa: str) -> None:
    check_training_passes()
    assert _core.isa() == isa


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_names_one(isa: str) -> None:
    done = run_python("from rnnkern import _core; print(_core.isa())", RNNKERN_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


def test_supported_names_and_default() -> None:
    """Supported sets stand best first, scalar after all real ones; unforced, the best one runs."""
    # Intel's AVX512-BF16 is slower than its AVX-512: csrc/cpu/isa/detect.cpp.
    orders = [
        ["amx", "avx512bf16", "avx512vnni", "avx512", "avx2"],
        ["amx", "avx512vnni", "avx512bf16", "avx512", "avx2"],
        ["amx", "avx512", "avx512bf16", "avx2"],  # built without avx512vnni
    ]
    assert any(
        [isa for isa in order if isa in HERE] == [isa for isa in HERE if isa in order]
        for order in orders
    )
    assert [*REAL_HERE, *(isa for isa in EMULATED if isa in HERE)] == HERE
    assert REAL_HERE[-1] == "scalar"
    done = run_python(
        "import os; os.environ.pop('RNNKERN_ISA', None)\n"
        "from rnnkern import _core; print(_core.isa())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == HERE[:1]


@pytest.mark.parametrize(
    "name",
    [
        *("sse9", "AVX2", "avx2 ", "avx2,scalar"),
        *sorted({"amx", "avx512bf16", "avx512vnni", "avx512", *EMULATED} - {*HERE}),
    ],
)
def test_unknown_or_unsupported_is_an_error(name: str) -> None:
    done = run_python("import rnnkern", RNNKERN_ISA=name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "RNNKERN_ISA" in last
    assert name in last
    for choice in HERE:
        assert choice in last
    with pytest.raises(ValueError, match=f"isa must be one of .*, got '{name}'"):
        _core.use_isa(name)


@pytest.mark.skipif(len(HERE) == 1, reason="there is one instruction set")
def test_what_was_packed_for_another_is_refused() -> None:
    layer, head, x = rk.LSTM(3, 4), rk.Linear(3, 4), np.ones((2, 1, 3), np.float32)
    with using_isa(HERE[-1]):
        tape, stream = layer.forward(x)[2], layer.stream(1)
        frozen, frozen_head = layer.freeze(), head.freeze()
        stream.step(x[0])
    for call in (
        lambda: tape.backward(np.ones((2, 1, 4), np.float32)),
        lambda: stream.step(x[0]),
        lambda: frozen(x),
        lambda: frozen_head(x),
    ):
        with pytest.raises(ValueError, match="packed"):
            call()


def test_info_tells_which_and_why() -> None:
    with using_isa("scalar"):
        assert "scalar" in rk.info()["instruction set"]
    assert _core.isa() in str(rk.info())
