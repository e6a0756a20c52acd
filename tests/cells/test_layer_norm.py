# SPDX-License-Identifier: Apache-2.0
"""Layer normalisation inside the cells: NumPy, PyTorch's autograd, differences, every way there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.devices import Cuda, Weights
from rnnkern.layers.configured import spec_of

from support.compare import assert_close, assert_same_bits
from support.differences import check_layer
from support.layers import TOLERANCE, arrays, as_layer_state, as_tuple, computed
from support.reference import Array, sigmoid
from support.threads import check_same_bits
from support.ways import check_cell, check_ways

STEPS, BATCH = 6, 5

Case = tuple[type[Any], dict[str, Any]]
CASES: list[Case] = [
    (rk.RNN, {}),
    (rk.SimplifiedGRU, {}),
    (rk.MGU, {}),
    (rk.GRU, {}),
    (rk.GRU, {"reset": "after"}),
    (rk.LSTM, {}),
    (rk.LSTM, {"coupled": True}),
    (rk.LSTM, {"output_activation": "softsign", "recurrent_activation": "hard_sigmoid"}),
]
# I, H, B, T: smaller than a register, uneven, more rows than a tile, more steps than a chunk.
SIZES = [(3, 5, 2, 4), (8, 32, 7, 9), (19, 70, 33, 20), (5, 24, 11, 100)]


def make(case: Case, *sizes: int, **options: Any) -> Any:
    kind, own = case
    layer = kind(*sizes, layer_norm=True, **own, **options)
    rng = np.random.default_rng(1)
    for name, p in layer.params.items():
        p[...] = rng.uniform(-1.0, 1.0, p.shape) + name.startswith("gain")
    return layer


def norm(rows: Array, gain: Array, shift: Any = 0.0) -> Array:
    centred = rows - rows.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    scaled: Array = normed * gain + np.asarray(shift)
    return scaled


def lstm_step(p: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Equations 20 to 22 of Ba, Kiros and Hinton (2016)."""
    recurrent = norm(h @ p["weight_hh_l0"].T, p["gain_hh_l0"])
    sums = recurrent + norm(x @ p["weight_ih_l0"].T, p["gain_ih_l0"]) + p["bias_l0"]
    u, f, n, o = np.split(sums, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(u) * np.tanh(n)
    return sigmoid(o) * np.tanh(norm(c, p["gain_c_l0"], p["shift_c_l0"])), c


def gru_step(p: dict[str, Array], x: Array, h: Array) -> tuple[Array]:
    """Their supplement's GRU; u is 1 - z."""
    units = h.shape[1]
    of_x, of_h = x @ p["weight_ih_l0"].T, h @ p["weight_hh_l0"].T
    both = slice(0, 2 * units), slice(2 * units, None)
    x_gates, x_n = (norm(of_x[:, s], p["gain_ih_l0"][s], p["bias_l0"][s]) for s in both)
    h_gates, h_n = (norm(of_h[:, s], p["gain_hh_l0"][s]) for s in both)
    r, u = np.split(sigmoid(x_gates + h_gates), 2, axis=1)
    n = np.tanh(x_n + r * (h_n + p["bias_hn_l0"]))
    return (u * n + (1 - u) * h,)


@pytest.mark.parametrize("case", [(rk.LSTM, {}), (rk.GRU, {"reset": "after"})], ids=str)
def test_values_are_those_of_the_papers_equations(case: Case) -> None:
    layer = make(case, 5, 7, dtype="float64")
    x, state, _, _ = arrays(layer, STEPS, BATCH)
    step: Any = lstm_step if case[0] is rk.LSTM else gru_step
    y, last = layer(x, as_layer_state(state))
    params, now = dict(layer.params), tuple(s[0] for s in state)
    for t, x_t in enumerate(x):
        now = step(params, x_t, *now)
        assert_close(f"y at {t}", y[t], now[0], 1e-12)
    for got, want in zip(as_tuple(last), now, strict=True):
        assert_close("the last state", got[0], want, 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_against_torch(case: Case) -> None:
    pytest.importorskip("torch")
    variants = importlib.import_module("support.variants")
    layer = make(case, 3, 11, 2, bidirectional=True, dtype="float64")
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    lengths = np.array([6, 2, 0, 5, 6])
    want = variants.run(layer, x, state, lengths, dy, dstate)
    found = computed(layer, x, state, dy, dstate, lengths=lengths)
    assert found.keys() == want.keys()
    for name, array in found.items():
        assert_close(name, array, want[name], 10 * TOLERANCE["float64"])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[5]], ids=str)
