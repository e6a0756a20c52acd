# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: all that is Python, over kernels in host memory, and on a GPU where one is."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices
from rnnkern.adder import Adder, Settings, Training
from rnnkern.cli import main
from rnnkern.devices import philox
from rnnkern.layers.parameters import undrawn

from support import emulation, reference
from support.compare import assert_close, assert_same_bits
from support.emulation import EmulatedCuda, StandIn
from support.layers import CELLS, DTYPES, as_layer_state, as_tuple, cast, make, random_state
from support.reference import Array

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 4, 7
LENGTHS = np.array([3, 6, 0, 1, 6])
TINY = Settings(digits=1, hidden=16, batch=32, steps=20, share=0.5)


def twins(cuda: devices.Cuda, cell: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A layer on the CPU and one on the device with the same parameters."""
    layer = make(cell, *sizes, **options)
    twin = type(layer)(**{**layer.config(), "device": "cuda"})
    move(cuda, layer, twin)
    return layer, twin


def move(cuda: devices.Cuda, source: Any, target: Any) -> None:
    """Give one model the parameters of another."""
    for name, p in source.params.items():
        target.params[name][...] = cuda.put(p)


def put(cuda: devices.Cuda, value: Any) -> Any:
    """An array, a state or None on the device."""
    if isinstance(value, tuple):
        return tuple(put(cuda, v) for v in value)
    return None if value is None else cuda.put(value)


def agree(cuda: devices.Cuda, what: str, got: Any, want: Any, tolerance: float) -> None:
    """An array of the device is within the tolerance of one of the CPU."""
    assert isinstance(got, cuda.xp.ndarray), f"{what} is {type(got)}"
    assert got.dtype == want.dtype
    assert_close(what, cuda.get(got), want, tolerance)


def agree_by_name(cuda: devices.Cuda, got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """The same for arrays by name."""
    assert list(got) == list(want)
    for name, array in want.items():
        agree(cuda, name, got[name], array, tolerance)


LAYERS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "bidirectional": True},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_agree_with_the_cpu(
    cuda: devices.Cuda, cell: str, dtype: str, options: dict[str, Any], ragged: bool
) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, dtype=dtype, seed=1, **options)
    random, tolerance = np.random.default_rng(0), TOLERANCE[dtype]
    shape = (BATCH, STEPS) if layer.batch_first else (STEPS, BATCH)
    x = random.standard_normal((*shape, INPUTS)).astype(dtype)
    dy = random.standard_normal((*shape, HIDDEN * layer.num_directions)).astype(dtype)
    states = (layer.num_layers * layer.num_directions, BATCH, HIDDEN)
    first = as_layer_state(cast(random_state(cell, states, 1), dtype))
    dlast = as_layer_state(cast(random_state(cell, states, 2), dtype))
    lengths = LENGTHS if ragged else None

    y, last = layer(x, first, lengths)
    got, got_last = twin(cuda.put(x), put(cuda, first), lengths)
    again, _, got_tape = twin.forward(cuda.put(x), put(cuda, first), lengths)
    agree(cuda, "y", got, y, tolerance)
    assert_same_bits("y of inference and of training", cuda.get(got), cuda.get(again))
    for name, a, b in zip("hc", as_tuple(got_last), as_tuple(last), strict=False):
        agree(cuda, name, a, b, tolerance)

    _, _, tape = layer.forward(x, first, lengths)
    dx, dfirst, grads = tape.backward(dy, dlast)
    got_dx, got_dfirst, got_grads = got_tape.backward(cuda.put(dy), put(cuda, dlast))
    agree(cuda, "dx", got_dx, dx, tolerance)
    for name, a, b in zip("hc", as_tuple(got_dfirst), as_tuple(dfirst), strict=False):
        agree(cuda, f"d{name}_0", a, b, tolerance)
    agree_by_name(cuda, got_grads, grads, tolerance)
    for got_gates, gates in zip(got_tape.gates(), tape.gates(), strict=True):
        agree_by_name(cuda, got_gates, gates, tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_layers_agree_with_the_reference(cuda: devices.Cuda, cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2, bidirectional=True)
    random = np.random.default_rng(0)
    x = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    dy = random.standard_normal((STEPS, BATCH, 2 * HIDDEN)).astype(np.float32)
    oracle = reference.Tape(cell, layer.params, x, None, LENGTHS)
    y, _, tape = twin.forward(cuda.put(x), None, LENGTHS)
    _, _, grads = tape.backward(cuda.put(dy))
    assert_close("y", cuda.get(y), oracle.y, 1e-5)
    for name, want in oracle.backward(dy)[2].items():
        assert_close(name, cuda.get(grads[name]), want, 1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
@pytest.mark.parametrize("cell", CELLS)
def test_tokens(cuda: devices.Cuda, cell: str, dtype: Any) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, bidirectional=True)
    x = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH)).astype(dtype)
    y, _, tape = layer.forward(x, None, LENGTHS)
    got, _, got_tape = twin.forward(cuda.put(x), None, LENGTHS)
    agree(cuda, "y", got, y, 1e-5)
    dx, _, grads = got_tape.backward(cuda.put(y))
    assert dx is None
    agree_by_name(cuda, grads, tape.backward(y)[2])


def test_tokens_out_of_range_count_as_the_nearest(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "lstm", INPUTS, HIDDEN)
    x = np.array([[-3, INPUTS], [0, 2**40]])
    agree(cuda, "y", twin(cuda.put(x))[0], layer(np.clip(x, 0, INPUTS - 1))[0], 1e-5)


def test_unbatched_and_out(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "lstm", INPUTS, HIDDEN, 2, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((STEPS, INPUTS), dtype=np.float32)
    y, (h, _) = layer(x)
    out = cuda.xp.zeros((STEPS, 2 * HIDDEN), np.float32)
    got, (got_h, _) = twin(cuda.put(x), out=out)
    assert got is out
    agree(cuda, "y", got, y, 1e-5)
    agree(cuda, "h", got_h, h, 1e-5)
    _, _, tape = layer.forward(x)
    _, _, got_tape = twin.forward(cuda.put(x))
    agree(cuda, "dx", got_tape.backward(cuda.put(y))[0], tape.backward(y)[0], 1e-5)
    with pytest.raises(TypeError, match="out must be a CuPy array, got"):
        twin(cuda.put(x), out=y)
    square = cuda.xp.zeros((STEPS, HIDDEN), np.float32)
    _, layer_of_square = twins(cuda, "lstm", HIDDEN, HIDDEN)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        layer_of_square(square, out=square)


def test_strided_arrays_are_taken(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "gru_after", INPUTS, HIDDEN)
    wide = np.random.default_rng(0).standard_normal((2 * STEPS, BATCH, 2 * INPUTS), np.float32)
    for rows, columns in (
        (slice(None, None, 2), slice(0, INPUTS)),
        (slice(STEPS), slice(0, None, 2)),
    ):
        got, _ = twin(cuda.put(wide)[rows, :, columns])
        agree(cuda, "y", got, layer(wide[rows, :, columns])[0], 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_the_same_masks(cuda: devices.Cuda, cell: str, dtype: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 4, dropout=0.4, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(dtype)
    y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=2**63 + 5)
    got, _, got_tape = twin.forward(cuda.put(x), None, LENGTHS, dropout_key=2**63 + 5)
    for got_mask, mask in zip(got_tape._masks, tape._masks, strict=True):
        assert_same_bits("mask", cuda.get(got_mask), mask)
    agree(cuda, "y", got, y, TOLERANCE[dtype])
    dx, _, grads = tape.backward(y)
    got_dx, _, got_grads = got_tape.backward(cuda.put(y))
    agree(cuda, "dx", got_dx, dx, TOLERANCE[dtype])
    agree_by_name(cuda, got_grads, grads, TOLERANCE[dtype])


@pytest.mark.parametrize("key", [(0, 0), (2**64 - 1, 3), (0x9E3779B97F4A7C15, 2**63)])
@pytest.mark.parametrize("shape", [(1,), (7,), (8, 1), (3, 5, 11)])
def test_random_numbers_are_numpys(key: tuple[int, int], shape: tuple[int, ...]) -> None:
    bits = np.random.Philox(key=np.array(key, np.uint64))
    want = np.random.Generator(bits).random(shape, dtype=np.float32)
    assert_same_bits("random", philox.random(np, *key, shape), want)


@pytest.fixture
def calls(cuda: devices.Cuda, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which kernels are called, and with how many passes."""
    made: list[tuple[str, int]] = []

    def spied_call(*sizes: Any, **options: Any) -> Any:
        real = kernels.Call(*sizes, **options)

        def spy(name: str) -> Any:
            def call(passes: Any, *rest: Any) -> None:
                made.append((name, len(passes)))
                getattr(real, name)(passes, *rest)

            return call

        numbers = ("live", "forward_workspace", "backward_workspace")
        return SimpleNamespace(
            **{name: spy(name) for name in ("forward", "backward")},
            **{name: getattr(real, name) for name in numbers},
        )

    kernels = cuda.kernels
    spied = SimpleNamespace(
        **{name: getattr(kernels, name) for name in dir(kernels) if name[0] != "_"}
    )
    spied.Call = spied_call
    monkeypatch.setattr(cuda, "kernels", spied)
    return made


def test_directions_go_together(cuda: devices.Cuda, calls: list[tuple[str, int]]) -> None:
    _, twin = twins(cuda, "lstm", INPUTS, HIDDEN, 3, bidirectional=True)
    x = cuda.xp.zeros((STEPS, BATCH, INPUTS), np.float32)
    y, _, tape = twin.forward(x)
    tape.backward(y)
    assert calls == [("forward", 2)] * 3 + [("backward", 2)] * 3


def test_stacked_layers_go_together(cuda: devices.Cuda, calls: list[tuple[str, int]]) -> None:
    _, twin = twins(cuda, "lstm", INPUTS, HIDDEN, 5, dropout=0.5)
    x = cuda.xp.zeros((STEPS, BATCH, INPUTS), np.float32)
    twin(x)
    size = (devices.LayerSpec("lstm", INPUTS, HIDDEN, 5), STEPS, BATCH)
    wanted = cuda.kernels.layers_per_launch(*size, False)
    assert len(wanted) < 5
    assert [count for _, count in calls] == wanted
    calls.clear()
    y, _, tape = twin.forward(x, dropout_key=0)
    tape.backward(y)
    backward = cuda.kernels.layers_per_launch(*size, True)
    assert len(backward) < 5
    assert calls == [("forward", n) for n in wanted] + [("backward", n) for n in backward[::-1]]


@pytest.mark.parametrize("kind", ["full", "ragged", "tokens"])
@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@pytest.mark.parametrize("cell", CELLS)
def test_stacked_layers_agree_with_the_reference(
    cuda: devices.Cuda, cell: str, layers: int, kind: str
) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, layers)
    random = np.random.default_rng(0)
    x: Array = random.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    if kind == "tokens":
        x = random.integers(0, INPUTS, (STEPS, BATCH))
    dy = random.standard_normal((STEPS, BATCH, HIDDEN)).astype(np.float32)
    first = cast(random_state(cell, (layers, BATCH, HIDDEN), 1), "float32")
    dlast = cast(random_state(cell, (layers, BATCH, HIDDEN), 2), "float32")
    lengths = LENGTHS if kind == "ragged" else None
    y, last, tape = twin.forward(cuda.put(x), put(cuda, as_layer_state(first)), lengths)
    dx, dfirst, grads = tape.backward(cuda.put(dy), put(cuda, as_layer_state(dlast)))
    oracle = reference.Tape(cell, layer.params, x, first, lengths)
    want_dx, want_dfirst, want_grads = oracle.backward(dy, dlast)
    assert_close("y", cuda.get(y), oracle.y, 1e-5)
    assert (dx is None) == (want_dx is None)
    if want_dx is not None:
        assert_close("dx", cuda.get(dx), want_dx, 1e-5)
    for name, got, want in (
        *zip("hc", as_tuple(last), oracle.state, strict=False),
        *zip(("dh", "dc"), as_tuple(dfirst), want_dfirst, strict=False),
    ):
        assert_close(name, cuda.get(got), want, 1e-5)
    assert grads.keys() == want_grads.keys()
    for name, want in want_grads.items():
        assert_close(name, cuda.get(grads[name]), want, 1e-5)


