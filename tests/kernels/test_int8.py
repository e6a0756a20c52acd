# SPDX-License-Identifier: Apache-2.0
"""weights="int8": whole numbers and scales, by the formula, whatever runs it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.devices import LayerSpec

from support import reference
from support.compare import assert_close, assert_same_bits, relative_error
from support.isa import using_isa
from support.layers import CELLS, as_layer_state, as_tuple, draw, make, random_state
from support.needs import ISAS
from support.threads import check_same_bits

# Norm-wise relative errors. Against operands rounded as they are, over one step, where now and then
# a number is half way and its sum's last bit decides; and of a whole call of small layers, in which
# that is one number of few. (int8 itself makes about 1e-2.)
ONE_STEP, STACKED, NEAR = 5e-4, 1e-2, 5e-2

# steps, batch, inputs, hidden: part of a panel and several, one and many tiles of rows, one unit.
SIZES = [
    (7, 5, 5, 17),
    (4, 33, 16, 64),
    (30, 2, 1, 3),
    (3, 17, 35, 100),
    (5, 1, 3, 1),
    (6, 6, 70, 9),
]


def check_reference(cell: str, size: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, hidden = size
    layer, h_0 = make(cell, inputs, hidden), random_state(cell, (1, batch, hidden))
    state = tuple(part.astype(np.float32) for part in h_0)
    tokens = np.random.default_rng(0).integers(0, inputs, (1, batch))
    with reference.rounded_operands("int8"):
        for x in (draw(1, batch, inputs), tokens):
            want = reference.Tape(cell, layer.params, x, state)
            y, last = layer.freeze(weights="int8")(x, as_layer_state(state))
            assert_close("y", y, want.y, ONE_STEP)
            for got, part in zip(as_tuple(last), want.state, strict=True):
                assert_close("state", got, part, ONE_STEP)
        rng = np.random.default_rng(0)
        layer = make(cell, inputs, hidden, 2, bidirectional=True)
        lengths = rng.integers(0, steps + 1, batch)
        given = draw(steps, batch, inputs)
        want = reference.Tape(cell, layer.params, given, None, lengths)
        y, _ = layer.freeze(weights="int8")(given, None, lengths)
        assert_close("y of all", y, want.y, STACKED)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_the_formula(cell: str, size: tuple[int, int, int, int]) -> None:
    check_reference(cell, size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", ["lstm", "gru_before"])
def test_every_instruction_set(cell: str, isa: str) -> None:
    with using_isa(isa):
        for size in SIZES:
            check_reference(cell, size)


def whole_numbers(inputs: int, hidden: int, batch: int) -> tuple[Any, reference.Array]:
    """A layer that adds up, and x, both of whole numbers whose scales are 1."""
    rng = np.random.default_rng(0)
    layer = rk.RNN(inputs, hidden, nonlinearity="identity", bias=False)
    for p in layer.params.values():
        p[...] = rng.integers(-127, 128, p.shape)
        p[:, 0] = 127
    x = rng.integers(-127, 128, (1, batch, inputs)).astype(np.float32)
    x[..., -1] = -127
    return layer, x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("inputs", "hidden", "batch"), [(1, 1, 1), (7, 9, 2), (130, 70, 13), (1000, 5, 6)]
)
def test_sums_are_exact(inputs: int, hidden: int, batch: int, isa: str) -> None:
    layer, x = whole_numbers(inputs, hidden, batch)
    w_ih, w_hh = layer.params["weight_ih_l0"], layer.params["weight_hh_l0"]
    h = np.roll(x[..., :1], 1, axis=1) * np.ones(hidden, np.float32)
    h[..., 0] = 127
    want = x[0].astype(np.int64) @ w_ih.T.astype(np.int64)
    want += h[0].astype(np.int64) @ w_hh.T.astype(np.int64)
    with using_isa(isa):
        y, _ = layer.freeze(weights="int8")(x, h)
        stream = layer.stream(batch, weights="int8")
        stream.state = h
        assert_same_bits("y", y[0], want.astype(np.float32))
        assert_same_bits("step", stream.step(x[0]), want.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_a_sum_of_more_than_an_int32_holds(isa: str) -> None:
    """Rows of alike numbers, as deep as no product of 127 and 127 may be summed in one."""
    inputs = (1 << 17) + (1 << 14) + 5
    layer = rk.RNN(inputs, 3, nonlinearity="identity", bias=False, seed=0)
    layer.params["weight_ih_l0"][...] = np.array([[1], [-2], [3]], np.float32)
    x = np.full((1, 2, inputs), 0.5, np.float32)
    want = np.array([[0.5, -1, 1.5]] * 2, np.float32) * inputs
    with using_isa(isa):
        assert_close("y", layer.freeze(weights="int8")(x)[0][0], want, 1e-4)
        assert_close("step", layer.stream(2, weights="int8").step(x[0]), want, 1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_cuts_and_other_rows_change_no_bit(cell: str) -> None:
    steps, batch, inputs, hidden = 9, 40, 24, 130
    layer = make(cell, inputs, hidden, 2)
    frozen, x = layer.freeze(weights="int8"), draw(steps, batch, inputs)
    lengths = np.random.default_rng(1).integers(1, steps + 1, batch)
    for given in (x, np.arange(steps * batch).reshape(steps, batch) % inputs):

        def results(given: Any = given) -> list[Any]:
            y, last = frozen(given)
            return [y, *as_tuple(last)]

        want, *last = check_same_bits(results, threads=(2, 4), teams=[[1, 2, 3]]).values()
        ragged, _ = frozen(given, None, lengths)
        for b in (0, 17, 39):
            alone, _ = frozen(np.ascontiguousarray(given[: lengths[b], b : b + 1]))
            assert_same_bits("row", alone[:, 0], want[: lengths[b], b])
            assert_same_bits("ragged row", ragged[: lengths[b], b], want[: lengths[b], b])
        stream, blocks = layer.stream(batch, weights="int8"), layer.stream(batch, weights="int8")
        assert_same_bits("steps", np.stack([stream.step(x_t) for x_t in given]), want)
        assert_same_bits(
            "blocks", np.concatenate([blocks.block(p) for p in (given[:4], given[4:])]), want
        )
        for got, end in zip(as_tuple(stream.state), last, strict=True):
            assert_same_bits("state", got, end)


OPTIONS: list[tuple[type[Any], dict[str, Any]]] = [
    (rk.LSTM, {"peepholes": True}),
    (rk.LSTM, {"coupled": True, "clip": 0.8}),
    (rk.LSTM, {"proj_size": 12}),
    (rk.LSTM, {"recurrent_activation": "hard_sigmoid", "reverse": True}),
    (rk.LSTM, {"bidirectional": True, "merge": "sum", "num_layers": 2}),
    (rk.GRU, {"reset": "after", "activation": "softsign"}),
    (rk.GRU, {"batch_first": True, "bias": False}),
    (rk.MGU, {"num_layers": 3}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_options(kind: type[Any], options: dict[str, Any]) -> None:
    layer = kind(20, 48, seed=0, **options)
    x = draw(12, 4, 20)
    frozen, resets = layer.freeze(weights="int8"), np.zeros((12, 4), bool)
    resets[5, 1:3] = True
    if options.get("batch_first"):
        x, resets = np.ascontiguousarray(x.swapaxes(0, 1)), resets.T
    y, _ = frozen(x, resets=resets)
    assert 0 < relative_error(y, layer(x, resets=resets)[0]) < NEAR


def test_weights_that_int8_holds_are_not_changed() -> None:
    """One step from zero of x whose numbers it holds too: what is left is float32's rounding."""
    layer = rk.LSTM(40, 30, seed=0)
    rng = np.random.default_rng(0)
    for p in layer.params.values():
        if p.ndim == 2:
            p[...] = rng.integers(-127, 128, p.shape) * np.float32(2.0**-9)
            p[:, 0] = 127 * np.float32(2.0**-9)
    x = (rng.integers(-127, 128, (1, 5, 40)) * 2.0**-7).astype(np.float32)
    x[..., 0] = 127 * 2.0**-7
    assert_close("y", layer.freeze(weights="int8")(x)[0], layer(x)[0], 1e-6)