def test_sizes_in_float32_against_torch(case: Case, sizes: tuple[int, ...]) -> None:
    pytest.importorskip("torch")
    variants = importlib.import_module("support.variants")
    inputs, hidden, batch, steps = sizes
    layer = make(case, inputs, hidden, bias=hidden != 70)
    for name, p in layer.params.items():  # calm enough for so many steps of float32
        if name.startswith("gain"):
            p *= 0.3
    x, state, dy, dstate = arrays(layer, steps, batch)
    want = variants.run(layer, x, state, None, dy, dstate)
    for name, array in computed(layer, x, state, dy, dstate).items():
        assert array.dtype == np.float32
        assert_close(name, array, want[name], 10 * TOLERANCE["float32"])


@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    layer = make(case, 2, 3, bidirectional=True, dtype="float64")
    check_layer(layer, *arrays(layer, 3, 2), tolerance=1e-6)


@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_way_to_compute_it(case: Case, compute: str | None, tmp_path: Path) -> None:
    layer = make(case, 3, 11, compute=compute)
    x, state, _, _ = arrays(layer, 9, 3)
    y, _ = check_ways(layer, x, state, tmp_path)
    check_cell(layer, x, state, y)


@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("batch", [1, 9])
def test_the_same_bits_for_any_team(case: Case, compute: str | None, batch: int) -> None:
    layer = make(case, 5, 40, bidirectional=True, compute=compute)
    given = arrays(layer, 12, batch)
    check_same_bits(lambda: computed(layer, *given))


def test_many_rows_and_more_steps_than_a_chunk_by_any_team() -> None:
    layer = make((rk.LSTM, {}), 4, 17)
    given, lengths = arrays(layer, 90, 40), np.random.default_rng(3).integers(0, 91, 40)
    check_same_bits(lambda: computed(layer, *given, lengths=lengths), teams=[[2, 1, 3]])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_one_hot_rows(case: Case) -> None:
    layer = make(case, 7, 11, dtype="float64")
    _, state, dy, dstate = arrays(layer, STEPS, BATCH)
    tokens = np.random.default_rng(3).integers(0, 7, (6, 5))
    lengths = [1, 6, 0, 3, 6]
    want = computed(layer, np.eye(7)[tokens], state, dy, dstate, lengths=lengths)
    for name, array in computed(layer, tokens, state, dy, dstate, lengths=lengths).items():
        assert_close(name, array, want[name], 1e-12)
    assert_same_bits("frozen", layer.freeze()(tokens)[0], layer(tokens)[0])
    stream = layer.stream(batch=5)
    steps = np.stack([stream.step(row) for row in tokens])
    assert_same_bits("stream", steps, layer(tokens)[0])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[5]], ids=str)