def test_what_is_asked_of_a_gpu_reaches_it(cuda: devices.Cuda) -> None:
    for compute in ("tfloat32", "bfloat16", "float16", None):
        layer = rk.GRU(INPUTS, 64, 3, device="cuda", compute=compute)
        assert (layer.device, layer.compute) == ("cuda", compute)
        for training in (False, True):
            plan = layer.plan(10, 4, training=training)
            assert isinstance(plan["reason"], str)
            assert plan["workspace_bytes"] >= 0
            assert sum(plan["layers_per_launch"]) == 3
    with pytest.raises(
        ValueError, match="compute='float16' needs dtype='float32', got dtype='float64'"
    ):
        rk.LSTM(2, 3, device="cuda", compute="float16", dtype="float64")
    with pytest.raises(ValueError, match="compute must be one of None, 'tfloat32'"):
        rk.LSTM(2, 3, device="cuda", compute="int8")


def test_arrays_must_be_where_the_layer_is(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "lstm", INPUTS, HIDDEN)
    x = np.zeros((STEPS, BATCH, INPUTS), np.float32)
    h = np.zeros((1, BATCH, HIDDEN), np.float32)
    there = "must be on the GPU for device='cuda', got .* in host memory: cupy.asarray copies"
    here = "must be in host memory, got .* on the GPU: cupy.asnumpy copies"
    _, _, tape = twin.forward(cuda.put(x))
    calls: dict[str, Callable[[], Any]] = {
        "x": lambda: twin(x),
        r"state\['h'\]": lambda: twin(cuda.put(x), (h, h)),
        "dy": lambda: tape.backward(x),
        r"params\['bias_l0'\]": lambda: twin.params.__setitem__("bias_l0", layer.params["bias_l0"]),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} {there}"):
            call()
    with pytest.raises(TypeError, match=f"x {there}"):
        twin([[[0.0] * INPUTS]])
    with pytest.raises(TypeError, match=f"x {here}"):
        layer(cuda.put(x))
    with pytest.raises(TypeError, match=f"lengths {here}"):
        twin(cuda.put(x), None, cuda.put(LENGTHS))
    with pytest.raises(TypeError, match=f"x {there}"):
        rk.Linear(INPUTS, 2, device="cuda")(x)
    with pytest.raises(TypeError, match=f"targets {there}"):
        rk.softmax_cross_entropy(cuda.put(x), np.zeros((STEPS, BATCH), np.int64))