def test_what_is_not_finite_spoils_its_row_alone() -> None:
    layer = make("lstm", 9, 40)
    x = draw(3, 4, 9)
    frozen = layer.freeze(weights="int8")
    want, _ = frozen(x)
    x[1, 1, 3], x[0, 2, 8] = np.nan, np.inf
    y, _ = frozen(x)
    assert np.isnan(y[1:, 1]).all()
    assert np.isnan(y[:, 2]).all()
    for b in (0, 3):
        assert_same_bits("another row", y[:, b], want[:, b])
    assert_same_bits("the step before", y[0, 1], want[0, 1])
    layer.params["weight_ih_l0"][5, 2] = np.inf
    assert np.isnan(layer.freeze(weights="int8")(np.zeros((1, 1, 9), np.float32))[0][0, 0, 5])


def test_zeros_and_the_smallest_numbers() -> None:
    layer = make("gru_before", 4, 10)
    layer.params["weight_ih_l0"][:7] = 0
    layer.params["weight_ih_l0"][7:20] = np.float32(1e-44)
    x = np.zeros((3, 2, 4), np.float32)
    x[1, 1] = 1e-44
    assert_close("y", layer.freeze(weights="int8")(x)[0], layer(x)[0], 2e-2)


def test_copies_and_refresh() -> None:
    layer, x = rk.Stack([rk.GRU(6, 20, seed=0), rk.LSTM(20, 8, seed=1)]), draw(4, 2, 6)
    frozen, stream = layer.freeze(weights="int8"), layer.stream(2, weights="int8")
    want = frozen(x)[0]
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert_same_bits("copy", twin(x)[0], want)
    stream.step(x[0])
    again = pickle.loads(pickle.dumps(stream))
    assert_same_bits("next step of a copy", again.step(x[1]), stream.step(x[1]))
    lstm = rk.LSTM(6, 8, seed=0)
    refreshed = lstm.stream(2, weights="int8")
    refreshed.step(x[0])
    for p in lstm.params.values():
        p *= 2
    refreshed.refresh()
    refreshed.reset()
    assert_same_bits("refreshed", refreshed.step(x[0]), lstm.freeze(weights="int8")(x)[0][0])
    assert repr(lstm.freeze(weights="int8")).endswith("weights='int8')")


