# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: all that is Python, over kernels in host memory, and on a GPU where one is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices
from rnnkern.devices import philox
from rnnkern.layers.parameters import undrawn

from support import reference
from support.compare import assert_close, assert_same_bits
from support.devices import (
    BATCH,
    HIDDEN,
    INPUTS,
    LENGTHS,
    STEPS,
    TOLERANCE,
    agree,
    agree_by_name,
    put,
    twins,
)
from support.layers import DTYPES, WITH_PRODUCT, as_layer_state, as_tuple, cast, make, random_state
from support.marks import live_steps
from support.reference import Array

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
@pytest.mark.parametrize("cell", WITH_PRODUCT)
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


@pytest.mark.parametrize("cell", WITH_PRODUCT)
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
@pytest.mark.parametrize("cell", WITH_PRODUCT)
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
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_dropout_draws_the_same_masks(cuda: devices.Cuda, cell: str, dtype: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 4, dropout=0.4, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(dtype)
    y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=2**63 + 5)
    got, _, got_tape = twin.forward(cuda.put(x), None, LENGTHS, dropout_key=2**63 + 5)
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


@pytest.mark.parametrize("first", [1, 7, 8, 30])
def test_random_numbers_from_a_place_on(first: int) -> None:
    want = philox.random(np, 5, 1, (99,))[first:][:12].reshape(4, 3)
    assert_same_bits("later ones", philox.random(np, 5, 1, (4, 3), first), want)
    on_cpu = devices.get_device("cpu").random(5, 1, (4, 3), first)
    assert_same_bits("those of the CPU", on_cpu, want)


@pytest.fixture
def calls(cuda: devices.Cuda, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which kernels are called, and with how many strands."""
    made: list[tuple[str, int]] = []

    def spied_call(*sizes: Any, **options: Any) -> Any:
        real = kernels.Call(*sizes, **options)

        def spy(name: str) -> Any:
            def call(strands: Any, *rest: Any) -> None:
                made.append((name, len(strands)))
                getattr(real, name)(strands, *rest)

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
@pytest.mark.parametrize("cell", WITH_PRODUCT)
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
@pytest.mark.parametrize("cell", WITH_PRODUCT)
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
    padded[~live_steps(STEPS, LENGTHS)] = 2**64 - 1
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