def test_state_gradients_are_refused(cuda: devices.Cuda) -> None:
    _, _, tape = rk.LSTM(2, 3, device="cuda").forward(cuda.xp.zeros((2, 1, 2), np.float32))
    with pytest.raises(ValueError, match="state_gradients needs device='cpu', got"):
        tape.backward(state_gradients=True)


def test_linear(cuda: devices.Cuda) -> None:
    for bias in (True, False):
        layer, twin = rk.Linear(5, 3, bias=bias), rk.Linear(5, 3, bias=bias, device="cuda")
        for shape in ((2, 4, 5), (0, 5), (3, 0, 5)):
            move(cuda, layer, twin)
            x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            y, tape = layer.forward(x)
            got, got_tape = twin.forward(cuda.put(x))
            agree(cuda, "y", got, y, 1e-5)
            frozen = twin.freeze()
            move(cuda, rk.Linear(5, 3, bias=bias), twin)
            agree(cuda, "frozen y", frozen(cuda.put(x)), y, 1e-5)
            dx, grads = tape.backward(y)
            got_dx, got_grads = got_tape.backward(cuda.put(y))
            agree(cuda, "dx", got_dx, dx, 1e-5)
            agree_by_name(cuda, got_grads, grads)


def test_loss(cuda: devices.Cuda) -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((4, 3, 5), dtype=np.float32)
    targets = random.integers(0, 5, (4, 3))
    some = random.random((4, 3)) < 0.5
    for mask in (None, some, np.zeros((4, 3), bool)):
        loss, dlogits = rk.softmax_cross_entropy(logits, targets, mask)
        got, got_dlogits = rk.softmax_cross_entropy(*put(cuda, (logits, targets, mask)))
        assert float(got) == pytest.approx(loss, rel=1e-5)
        agree(cuda, "dlogits", got_dlogits, dlogits, 1e-5)
    targets[1, 1] = 5
    loss, _ = rk.softmax_cross_entropy(*put(cuda, (logits, targets)))
    assert np.isnan(float(loss))
    loss, _ = rk.softmax_cross_entropy(*put(cuda, (logits, targets, targets < 5)))
    assert np.isfinite(float(loss))