def test_resets_are_sequences_of_their_own(case: Case, tokens: bool) -> None:
    layer = make(case, 3, 11, 2, dtype="float64")
    x, state, dy, dstate = arrays(layer, 9, 3)
    if tokens:
        x = np.random.default_rng(3).integers(0, 3, (9, 3))
    resets = np.zeros((9, 3), bool)
    resets[4] = resets[7] = True
    found = computed(layer, x, state, dy, dstate, resets=resets)
    grads: dict[str, Array] = {}
    given, nothing = as_layer_state(state), None
    for span in (slice(0, 4), slice(4, 7), slice(7, 9)):
        last = as_layer_state(dstate) if span.stop == 9 else nothing
        y, _, tape = layer.forward(x[span], given if span.start == 0 else nothing)
        own = tape.backward(dy[span], last)
        assert_close("y", found["y"][span], y, 1e-12)
        if own.x is not None:
            assert_close("dx", found["dx"][span], own.x, 1e-12)
        grads = {n: grads.get(n, 0.0) + g for n, g in own.params.items()}
    for name, gradient in grads.items():
        assert_close(name, found[f"d{name}"], gradient, 1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recompute_truncation_and_masks(case: Case) -> None:
    layer = make(case, 3, 11, 2, dtype="float64")
    x, state, dy, dstate = arrays(layer, 9, 3)
    want = computed(layer, x, state, dy, dstate)
    for name, array in computed(layer, x, state, dy, dstate, recompute=4).items():
        assert_close(name, array, want[name], 1e-12)
    truncated = computed(layer, x, state, dy, dstate, tbptt=4)
    assert_same_bits("y", truncated["y"], want["y"])
    whole = computed(layer, x, state, dy, dstate, tbptt=9)
    for name, array in whole.items():
        assert_close(name, array, want[name], 1e-12)
    lengths = np.array([9, 4, 0])
    mask = np.arange(9)[:, None] < lengths
    masked = computed(layer, x, state, dy, dstate, mask=mask)
    for name, array in computed(layer, x, state, dy, dstate, lengths=lengths).items():
        assert_close(name, masked[name], array, 1e-12)


def of_normed_c(layer: Any, c: Array, dfactor: Array) -> Array:
    """∂L/∂c through the factor of o in h, out(norm(c)), of which ∂L/∂ is given."""
    deviation = np.sqrt(c.var(axis=1, keepdims=True) + 1e-5)
    normed = (c - c.mean(axis=1, keepdims=True)) / deviation
    scaled = normed * layer.params["gain_c_l0"] + layer.params["shift_c_l0"]
    softsign = layer.config().get("output_activation") == "softsign"
    slopes = 1 / (1 + abs(scaled)) ** 2 if softsign else 1 - np.tanh(scaled) ** 2
    d = dfactor * slopes * layer.params["gain_c_l0"]
    along = normed * (d * normed).mean(axis=1, keepdims=True)
    found: Array = (d - d.mean(axis=1, keepdims=True) - along) / deviation
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_told_of_states(case: Case) -> None:
    """∂L/∂h_t and ∂L/∂c_t are those of the states; gates' ones give the bias's gradient."""
    layer = make(case, 3, 11, dtype="float64")
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    tape = layer.forward(x, as_layer_state(state))[2]
    gradients = tape.backward(dy, as_layer_state(dstate), state_gradients=True)
    steps = gradients.steps[0]
    gates = np.concatenate([steps.gates[g].sum(axis=(0, 1)) for g in layer.gates])
    assert_close("gates", gates, gradients.params["bias_l0"], 1e-12)
    later = layer.forward(x[:3], as_layer_state(state))
    after = layer.forward(x[3:], later[1])[2].backward(dy[3:], as_layer_state(dstate))
    of_h, *of_c = (s[0] for s in as_tuple(after.state))
    dh = of_h + dy[2]
    assert_close("h", steps.h[2], dh, 1e-12)
    assert (steps.c is None) == (not of_c)
    if steps.c is not None:
        through_h = of_normed_c(layer, later[1][1][0], dh * tape.gates()[0]["o"][2])
        assert_close("c", steps.c[2], of_c[0] + through_h, 1e-12)


def test_parameters_and_their_first_values() -> None:
    layer = rk.LSTM(3, 4, 2, bidirectional=True, layer_norm=True, seed=0)
    names = ["gain_ih", "gain_hh", "gain_c", "shift_c"]
    assert [layer.params[f"{n}_l1_reverse"].shape for n in names] == [(16,), (16,), (4,), (4,)]
    for name, p in layer.params.items():
        if name.startswith(("gain", "shift")):
            assert (p == name.startswith("gain")).all()
    plain = rk.LSTM(3, 4, 2, bidirectional=True, seed=0)
    for name, p in plain.params.items():
        assert_same_bits(name, p, layer.params[name])
    assert "shift_c_l0" not in rk.LSTM(3, 4, bias=False, layer_norm=True).params
    assert sorted(rk.GRU(3, 4, layer_norm=True).params) == [
        "bias_l0", "gain_hh_l0", "gain_ih_l0", "weight_hh_l0", "weight_ih_l0",
    ]  # fmt: skip
    assert repr(rk.GRU(3, 4, layer_norm=True)) == "GRU(3, 4, layer_norm=True)"


def test_scales_of_weights_have_no_part_in_it() -> None:
    layer = make((rk.LSTM, {}), 3, 16, dtype="float64")
    x, state, _, _ = arrays(layer, STEPS, BATCH)
    y, _ = layer(x, state)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer.params[name][...] *= 1e3
    assert_close("y", layer(x, state)[0], y, 1e-4)  # but for what is added to variances


def test_rows_that_do_not_vary() -> None:
    """The variance is 0: what is added to it keeps results and gradients finite."""
    layer = rk.LSTM(3, 8, layer_norm=True, seed=0)
    layer.params["weight_hh_l0"][...] = 0.0
    x = np.zeros((4, 2, 3), np.float32)
    y, _, tape = layer.forward(x)
    dx, _, grads = tape.backward(np.ones_like(y))
    for array in (y, dx, *grads.values()):
        assert np.isfinite(array).all()


def test_models_learn_by_it(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 4, (64, 5))
    lstm, gru = rk.LSTM(4, 8, layer_norm=True, seed=0), rk.GRU(8, 8, layer_norm=True, seed=2)
    stack = rk.Stack([lstm, gru])
    model = rk.Model(stack, rk.Linear(8, 4, seed=1), readout="last")
    data = rk.batches(x, x[:, -1], 16, shuffle=True, seed=0)
    history = rk.fit(model, data, epochs=20, optimizer=rk.Adam(model, lr=0.03), progress=False)
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    rk.save(tmp_path / "model.safetensors", model)
    loaded = rk.load(tmp_path / "model.safetensors")
    assert loaded.params == model.params
    assert_same_bits("loaded", loaded(x.T)[0], model(x.T)[0])
    assert "gain_c_l0" in rk.summary(model, arrays=True)
    assert rk.num_parameters(rk.LSTM(4, 8, layer_norm=True)) == 4 * 8 * (4 + 8 + 1 + 2) + 16


REFUSED: dict[str, Any] = {
    "peepholes must be False with layer_norm=True": lambda: rk.LSTM(
        2, 3, peepholes=True, layer_norm=True
    ),
    "proj_size must be 0 with layer_norm=True, got 2": lambda: rk.LSTM(
        2, 3, proj_size=2, layer_norm=True
    ),
    "layer_norm must be False for MinGRU": lambda: rk.MinGRU(2, 3, layer_norm=True),
    "layer_norm must be False for MinLSTM": lambda: rk.MinLSTM(2, 3, layer_norm=True),
    "layer_norm must be False for IndRNN": lambda: rk.IndRNN(2, 3, layer_norm=True),
    "layer_norm must be": lambda: rk.GRU(2, 3, layer_norm=1),  # type: ignore[arg-type]
    "layer_norm=True needs device='cpu', got device='cuda'": lambda: Cuda(np, None).check(
        spec_of(rk.GRU(2, 3, layer_norm=True))
    ),
    "PyTorch has no layer with layer_norm=True": lambda: rk.LSTM(2, 3, layer_norm=True).to_torch(
        arrays=True
    ),
    "recurrent_dropout must be 0 with layer_norm=True, got 0.5": lambda: rk.GRU(
        2, 3, layer_norm=True, recurrent_dropout=0.5
    ),
    "zoneout must be 0 with layer_norm=True, got 0.1": lambda: rk.GRU(
        2, 3, layer_norm=True, zoneout=0.1
    ),
    "cell_zoneout must be 0 with layer_norm=True, got 0.1": lambda: rk.LSTM(
        2, 3, layer_norm=True, cell_zoneout=0.1
    ),
    "needs a layer with layer_norm=False": lambda: rk.LSTM(2, 3, layer_norm=True).freeze(
        weights="int8"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_by_name(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()


def test_the_kernels_refuse_arrays_that_do_not_fit() -> None:
    layer = rk.LSTM(2, 3, layer_norm=True)
    spec, own = spec_of(layer), dict(layer.params)
    kinds = ["weight_ih", "weight_hh", "bias", "bias_hn", "unit_weights", "weight_hr"]
    kinds += ["gain_ih", "gain_hh", "gain_c", "shift_c"]
    arrays_ = {k: own.get(f"{k}_l0") for k in kinds}
    _core.Network(spec, [Weights.of(arrays_.values())])
    for name, wrong in [
        ("gain_ih", None),
        ("gain_hh", np.ones(11, np.float32)),
        ("gain_c", np.ones(3)),
        ("shift_c", np.ones((3, 1), np.float32)),
    ]:
        with pytest.raises((ValueError, TypeError), match=name):
            _core.Network(spec, [Weights.of({**arrays_, name: wrong}.values())])
    arrays_ |= {"weight_hh": np.ones((12, 2), np.float32), "weight_hr": np.ones((2, 3), np.float32)}
    with pytest.raises(ValueError, match="weight_hr"):
        _core.Network(spec, [Weights.of(arrays_.values())])
