# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"`` and what training drops beside dropout between layers."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkern import devices

from support.devices import BATCH, HIDDEN, INPUTS, LENGTHS, STEPS, agree, agree_by_name, put, twins
from support.layers import WITH_PRODUCT


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_dropped_weights_are_those_of_the_cpu(cuda: devices.Cuda, cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, bidirectional=True, weight_drop=0.4)
    random = np.random.default_rng(0)
    x = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    dy = random.standard_normal((STEPS, BATCH, 2 * HIDDEN)).astype(np.float32)
    for options in ({}, {"recompute": 4}):
        y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=3, **options)
        own_y, _, own_tape = twin.forward(put(cuda, x), None, LENGTHS, dropout_key=3, **options)
        agree(cuda, "y", own_y, y, 1e-5)
        want, got = tape.backward(dy).params, own_tape.backward(put(cuda, dy)).params
        agree_by_name(cuda, got, want)
        for name, array in want.items():
            if name.startswith("weight_hh"):
                assert ((cuda.get(got[name]) == 0) == (array == 0)).all()