def test_clipping(cuda: devices.Cuda) -> None:
    def grads(scale: float) -> dict[str, Array]:
        random = np.random.default_rng(0)
        return {
            name: scale * random.standard_normal((3, 4), dtype=np.float32) for name in ("a", "b")
        }

    for scale in (1e-3, 1.0, 1e30, np.inf, np.nan):
        with np.errstate(invalid="ignore"):
            here = grads(scale)
            there = {name: cuda.put(g) for name, g in here.items()}
            norm = rk.clip_grad_norm(here, 0.5)
            got = rk.clip_grad_norm(there, 0.5)
        np.testing.assert_allclose(float(got), norm, rtol=1e-6)
        for name, g in here.items():
            np.testing.assert_allclose(cuda.get(there[name]), g, rtol=1e-5)
    here = grads(1.0)
    there = {name: cuda.put(g) for name, g in here.items()}
    rk.clip_grad_value(here, 0.3)
    rk.clip_grad_value(there, 0.3)
    for name, g in here.items():
        assert_same_bits(name, cuda.get(there[name]), g)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (rk.SGD, {"lr": 0.1}),
        (rk.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (rk.Adam, {"lr": 0.1}),
        (rk.Adam, {"lr": 0.1, "weight_decay": 0.01}),
    ],
)
def test_optimizers(cuda: devices.Cuda, kind: Any, options: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    params: dict[str, Array] = {
        "a": random.standard_normal((7, 3)),
        "b": random.standard_normal(5, np.float32),
    }
    there = {name: cuda.put(p) for name, p in params.items()}
    optimizer, twin = kind(params, **options), kind(there, **options)
    for step in range(6):
        grads = {
            name: np.random.default_rng(step).standard_normal(p.shape).astype(p.dtype)
            for name, p in params.items()
        }
        optimizer.step(grads)
        twin.step({name: cuda.put(g) for name, g in grads.items()})
        if step == 3:  # to the other device and back
            state = {name: devices.to_host(a) for name, a in twin.state_dict().items()}
            twin = kind(there, **options)
            twin.load_state_dict(state)
    agree_by_name(cuda, there, params)


def seq2seq(cuda: devices.Cuda, **options: Any) -> tuple[rk.Seq2Seq, rk.Seq2Seq]:
    """A model on the CPU and one on the device with the same parameters."""
    sizes: Any = {"source_vocab": 6, "target_vocab": 5, "hidden_size": 8, "bos": 0, "eos": 1}
    model = rk.Seq2Seq(**sizes, **options, seed=3)
    twin = rk.Seq2Seq(**sizes, **options, seed=4, device="cuda")
    for p in model.params.values():
        p *= 3  # so that answers differ
    move(cuda, model, twin)
    return model, twin


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "num_layers": 2, "dropout": 0.3},
        {"cell": "GRU", "decoder_cell": "LSTM", "decoder_options": {"forget_bias": 1.0}},
        {"cell": "LSTM", "decoder_cell": "GRU", "decoder_options": {"reset": "after"}},
    ],
)
def test_seq2seq(cuda: devices.Cuda, options: dict[str, Any]) -> None:
    model, twin = seq2seq(cuda, **options)
    random = np.random.default_rng(0)
    source, target = random.integers(0, 6, (STEPS, BATCH)), random.integers(0, 5, (4, BATCH))
    logits, tape = model.forward(source, LENGTHS, target, dropout_key=7)
    got, got_tape = twin.forward(cuda.put(source), LENGTHS, cuda.put(target), dropout_key=7)
    agree(cuda, "logits", got, logits, 1e-5)
    agree_by_name(cuda, got_tape.backward(cuda.put(logits)), tape.backward(logits))

    for got_array, want in zip(
        twin.greedy(cuda.put(source), LENGTHS, 9), model.greedy(source, LENGTHS, 9), strict=True
    ):
        np.testing.assert_array_equal(cuda.get(got_array), want)
    for penalty in (0.0, 0.7):
        tokens, lengths, scores = model.beam(source, LENGTHS, 9, 3, penalty)
        got_tokens, got_lengths, got_scores = twin.beam(cuda.put(source), LENGTHS, 9, 3, penalty)
        np.testing.assert_array_equal(cuda.get(got_tokens), tokens)
        np.testing.assert_array_equal(cuda.get(got_lengths), lengths)
        np.testing.assert_allclose(cuda.get(got_scores), scores, rtol=1e-5)


