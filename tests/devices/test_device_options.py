# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: options of layers give what they give on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
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
    move,
    put,
    twins,
)
from support.layers import DTYPES, WITH_PRODUCT, arrays, as_layer_state, computed
from support.variant_cases import CASES, EXACT, WAYS, Case, make, one_way

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


def on_both(cuda: devices.Cuda, case: Case, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A layer with the functions and bounds of a case on the CPU, and its twin on the device."""
    layer = make(case, *sizes, **options)
    twin = type(layer)(**{**layer.config(), "device": "cuda"})
    move(cuda, layer, twin)
    return layer, twin


def check_by_autograd(
    cuda: devices.Cuda,
    layer: Any,
    twin: Any,
    *,
    lengths: Any = None,
    batch: int = BATCH,
    tolerance: float | None = None,
) -> None:
    """Values and every gradient are those of PyTorch's autograd."""
    pytest.importorskip("torch")
    given = arrays(layer, STEPS, batch)
    x, state, dy, dstate = given
    want = importlib.import_module("support.variants").run(layer, x, state, lengths, dy, dstate)
    found = computed(twin, *(put(cuda, a) for a in given), lengths=lengths)
    assert found.keys() == want.keys()
    for name, array in found.items():
        at_most = tolerance or TOLERANCE[layer.dtype.name]
        assert_close(name, cuda.get(array), want[name], at_most)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_given_functions_and_bounds_agree_with_autograd(cuda: devices.Cuda, case: Case) -> None:
    options: dict[str, Any] = {"bidirectional": True, "dtype": "float64"}
    check_by_autograd(cuda, *on_both(cuda, case, INPUTS, HIDDEN, 2, **options), lengths=LENGTHS)


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_given_functions_in_float32_and_a_wavefront(cuda: devices.Cuda, case: Case) -> None:
    check_by_autograd(cuda, *on_both(cuda, case, INPUTS, HIDDEN, 2))


@pytest.mark.parametrize("given", FORWARD.values(), ids=FORWARD)
@pytest.mark.parametrize("case", WAYS, ids=str)
def test_given_functions_agree_with_the_cpu(
    cuda: devices.Cuda, case: Case, given: dict[str, Any]
) -> None:
    dropped = 0.3 if "dropout_key" in given else 0.0
    options: dict[str, Any] = {"dropout": dropped, "recurrent_dropout": dropped, "dtype": "float64"}
    for both in ({"bidirectional": True, "merge": "sum"}, {"reverse": True}):
        of_case = case if "bidirectional" in both else one_way(case)
        layers = on_both(cuda, of_case, INPUTS, HIDDEN, 2, **options, **both)
        check_calls_agree(cuda, *layers, **given)


@pytest.mark.parametrize("batch", [2, BATCH])
@pytest.mark.parametrize("compute", ["tfloat32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", EXACT[-3:], ids=str)
def test_given_functions_of_rounded_operands(
    cuda: devices.Cuda, case: Case, compute: str, batch: int
) -> None:
    layer = make(case, INPUTS, HIDDEN, 2)
    twin = type(layer)(**{**layer.config(), "device": "cuda", "compute": compute})
    move(cuda, layer, twin)
    check_by_autograd(cuda, layer, twin, batch=batch, tolerance=0.1)


def test_cells_with_peepholes(cuda: devices.Cuda) -> None:
    """Without other options: their equations are looked up all the same."""
    for coupled in (False, True):
        case = rk.LSTM, {"peepholes": True, "coupled": coupled}
        both = on_both(cuda, case, INPUTS, HIDDEN, 2, dtype="float64", bidirectional=True)
        check_by_autograd(cuda, *both, lengths=LENGTHS)
        layer, twin = on_both(cuda, case, INPUTS, HIDDEN, 3, dtype="float64", reverse=True)
        check_calls_agree(cuda, layer, twin, tokens=True)
    tape = twin.forward(cuda.xp.zeros((STEPS, BATCH, INPUTS), np.float64))[2]
    y = cuda.xp.ones((STEPS, BATCH, HIDDEN), np.float64)
    want = {name: cuda.get(g) for name, g in tape.backward(y).params.items()}
    twin.params["weight_peephole_l0"][...] = np.nan  # the tape has what they were
    for name, gradient in tape.backward(y).params.items():
        assert_same_bits(name, cuda.get(gradient), want[name])