def test_it_is_refused() -> None:
    for ask in ("freeze", "stream"):
        with pytest.raises(ValueError, match="needs a layer of dtype float32, got float64"):
            getattr(make("lstm", 2, 2, dtype="float64"), ask)(weights="int8")
        with pytest.raises(ValueError, match="compute=None, got compute='bfloat16'"):
            getattr(make("lstm", 2, 2, compute="bfloat16"), ask)(weights="int8")
        with pytest.raises(ValueError, match=r"weights must be one of .*, got 'int4'"):
            getattr(rk.GRU(2, 2), ask)(weights="int4")
    with pytest.raises(ValueError, match="weights must be one of 'int8', got 'bfloat16'"):
        rk.GRU(2, 2).freeze(weights="bfloat16")
    with pytest.raises(ValueError, match="compute"):
        rk.GRU(2, 2, compute="int8")


def test_kernels_refuse_to_train_with_it() -> None:
    weights = [(draw(9, 2), draw(9, 3), None, None)]
    network = _core.Network(LayerSpec("gru_before", 2, 3, compute="int8"), weights)
    x, h, y = np.ones((1, 1, 2), np.float32), np.zeros((1, 1, 3), np.float32), draw(1, 1, 3)
    with pytest.raises(ValueError, match="inference alone"):
        network.forward(x, None, h, None, y, (), True)


def test_info_says_what_multiplies() -> None:
    with using_isa("scalar"):
        assert rk.info()["int8 products"] == "whole numbers one by one"


@pytest.mark.parametrize("hidden", [32, 256])
def test_it_is_no_worse_than_onnxruntimes(hidden: int, tmp_path: Path) -> None:
    """DynamicQuantizeLSTM has one scale a matrix and one for all of x: float64 decides."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")
    layer = rk.LSTM(hidden, hidden, seed=0)
    x = draw(30, 8, hidden)
    truth = reference.Tape("lstm", layer.params, x).y
    layer.to_onnx(tmp_path / "exact.onnx")
    quantization.quantize_dynamic(
        tmp_path / "exact.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["LSTM"]
    )
    model = onnx.load(tmp_path / "int8.onnx")
    assert "DynamicQuantizeLSTM" in [node.op_type for node in model.graph.node]
    session = ort.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: x})[0]
    error = relative_error(layer.freeze(weights="int8")(x)[0], truth)
    assert error <= relative_error(theirs.reshape(truth.shape), truth)
    assert error < NEAR


def test_a_trained_model_answers_as_well() -> None:
    """A model that tells which of two marked steps had the larger number."""
    rng = np.random.default_rng(0)

    def problems(count: int) -> tuple[reference.Array, reference.Array]:
        x = np.zeros((20, count, 2), np.float32)
        x[..., 0] = rng.uniform(-1, 1, (20, count))
        places = np.argsort(rng.random((count, 20)), axis=1)[:, :2]
        places.sort(axis=1)
        rows = np.arange(count)
        for k in range(2):
            x[places[:, k], rows, 1] = 1
        first, second = (x[places[:, k], rows, 0] for k in range(2))
        return x, (first > second).astype(np.int64)

    model = rk.Model(rk.LSTM(2, 48, seed=0), rk.Linear(48, 2, seed=1), readout="last")
    adam = rk.Adam(model, lr=5e-3)
    for _ in range(400):
        x, target = problems(64)
        logits, _, tape = model.forward(x)
        adam.step(tape.backward(rk.softmax_cross_entropy(logits, target)[1]))
    x, target = problems(4000)
    head = model.head
    right = {}
    for weights in (None, "int8"):
        y, _ = model.recurrent.freeze(weights=weights)(x)
        right[weights] = np.mean(head(y[-1]).argmax(axis=1) == target)
    assert right[None] > 0.9
    assert abs(right["int8"] - right[None]) <= 0.005