@pytest.mark.usefixtures("no_looks")
def test_a_step_of_training_waits_for_nothing(cuda: devices.Cuda) -> None:
    layer = rk.LSTM(3, 8, 2, bidirectional=True, dropout=0.2, device="cuda")
    head = rk.Linear(16, 4, device="cuda")
    model = rk.Seq2Seq(4, 4, 8, bos=0, eos=1, device="cuda")
    x, tokens = put(cuda, (np.ones((STEPS, BATCH, 3), np.float32), np.ones((STEPS, BATCH), int)))
    for optimizer in (rk.Adam(layer.params), rk.SGD(layer.params, 0.1, momentum=0.9)):
        y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=1)
        logits, head_tape = head.forward(y)
        _, dlogits = rk.softmax_cross_entropy(logits, tokens, tokens > 0)
        dy, _ = head_tape.backward(dlogits)
        _, _, grads = tape.backward(dy)
        rk.clip_grad_norm(grads, 0.1)
        rk.clip_grad_value(grads, 0.1)
        optimizer.step(grads)
    logits, model_tape = model.forward(tokens, None, tokens)
    model_tape.backward(logits)
    stream = rk.GRU(3, 8, 2, device="cuda").stream(BATCH)
    stream.block(x)
    stream.step(x[0])
    stream.reset(tokens[0] > 0)


