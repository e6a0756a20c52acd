# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: options of layers give what they give on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkern import devices
from rnnkern.devices import MERGES

from support import reference
from support.compare import assert_close, assert_same_bits
from support.devices import (
    BATCH,
    HIDDEN,
    INPUTS,
    LENGTHS,
    STEPS,
    TOLERANCE,
    check_calls_agree,
    put,
    twins,
)
from support.layers import DTYPES, WITH_PRODUCT, arrays, as_layer_state, computed

FORWARD: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "tokens": {"tokens": True, "lengths": LENGTHS},
    "dropout": {"dropout_key": 5},
    "recompute": {"recompute": 4, "dropout_key": 5, "lengths": LENGTHS},
    "resets": {"resets": np.random.default_rng(0).random((STEPS, BATCH)) < 0.3},
}
merges = pytest.mark.parametrize("merge", MERGES[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", WITH_PRODUCT)
@merges
def test_merged_directions_agree_with_the_reference(
    cuda: devices.Cuda, merge: str, cell: str, dtype: str
) -> None:
    options: dict[str, Any] = {"bidirectional": True, "merge": merge, "dtype": dtype}
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, **options)
    given = arrays(layer, STEPS, BATCH)
    x, state, dy, dstate = given
    found = computed(twin, *(put(cuda, a) for a in given), lengths=LENGTHS)
    oracle = reference.Tape(cell, layer.params, x, state, LENGTHS, merge=merge)
    dx, dfirst, grads = oracle.backward(dy, dstate)
    assert dx is not None
    want = {"y": oracle.y, "dx": dx, **{f"d{name}": array for name, array in grads.items()}}
    for letter, end, first in zip("hc", oracle.state, dfirst, strict=False):
        want |= {f"{letter}_n": end, f"d{letter}_0": first}
    assert found.keys() == want.keys()
    for name, array in found.items():
        assert_close(name, cuda.get(array), want[name], TOLERANCE[dtype])


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru_before", "lstm"])
@pytest.mark.parametrize("given", FORWARD.values(), ids=FORWARD)
@merges
def test_merged_directions_agree_with_the_cpu(
    cuda: devices.Cuda, merge: str, given: dict[str, Any], cell: str
) -> None:
    options: dict[str, Any] = {"bidirectional": True, "merge": merge}
    options["dropout"] = 0.3 if "dropout_key" in given else 0.0
    check_calls_agree(cuda, *twins(cuda, cell, INPUTS, HIDDEN, 3, **options), **given)


@merges
def test_merged_directions_frozen_and_into_out(cuda: devices.Cuda, merge: str) -> None:
    layer, twin = twins(cuda, "lstm", INPUTS, HIDDEN, 2, bidirectional=True, merge=merge)
    x, state, _, _ = arrays(layer, STEPS, BATCH)
    given = put(cuda, x), as_layer_state(put(cuda, state)), LENGTHS
    want = cuda.get(twin.forward(*given)[0])
    out = cuda.xp.empty(want.shape, want.dtype)
    assert twin(*given, out=out)[0] is out
    assert_same_bits("out", cuda.get(out), want)
    assert_same_bits("frozen", cuda.get(twin.freeze()(*given)[0]), want)
