"""compute="bfloat16": the operands of matrix products are rounded, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_threads import run_all

import rnnkern as rk
from rnnkern import _core
from rnnkern.adder import Adder, Settings, Training

import reference
from conftest import (
    CELLS,
    as_tuple,
    assert_close,
    assert_same_bits,
    check_against_reference,
    make,
    random_state,
    run_python,
    using_threads,
)
from reference import Array

# Norm-wise relative errors: against exact operands; and against operands rounded as they are, where
# only float32 sums differ, and with them now and then the side on which a number is rounded.
NEAR, TIGHT = 2e-2, 2e-4

# steps, batch, inputs, hidden: fewer rows than a tall tile and more, odd depths, depths beyond a block
# of rows, more than one panel, one unit.
SIZES = [(7, 5, 5, 17), (4, 33, 16, 64), (30, 2, 1, 3), (3, 17, 35, 100), (40, 20, 6, 9), (5, 1, 3, 1)]


def rounded_layer(cell: str, *sizes: int, **options: Any) -> Any:
    return make(cell, *sizes, compute="bfloat16", **options)


def check(cell: str, size: tuple[int, int, int, int]) -> None:
    """Stacked, both directions, ragged and from tokens, against both references."""
    steps, batch, inputs, hidden = size
    rng = np.random.default_rng(0)
    layer = rounded_layer(cell, inputs, hidden, 2, bidirectional=True)
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    tokens = rng.integers(0, inputs, (steps, batch))
    upstream: dict[str, Any] = {
        "lengths": rng.integers(0, steps + 1, batch),
        "dy": rng.standard_normal((steps, batch, 2 * hidden)),
        "dstate": random_state(cell, (4, batch, hidden), seed=1),
    }
    state = random_state(cell, (4, batch, hidden))
    check_against_reference(layer, cell, x, state=state, **upstream, tolerance=NEAR)
    with reference.rounded_operands():
        check_against_reference(layer, cell, x, state=state, **upstream, tolerance=TIGHT)
        check_against_reference(layer, cell, tokens, **upstream, tolerance=TIGHT)


def check_everything() -> None:
    """Run in a child, under whatever instruction set is in force."""
    for cell in CELLS:
        for size in SIZES:
            check(cell, size)
            check_threads(cell, size)
    print(_core.isa())


def check_threads(cell: str, size: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, hidden = size
    rng = np.random.default_rng(4)
    layer = rounded_layer(cell, inputs, hidden, 2, bidirectional=True, dropout=0.3)
    x = rng.standard_normal((steps, batch, inputs)).astype(np.float32)
    lengths = rng.integers(0, steps + 1, batch)
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            results.append(run_all(layer, cell, x, lengths, key=3))
    for other in results[1:]:
        for k, (got, want) in enumerate(zip(other, results[0], strict=True)):
            assert_same_bits(f"result {k}", got, want)


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_every_instruction_set(isa: str) -> None:
    done = run_python("import test_bfloat16; test_bfloat16.check_everything()", RNNKERN_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]