@pytest.mark.parametrize("cell", CELLS)
def test_streams(cuda: devices.Cuda, cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2)
    here, there = layer.stream(BATCH), twin.stream(BATCH)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS), dtype=np.float32)
    out = cuda.xp.zeros((BATCH, HIDDEN), np.float32)
    for x_t in x:
        assert there.step(cuda.put(x_t), out=out) is out
        agree(cuda, "step", out, here.step(x_t), 1e-5)
    mask = np.array([True, False, False, True, False])
    here.reset(mask)
    there.reset(cuda.put(mask))
    agree(cuda, "block", there.block(cuda.put(x)), here.block(x), 1e-5)
    tokens = np.arange(BATCH) % INPUTS
    agree(cuda, "tokens", there.step(cuda.put(tokens)), here.step(tokens), 1e-5)
    for a, b in zip(as_tuple(there.state), as_tuple(here.state), strict=True):
        agree(cuda, "state", a, b, 1e-5)
    there.reset()
    there.state = put(cuda, here.state)
    agree(cuda, "again", there.block(cuda.put(x)), here.block(x), 1e-5)
    with pytest.raises(ValueError, match="weights='bfloat16' needs device='cpu', got"):
        twin.stream(weights="bfloat16")


def test_files_move_models(cuda: devices.Cuda, tmp_path: Path) -> None:
    model, twin = seq2seq(cuda, bidirectional=True)
    layer = rk.LSTM(2, 3, device="cuda", compute="float16")
    for path, saved in (("here", model), ("there", twin), ("head", rk.Linear(2, 2))):
        rk.save(tmp_path / path, saved)
    assert (tmp_path / "here").stat().st_size == (tmp_path / "there").stat().st_size
    back = rk.load(tmp_path / "there")
    assert (back.device, back.encoder.device, back.output.device) == ("cpu", "cpu", "cpu")
    for name, p in model.params.items():
        assert_same_bits(name, back.params[name], p)
    moved = rk.load(tmp_path / "here", device="cuda")
    assert moved.device == "cuda"
    agree_by_name(cuda, moved.params, model.params, 0.0)
    assert rk.load(tmp_path / "head", device="cuda").device == "cuda"
    rk.save(tmp_path / "half", layer)
    assert rk.load(tmp_path / "half", device="cuda").compute == "float16"
    with pytest.raises(rk.FormatError, match="half: holds a LSTM that cannot be built: compute"):
        rk.load(tmp_path / "half")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_adder_learns_the_same(cuda: devices.Cuda, bidirectional: bool) -> None:
    settings = Settings(**{**vars(TINY), "bidirectional": bidirectional})
    here, there = Training(Adder(settings)), Training(Adder(settings, device="cuda"))
    for _ in range(5):
        here.advance()
        there.advance()
        assert there.loss == pytest.approx(here.loss, rel=1e-5)
    agree_by_name(cuda, there.adder.model.params, here.adder.model.params)
    # The untrained answers hang on the last digit of a logit here and there.
    pairs = here.adder.pairs.held_out(50)
    assert np.mean(there.adder.add(*pairs) == here.adder.add(*pairs)) > 0.9


