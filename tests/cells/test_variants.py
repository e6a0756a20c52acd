# SPDX-License-Identifier: Apache-2.0
"""Options of the cells' equations: values and every gradient against PyTorch's autograd."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.differences import check_layer
from support.layers import TOLERANCE, arrays, computed
from support.threads import check_same_bits
from support.variant_cases import APART, CASES, EXACT, ODD, OLD_KERAS, WAYS, Case, make, one_way
from support.ways import check_cell, check_ways

pytest.importorskip("torch")  # which the reference is of
variants = importlib.import_module("support.variants")

STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 3, 11


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case) -> None:
    layer = make(case, INPUTS, HIDDEN, 2, bidirectional=True, dtype="float64")
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    lengths = np.array([6, 2, 0, 5, 6])
    want = variants.run(layer, x, state, lengths, dy, dstate)
    found = computed(layer, x, state, dy, dstate, lengths=lengths)
    assert found.keys() == want.keys()
    for name, array in found.items():
        assert_close(name, array, want[name], TOLERANCE["float64"])


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_in_float32(case: Case) -> None:
    layer = make(case, INPUTS, HIDDEN)
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    want = variants.run(layer, x, state, None, dy, dstate)
    for name, array in computed(layer, x, state, dy, dstate).items():
        assert array.dtype == np.float32
        assert_close(name, array, want[name], TOLERANCE["float32"])


@pytest.mark.parametrize("case", WAYS, ids=str)
def test_every_way_to_compute_it(case: Case, tmp_path: Path) -> None:
    layer = make(one_way(case), INPUTS, HIDDEN)
    x, state, _, _ = arrays(layer, 9, 3)
    y, _ = check_ways(layer, x, state, tmp_path)
    check_cell(layer, x, state, y)


@pytest.mark.parametrize("case", WAYS, ids=str)
def test_the_same_bits_for_any_team(case: Case) -> None:
    layer = make(case, 5, 40, bidirectional=True)
    given = arrays(layer, 12, 9)
    check_same_bits(lambda: computed(layer, *given))


def test_gradients_are_those_of_finite_differences() -> None:
    """With every option at once; no bound is near enough for a step to cross it."""
    layer = make(
        (rk.LSTM, {"peepholes": True, "clip": 0.8, "cell_clip": 0.6, **APART}),
        2,
        3,
        bidirectional=True,
        dtype="float64",
    )
    check_layer(layer, *arrays(layer, 4, 2))


def test_bfloat16_rounds_operands_alone() -> None:
    """Peepholes, functions and bounds are of what float32 has."""
    exact = make((rk.LSTM, {"peepholes": True, **OLD_KERAS}), INPUTS, HIDDEN)
    rounded = make((rk.LSTM, {"peepholes": True, **OLD_KERAS}), INPUTS, HIDDEN, compute="bfloat16")
    x, state, dy, dstate = arrays(exact, STEPS, BATCH)
    want = computed(exact, x, state, dy, dstate)
    for name, array in computed(rounded, x, state, dy, dstate).items():
        assert_close(name, array, want[name], 0.1)
    for layer in (exact, rounded):
        for p in (layer.params["weight_ih_l0"], layer.params["weight_hh_l0"]):
            p[...] = 0.0  # no product is left
    for a, b in zip(exact(x, state)[1], rounded(x, state)[1], strict=True):
        assert_same_bits("a state", a, b)


def test_tokens_and_lengths() -> None:
    layer = make((rk.GRU, {**ODD, "clip": 0.7}), 7, HIDDEN)
    tokens = np.random.default_rng(3).integers(0, 7, (STEPS, BATCH))
    hot = np.eye(7, dtype=np.float32)[tokens]
    lengths = [1, 6, 0, 3, 6]
    assert_close("y", layer(tokens, None, lengths)[0], layer(hot, None, lengths)[0], 1e-6)


def test_the_forget_bias_of_coupled_gates() -> None:
    layer = rk.LSTM(2, 3, coupled=True, forget_bias=1.5)
    assert layer.gates == ("u", "n", "o")
    np.testing.assert_array_equal(layer.params["bias_l0"][:3], np.float32(-1.5))


REFUSED: dict[str, dict[str, Any]] = {
    "activation must be one of 'sigmoid', 'tanh'": {"activation": "gelu"},
    "activation must be a string": {"activation": 3},
    r"activation must be 'elu' or 'elu\(alpha\)', got 'elu\(1, 2\)'": {"activation": "elu(1, 2)"},
    "recurrent_activation must be 'relu', got": {"recurrent_activation": "relu(2)"},
    "must have finite numbers": {"activation": "elu(inf)"},
    "must have an alpha of at least 0": {"activation": "leaky_relu(-1)"},
    "must have an alpha other than 0": {"activation": "scaled_tanh(0, 1)"},
    "one for each of the two directions": {"activation": ("tanh", "relu")},
    "clip must be above 0, or None": {"clip": 0.0},
    "cell_clip must be a finite number of at least 0": {"cell_clip": -1.0},
    "peepholes must be": {"peepholes": 1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_wrong_is_named(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        rk.LSTM(2, 3, **REFUSED[message])


def test_others_have_no_such_layer() -> None:
    for layer in (rk.LSTM(2, 3, peepholes=True), rk.RNN(2, 3, clip=1.0)):
        with pytest.raises(ValueError, match="PyTorch has no layer with"):
            layer.to_torch(arrays=True)
