# SPDX-License-Identifier: Apache-2.0
"""Options of the cells' equations: values and every gradient against PyTorch's autograd."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.devices import Cuda
from rnnkern.layers.configured import spec_of

from support.compare import assert_close, assert_same_bits
from support.differences import check_layer
from support.layers import TOLERANCE, arrays, computed
from support.threads import check_same_bits
from support.ways import check_cell, check_ways

pytest.importorskip("torch")  # which the reference is of
variants = importlib.import_module("support.variants")

STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 3, 11

SMOOTH = ["sigmoid", "softsign", "softplus", "identity", "affine(0.7, 0.2)", "elu", "elu(0.5)"]
SMOOTH += ["scaled_tanh(1.7159, 0.6667)"]
KINKED = ["relu", "hard_sigmoid", "hard_sigmoid(0.2, 0.5)", "leaky_relu", "leaky_relu(0.3)"]
KINKED += ["thresholded_relu(0.4)", "thresholded_relu(-0.4)"]

Case = tuple[type[Any], dict[str, Any]]
OLD_KERAS = {"recurrent_activation": "hard_sigmoid(0.2, 0.5)"}
# What a sigmoid's symmetry does not carry: z and 1 - z part.
ODD = {"recurrent_activation": "tanh", "activation": "sigmoid"}
APART = {"activation": ("tanh", "softsign"), "recurrent_activation": ("hard_sigmoid", "sigmoid")}
GATED: list[Case] = [
    (rk.SimplifiedGRU, {}),
    (rk.MGU, {}),
    (rk.GRU, {}),
    (rk.GRU, {"reset": "after"}),
]
ALL_GATED: list[Case] = [*GATED, (rk.LSTM, {})]
LSTMS: list[dict[str, Any]] = [
    {"peepholes": True},
    {"coupled": True},
    {"peepholes": True, "coupled": True},
    {"cell_clip": 0.4},
    {"output_activation": "softsign"},
    {"output_activation": ("identity", "tanh"), "activation": ("relu", "elu")},
    {"peepholes": True, "coupled": True, "clip": 0.8, "cell_clip": 0.5, **OLD_KERAS},
    {"peepholes": True, "clip": 0.8, **APART},
]
EXACT: list[Case] = [  # where rounding to float32 meets no kink
    *((rk.RNN, {"nonlinearity": f}) for f in SMOOTH),
    *((rk.LSTM, options) for options in LSTMS[:3]),
    *((kind, {**own, **ODD}) for kind, own in ALL_GATED),
]
CASES: list[Case] = [
    *EXACT,
    *((rk.RNN, {"nonlinearity": f}) for f in [*KINKED, ("relu", "leaky_relu(0.2)")]),
    (rk.RNN, {"clip": 0.5}),
    *((rk.LSTM, options) for options in LSTMS[3:]),
    *(
        (kind, {**own, **options})
        for kind, own in ALL_GATED
        for options in (
            {"clip": 0.6},
            {**OLD_KERAS, "activation": "relu"},
            {"clip": 0.6, **ODD},
            APART,
        )
    ),
]
# One of each kind, where every path is gone.
WAYS: list[Case] = [
    (rk.RNN, {"nonlinearity": "softsign", "clip": 0.9}),
    *((kind, {**own, **OLD_KERAS, "clip": 0.9}) for kind, own in GATED),
    (rk.LSTM, {"peepholes": True, "coupled": True, "cell_clip": 0.5, **OLD_KERAS}),
    (rk.LSTM, {"peepholes": True, "activation": "elu", "output_activation": "tanh"}),
]


def make(case: Case, *sizes: int, **options: Any) -> Any:
    kind, own = case
    layer = kind(*sizes, **own, **options)
    rng = np.random.default_rng(1)
    for p in layer.params.values():
        p[...] = rng.uniform(-1.0, 1.0, p.shape)
    return layer


def one_way(case: Case) -> Case:
    """With the first direction's functions alone."""
    kind, own = case
    return kind, {k: v[0] if isinstance(v, tuple) else v for k, v in own.items()}


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


@pytest.mark.parametrize(
    "layer",
    [rk.GRU(2, 3, clip=1.0), rk.RNN(2, 3, nonlinearity="elu"), rk.LSTM(2, 3, peepholes=True)],
    ids=repr,
)
def test_a_gpu_refuses_what_its_kernels_have_not(layer: Any) -> None:
    device = Cuda(np, None)
    with pytest.raises(ValueError, match="device='cpu', got device='cuda'"):
        device.check(spec_of(layer))
    device.check(spec_of(rk.LSTM(2, 3, coupled=True)))