def test_the_command_line(
    cuda: devices.Cuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--digits", "1", "--hidden", "16", "--batch", "32", "--share", "0.5", "--steps", "3"]
    assert main(["adder", "train", *tiny, "--device", "cuda"]) == 0
    assert main(["adder", "train", "--resume", "--device", "cuda"]) == 0
    assert main(["adder", "evaluate", "--pairs", "20", "--device", "cuda"]) == 0
    capsys.readouterr()
    for name in ("cuda", "cpu"):
        assert main(["adder", "ask", "3+4", "--device", name]) == 0
    there, here = capsys.readouterr().out.split()
    assert there == here
    assert "device must be one of 'cpu', 'cuda', got 'tpu'" in refused(capsys, "--device", "tpu")


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command line says to a question that it does not take."""
    assert main(["adder", "ask", "3+4", *options]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("kernels", "cupy", "says"),
    [
        (None, None, "built without its CUDA kernels; install it anew"),
        (SimpleNamespace(), None, r"CuPy cannot be imported .*pip install 'rnnkern\[cuda13\]'"),
        (SimpleNamespace(devices=list), SimpleNamespace(), "there is no CUDA device; nvidia-smi"),
    ],
)
def test_without_a_gpu(
    kernels: Any,
    cupy: Any,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(devices.base._ready, "cuda", raising=False)
    # A module that is None in sys.modules counts as not there.
    monkeypatch.setitem(sys.modules, "rnnkern._cuda", kernels)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for make_one in (rk.LSTM, rk.Linear):
        with pytest.raises(ValueError, match=f"device='cuda' cannot be used: .*{says}"):
            make_one(2, 3, device="cuda")
    assert "device='cuda' cannot be used: " in rk.info()["cuda"]
    assert "device='cuda' cannot be used: " in refused(capsys, "--device", "cuda")


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer() -> Any:
        raise RuntimeError("driver version is insufficient")

    monkeypatch.delitem(devices.base._ready, "cuda", raising=False)
    monkeypatch.setitem(sys.modules, "rnnkern._cuda", SimpleNamespace(devices=no_answer))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    with pytest.raises(ValueError, match=r"does not answer .driver version is insufficient"):
        rk.LSTM(2, 3, device="cuda")


def test_the_memory_of_a_tensor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is told which stream reads it; a stand-in, for there is no GPU to hold a tensor."""

    class Tensor(emulation.DeviceArray):
        device: Any = "cuda:0"
        recorded: ClassVar[list[Any]] = []

        def record_stream(self, stream: Any) -> None:
            self.recorded.append(stream)

    def stream(pointer: int, device: Any) -> tuple[int, Any]:
        return (pointer, device)

    torch = SimpleNamespace(Tensor=Tensor, cuda=SimpleNamespace(ExternalStream=stream))
    monkeypatch.setitem(sys.modules, "torch", torch)
    cuda = EmulatedCuda(StandIn())
    monkeypatch.setattr(cuda.xp, "ndarray", SimpleNamespace)  # a tensor is no array of CuPy's
    monkeypatch.setattr(cuda.xp, "from_dlpack", lambda a: a, raising=False)
    monkeypatch.setattr(cuda, "_stream", lambda: 77)
    x = np.zeros((2, 3), np.float32).view(Tensor)
    assert cuda.array("x", x) is x
    assert Tensor.recorded == [(77, "cuda:0")]


def test_info_names_the_device(cuda: devices.Cuda) -> None:
    assert rk.info()["cuda"].startswith("yes (")
    assert re.search(r"compute capability \d+\.\d+, \d+ multiproc.*GiB", rk.info()["cuda"])


def test_cupy_has_what_stands_for_it() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    missing = [name for name in emulation.FUNCTIONS if not hasattr(cupy, name)]
    assert not missing


# --- Parameters and odd arguments -----------------------------------------------------------------


def test_parameters_are_written_in_place(cuda: devices.Cuda, no_looks: None) -> None:
    layer, twin = twins(cuda, "gru_after", INPUTS, HIDDEN)
    arrays = dict(twin.params)
    values = {name: cuda.put(2 * p) for name, p in layer.params.items()}
    twin.params["bias_l0"] = values["bias_l0"]
    twin.params.update(values)
    twin.params["weight_hh_l0"] -= cuda.put(layer.params["weight_hh_l0"])
    for name, array in arrays.items():
        assert twin.params[name] is array
    with pytest.raises(ValueError, match=r"params\['bias_l0'\] must have shape"):
        twin.params["bias_l0"] = values["bias_hn_l0"]
    with pytest.raises(TypeError, match="names are fixed"):
        del twin.params["bias_l0"]


def test_parameters_can_be_copied(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "gru_after", INPUTS, HIDDEN)
    assert twin.params == layer.params
    for copied in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert copied.params == layer.params
        assert copied._device is cuda
        assert isinstance(copied.params["bias_l0"], cuda.xp.ndarray)
        copied.params["bias_l0"] += 1
        assert twin.params == layer.params
    kept = twin.params.copy()
    twin.params["bias_l0"][...] = 0
    twin.params.update(kept)
    assert twin.params == layer.params
    bare = undrawn(type(twin), twin.config())
    bare.params.fill(layer.params)  # from the host, as a file's
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS), np.float32)
    assert_same_bits("y", cuda.get(bare(cuda.put(x))[0]), cuda.get(twin(cuda.put(x))[0]))


