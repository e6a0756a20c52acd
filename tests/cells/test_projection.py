# SPDX-License-Identifier: Apache-2.0
"""LSTMs whose h is a projection: PyTorch's own, differences, the bits of every way."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.devices import LayerSpec, Weights

from support.compare import assert_close, assert_same_bits
from support.differences import check_layer
from support.layers import arrays
from support.marks import live_steps
from support.reference import Array
from support.threads import check_same_bits
from support.ways import check_ways

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
# I, H, P, layers, both directions, B, T: smaller than a register, larger than a panel, one output,
# nearly as many as units, more steps than a chunk.
SIZES = [
    (3, 5, 2, 1, False, 2, 4),
    (8, 32, 8, 2, True, 4, 9),
    (33, 70, 17, 2, True, 9, 65),
    (16, 64, 48, 1, False, 64, 20),
    (4, 40, 1, 1, False, 1, 30),
    (16, 264, 257, 1, False, 3, 40),
]


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


def twin_of(layer: rk.LSTM) -> Any:
    """The PyTorch module that computes what the layer does."""
    twin = torch.nn.LSTM(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        proj_size=layer.proj_size,
        dtype=getattr(torch, layer.dtype.name),
    )
    twin.load_state_dict(layer.to_torch())
    return twin


def arguments(layer: rk.LSTM, steps: int, batch: int) -> tuple[Array, tuple[Array, Array]]:
    """x and a state."""
    rng, count = np.random.default_rng(1), layer.num_layers * layer.num_directions
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    x = rng.standard_normal((*shape, layer.input_size)).astype(layer.dtype)
    h, c = (
        rng.standard_normal((count, batch, width)).astype(layer.dtype)
        for width in (layer.proj_size, layer.hidden_size)
    )
    return x, (h, c)


def like(arrays: Any) -> list[Array]:
    """Random arrays of the same shapes."""
    rng = np.random.default_rng(2)
    return [rng.standard_normal(a.shape).astype(a.dtype) for a in arrays]


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES)
def test_against_torch(sizes: tuple[Any, ...], dtype: str, ragged: bool) -> None:
    inputs, hidden, outputs, layers, both, batch, steps = sizes
    layer = rk.LSTM(
        inputs,
        hidden,
        layers,
        proj_size=outputs,
        bidirectional=both,
        batch_first=ragged,
        bias=inputs != 8,
        dtype=dtype,
        seed=0,
    )
    twin = twin_of(layer)
    x, state = arguments(layer, steps, batch)
    lengths = np.random.default_rng(3).integers(1, steps + 1, batch) if ragged else None
    y, last, tape = layer.forward(x, state, lengths)
    dy, dh, dc = like((y, *last))
    dx, dstate, grads = tape.backward(dy, (dh, dc))

    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, *state)]
    given = theirs[0]
    rnn = torch.nn.utils.rnn
    if lengths is not None:
        order = torch.from_numpy(lengths)
        given = rnn.pack_padded_sequence(given, order, batch_first=True, enforce_sorted=False)
    their_y, their_last = twin(given, tuple(theirs[1:]))
    if lengths is not None:
        their_y, _ = rnn.pad_packed_sequence(their_y, batch_first=True, total_length=steps)
    loss = sum(
        (a * torch.from_numpy(d)).sum()
        for a, d in zip((their_y, *their_last), (dy, dh, dc), strict=True)
    )
    loss.backward()

    results = zip((y, *last, dx, *dstate), (their_y, *their_last, *theirs), strict=True)
    for k, (got, want) in enumerate(results):
        wanted = want.detach() if k < 3 else want.grad
        assert_close(f"result {k}", got, wanted.numpy(), TOLERANCE[dtype])
    for name, got in grads.items():
        want = twin.get_parameter(name.replace("bias", "bias_ih")).grad.numpy()
        assert_close(name, got, want, TOLERANCE[dtype])


def test_differences() -> None:
    layer = rk.LSTM(2, 4, 2, proj_size=3, bidirectional=True, dropout=0.3, dtype="float64", seed=0)
    check_layer(layer, *arrays(layer, 4, 3), lengths=[4, 0, 2], dropout_key=1)


def results_of(layer: rk.LSTM, *given: Any) -> list[Array]:
    """Everything that a pass there and back gives."""
    y, last, tape = layer.forward(*given)
    dy, dh, dc = like((y, *last))
    gradients = tape.backward(dy, (dh, dc))
    state: Any = gradients.state
    dx = [] if gradients.x is None else [gradients.x]
    return [y, *last, *dx, *state, *gradients.params.values()]


@pytest.mark.parametrize("compute", [None, "bfloat16"])
def test_threads_change_no_bit(compute: str | None) -> None:
    layer = rk.LSTM(40, 130, 2, proj_size=37, bidirectional=True, compute=compute, seed=0)
    x, state = arguments(layer, 40, 33)
    lengths = np.random.default_rng(3).integers(0, 41, 33)
    check_same_bits(
        lambda: results_of(layer, x, state, lengths), threads=(2, 5), teams=[[3, 1, 4, 2]]
    )


@pytest.mark.parametrize(
    ("dtype", "compute"), [("float32", None), ("float64", None), ("float32", "bfloat16")]
)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_way_gives_the_same_bits(
    sizes: tuple[Any, ...], dtype: str, compute: str | None, tmp_path: Path
) -> None:
    inputs, hidden, outputs, layers, _, batch, steps = sizes
    layer = rk.LSTM(inputs, hidden, layers, proj_size=outputs, dtype=dtype, compute=compute, seed=0)
    x, state = arguments(layer, steps, batch)
    check_ways(layer, x, state, tmp_path)


def test_tokens_are_one_hot_rows() -> None:
    layer = rk.LSTM(11, 24, 2, proj_size=6, dtype="float64", seed=0)
    tokens = np.random.default_rng(0).integers(0, 11, (7, 5))
    by_token = results_of(layer, tokens)
    dense = results_of(layer, np.eye(11)[tokens])
    for got, want in zip(by_token, [*dense[:3], *dense[4:]], strict=True):
        assert_close("of tokens", got, want, 1e-12)
    stream = layer.stream(5)
    assert_close("stream", np.stack([stream.step(t) for t in tokens]), dense[0], 1e-12)


def test_bfloat16_is_near_float32() -> None:
    layer = rk.LSTM(24, 96, 2, proj_size=32, bidirectional=True, seed=0)
    narrow = rk.LSTM(**{**layer.config(), "compute": "bfloat16"})
    x, state = arguments(layer, 20, 6)
    for got, want in zip(results_of(narrow, x, state), results_of(layer, x, state), strict=True):
        assert not np.array_equal(got, want)
        assert_close("in bfloat16", got, want, 3e-2)
    one_way = rk.LSTM(24, 96, proj_size=32, seed=0)
    streams = [one_way.stream(6), one_way.stream(6, weights="bfloat16")]
    want, got = (np.stack([stream.step(x_t) for x_t in x]) for stream in streams)
    assert not np.array_equal(got, want)
    assert_close("of narrow weights", got, want, 2e-2)


def test_a_streams_rows_come_and_go() -> None:
    layer = rk.LSTM(3, 12, 2, proj_size=8, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 5, 3)).astype(np.float32)
    alone = [layer(x[:, b : b + 1].copy())[0][:, 0] for b in range(5)]
    stream = layer.stream(3)
    stream.step(x[0, :3])
    mask = np.array([True, False, True])
    y = stream.step(x[1, :3], mask=mask)
    assert_same_bits("row 0", y[0], alone[0][1])
    assert not y[1].any()
    stream = pickle.loads(pickle.dumps(stream))
    h, c = stream.get_rows([1])
    assert h.shape == (2, 1, 8)
    assert c.shape == (2, 1, 12)
    (new,) = stream.add_rows(1, (h, c))
    stream.remove_rows([1])
    # Left: rows 0 and 2 after two steps, and the new one, which is row 1 after one.
    y = stream.step(np.stack([x[2, 0], x[2, 2], x[1, 1]]))
    assert new == 3
    for got, want in zip(y, (alone[0][2], alone[2][2], alone[1][1]), strict=True):
        assert_same_bits("a row", got, want)
    other = copy.deepcopy(stream)
    stream.take(np.array([2, 0, 0]))
    y = stream.step(np.stack([x[2, 1], x[3, 0], x[3, 0]]))
    for got, want in zip(y, (alone[1][2], alone[0][3], alone[0][3]), strict=True):
        assert_same_bits("a row that moved", got, want)
    other.reset([1])
    other.set_rows([0], None)
    y = other.step(np.stack([x[0, 3], x[0, 4], x[2, 1]]))
    for got, want in zip(y, (alone[3][0], alone[4][0], alone[1][2]), strict=True):
        assert_same_bits("a row from zero", got, want)
    other.reset(np.array([True, False, True]))
    assert [bool(part.any()) for part in other.get_rows([0, 2])] == [False, False]
    assert all(part.any() for part in other.get_rows([1]))


def test_steps_of_a_cell() -> None:
    layer = rk.LSTM(3, 6, 2, proj_size=4, bidirectional=True, dtype="float64", seed=0)
    cell = rk.LSTMCell.of(layer, 1, reverse=True)
    assert cell.config()["proj_size"] == cell.proj_size == 4
    assert cell.input_size == 8
    x, h, c = (np.ones((2, n)) for n in (8, 4, 6))
    (new_h, new_c), tape = cell.forward(x, (h, c))
    assert (new_h.shape, new_c.shape) == ((2, 4), (2, 6))
    dx, (dh, dc), grads = tape.backward((np.ones_like(new_h), np.ones_like(new_c)))
    whole = rk.LSTM(8, 6, proj_size=4, dtype="float64")
    for name in whole.params:
        whole.params[name] = layer.params[f"{name[:-1]}1_reverse"]
    y, _, whole_tape = whole.forward(x[None], (h[None], c[None]))
    assert_same_bits("h", new_h, y[0])
    gradients = whole_tape.backward(None, (np.ones((1, 2, 4)), np.ones((1, 2, 6))))
    for got, want in zip((dx, dh, dc), (gradients.x, *gradients.state), strict=True):
        assert_same_bits("a gradient", got, want[0])
    assert_same_bits("of weight_hr", grads["weight_hr"], gradients.params["weight_hr_l0"])


def test_saved_and_taken_by_others(tmp_path: Path) -> None:
    layer = rk.LSTM(3, 6, 2, proj_size=4, bidirectional=True, recurrent_init="orthogonal", seed=0)
    hh = layer.params["weight_hh_l1"].reshape(4, 6, 4)
    assert np.allclose(hh.transpose(0, 2, 1) @ hh, np.eye(4), atol=1e-5)
    rk.save(tmp_path / "layer.safetensors", layer)
    again = rk.load(tmp_path / "layer.safetensors")
    assert again.config() == layer.config()
    assert again.params == layer.params
    module = twin_of(layer)
    for source in (module, module.state_dict()):
        taken = rk.from_torch(source)
        assert taken.proj_size == 4
        assert taken.params == layer.params
    x = np.ones((5, 2, 8), np.float32)
    model = rk.Model(
        rk.Stack([rk.LSTM(8, 6, proj_size=4, seed=0), rk.GRU(4, 5, seed=1)]), rk.Linear(5, 2)
    )
    y, _, tape = model.forward(x)
    assert np.asarray(tape.backward(np.ones_like(y)).x).shape == x.shape
    rk.save(tmp_path / "model.safetensors", model)
    assert_same_bits("of the model", rk.load(tmp_path / "model.safetensors")(x)[0], y)


def test_what_is_refused() -> None:
    wrong: list[tuple[Any, type[Exception]]]
    wrong = [(4, ValueError), (7, ValueError), (-1, ValueError), (1.5, TypeError)]
    for size, error in wrong:
        with pytest.raises(error, match="proj_size"):
            rk.LSTM(3, 4, proj_size=size)
    layer = rk.LSTM(3, 4, proj_size=2)
    x = np.ones((5, 2, 3), np.float32)
    h, c = np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 4), np.float32)
    for state in ((c, c), (h, h), (c, h)):
        with pytest.raises(ValueError, match="state"):
            layer(x, state)
        with pytest.raises(ValueError, match="dstate"):
            layer.forward(x)[2].backward(None, state)
    with pytest.raises(ValueError, match="proj_size"):
        layer.to_onnx("never.onnx")


@pytest.mark.parametrize("cell", ["lstm", "gru_after", "rnn_tanh"])
def test_kernels_take_no_wrong_projection(cell: str) -> None:
    rows = 4 * len(_core.cells()[cell]["gates"])
    ih, narrow, square = (np.zeros((rows, n), np.float32) for n in (3, 2, 4))
    spec = LayerSpec(cell, 3, 4, projection=2)

    def network(hh: Array, hr: Array | None) -> Any:
        return _core.Network(spec, [Weights(ih, hh, None, None, weight_hr=hr)])

    right = np.zeros((2, 4), np.float32)
    wrong: list[tuple[Array, Array | None]]
    wrong = [(narrow, None), (narrow, right[:, :3]), (narrow, right.T), (square, square[:4])]
    for hh, hr in wrong if cell == "lstm" else [*wrong, (narrow, right)]:
        with pytest.raises(ValueError, match="weight"):
            network(hh, hr)
    if cell == "lstm":
        h, c, x = (np.zeros((1, 2, n), np.float32) for n in (2, 4, 3))
        made = network(narrow, right)
        for state in ((h, h), (c, c)):
            with pytest.raises(ValueError, match="must be a float32 array"):
                made.forward(x, None, *state, np.zeros((1, 2, 2), np.float32), (), False)
        with pytest.raises(ValueError, match="y must be"):
            made.forward(x, None, h, c, np.zeros((1, 2, 4), np.float32), (), False)


def test_with_the_options_of_layers() -> None:
    layer = rk.LSTM(3, 12, 2, proj_size=5, bidirectional=True, dtype="float64", seed=0)
    x, state = arguments(layer, 9, 4)
    y, _, tape = layer.forward(x, state)
    dy = like([y])[0]
    whole = tape.backward(dy)

    sparse_y, _, sparse = layer.forward(x, state, recompute=4)
    assert_close("y", sparse_y, y, 1e-14)
    found = sparse.backward(dy)
    for name, want in whole.params.items():
        assert_close(name, found.params[name], want, 1e-12)

    one_way = rk.LSTM(3, 12, 2, proj_size=5, reverse=True, dtype="float64", seed=0)
    backward_y, _ = one_way(x)
    forward_y, _ = rk.LSTM(**{**one_way.config(), "reverse": False})(x[::-1].copy())
    assert_same_bits("reverse", backward_y[::-1].copy(), forward_y)

    merged = rk.LSTM(3, 12, proj_size=5, bidirectional=True, merge="sum", dtype="float64", seed=0)
    apart = rk.LSTM(**{**merged.config(), "merge": "concat"})
    merged_y, _, merged_tape = merged.forward(x)
    apart_y, _, apart_tape = apart.forward(x)
    assert_same_bits("merged", merged_y, apart_y[..., :5] + apart_y[..., 5:])
    dy = like([merged_y])[0]
    wanted = apart_tape.backward(np.concatenate([dy, dy], axis=-1))
    for name, got in merged_tape.backward(dy).params.items():
        assert_close(name, got, wanted.params[name], 1e-12)


def test_rows_that_begin_anew() -> None:
    """Enough of them to be computed some at a time."""
    layer = rk.LSTM(3, 12, 2, proj_size=5, dtype="float64", seed=0)
    x, (h, c) = arguments(layer, 24, 40)
    resets = np.random.default_rng(3).random((24, 40)) < 0.5
    y, last, tape = layer.forward(x, (h, c), resets=resets)
    dy, dh, dc = like((y, *last))
    dx, dstate, grads = tape.backward(dy, (dh, dc))
    total = {name: np.zeros_like(g) for name, g in grads.items()}
    wanted = [np.zeros_like(a) for a in (y, x, h, c)]
    for row in range(40):
        own = slice(row, row + 1)
        ends = [0, *np.flatnonzero(resets[:, row]), 24]
        for begin, end in pairwise(ends):
            if begin == end:  # before the first step
                continue
            steps, first = slice(begin, end), begin == 0 and not resets[0, row]
            given: Any = (h[:, own].copy(), c[:, own].copy()) if first else None
            part, _, part_tape = layer.forward(x[steps, own].copy(), given)
            upstream: Any = (dh[:, own].copy(), dc[:, own].copy()) if end == 24 else None
            gradients = part_tape.backward(dy[steps, own].copy(), upstream)
            wanted[0][steps, own], wanted[1][steps, own] = part, gradients.x
            if first:
                wanted[2][:, own], wanted[3][:, own] = gradients.state
            for name, g in gradients.params.items():
                total[name] += g
    for got, want in zip((y, dx, *dstate), wanted, strict=True):
        assert_close("of the stretches", got, want, 1e-12)
    for name, want in total.items():
        assert_close(name, grads[name], want, 1e-12)


def test_what_a_tape_tells() -> None:
    layer = rk.LSTM(3, 12, proj_size=5, dtype="float64", seed=0)
    x, state = arguments(layer, 6, 2)
    y, _, tape = layer.forward(x, state, [6, 4])
    dy = like([y])[0]
    told = tape.backward(dy, state_gradients=True).steps
    assert told is not None
    (steps,) = told
    gates = np.concatenate(list(steps.gates.values()), axis=-1)
    after = np.concatenate([gates[1:], np.zeros((1, 2, 48))])
    live = live_steps(6, [6, 4])[..., None]
    assert_close("h", steps.h, (dy + after @ layer.params["weight_hh_l0"]) * live, 1e-12)
    assert steps.c is not None
    assert steps.c.shape == (6, 2, 12)
    (values,) = tape.gates()
    assert [a.shape for a in values.values()] == [(6, 2, 12)] * 4