@pytest.mark.parametrize(("steps", "batch"), [(0, BATCH), (STEPS, 0)])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_compute(cuda: devices.Cuda, cell: str, steps: int, batch: int) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2)
    twin = type(layer)(**{**layer.config(), "device": "cuda"})
    state = cast(random_state(cell, (2, batch, HIDDEN)), "float32")
    given = put(cuda, as_layer_state(state))
    for x in (np.zeros((steps, batch, INPUTS), np.float32), np.zeros((steps, batch), np.int64)):
        y, last, tape = twin.forward(cuda.put(x), given)
        assert y.shape == (steps, batch, HIDDEN)
        for got, want in zip(as_tuple(last), state, strict=True):
            assert_same_bits("state", cuda.get(got), want)
        dx, _, grads = tape.backward(y, given)
        assert (dx is None) if x.ndim == 2 else (dx.shape == x.shape)
        assert not any(cuda.get(g).any() for g in grads.values())
        assert twin.stream(BATCH).block(cuda.xp.zeros((0, BATCH, INPUTS), np.float32)).shape[0] == 0


def test_padding_of_unsigned_tokens(cuda: devices.Cuda) -> None:
    _, twin = twins(cuda, "lstm", INPUTS, HIDDEN)
    tokens = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))
    padded = tokens.astype(np.uint64)
    padded[np.arange(STEPS)[:, None] >= LENGTHS] = 2**64 - 1
    got, want = (twin(cuda.put(t), None, LENGTHS)[0] for t in (padded, tokens))
    assert_same_bits("y", cuda.get(got), cuda.get(want))


def test_half_of_a_state(cuda: devices.Cuda) -> None:
    layer, twin = twins(cuda, "lstm", INPUTS, HIDDEN)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS), np.float32)
    h = np.ones((1, BATCH, HIDDEN), np.float32)
    _, _, tape = layer.forward(x, (h, None))
    _, _, twin_tape = twin.forward(cuda.put(x), (cuda.put(h), None))
    want, got = tape.backward(dstate=(None, h)), twin_tape.backward(dstate=(None, cuda.put(h)))
    agree(cuda, "dx", got[0], want[0], 1e-5)
    agree_by_name(cuda, got[2], want[2])


def test_optimizers_take_several_layers(cuda: devices.Cuda, no_looks: None) -> None:
    twin, head = rk.LSTM(INPUTS, HIDDEN, device="cuda"), rk.Linear(HIDDEN, 2, device="cuda")
    owners: dict[str, Any] = {"lstm": twin, "head": head}
    grads = {
        part: {name: cuda.xp.ones(p.shape, p.dtype) for name, p in owner.params.items()}
        for part, owner in owners.items()
    }
    rk.clip_grad_norm(grads, 1.0)
    rk.clip_grad_value(grads, 1.0)
    for optimizer in (rk.Adam(owners), rk.SGD(owners, 0.1, momentum=0.9)):
        optimizer.step(grads)
        optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(TypeError, match=r"grads\['head\.bias'\] must be on the GPU"):
        optimizer.step({**grads, "head": {**grads["head"], "bias": np.ones(2, np.float32)}})
