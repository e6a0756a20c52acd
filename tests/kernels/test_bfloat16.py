# SPDX-License-Identifier: Apache-2.0
"""compute="bfloat16": the operands of matrix products are rounded, and nothing else is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.adder import Settings
from rnnkern.devices import LayerSpec
from rnnkern.layers.stream import _SHARED_STEP_FLOPS

from support import reference
from support.adding import share_learnt
from support.compare import assert_close, assert_same_bits, rounded
from support.layers import (
    CELLS,
    CLASSES,
    as_layer_state,
    as_tuple,
    check_against_reference,
    draw,
    make,
    random_state,
    run_all,
)
from support.needs import ISAS
from support.threads import check_same_bits

# Norm-wise relative errors. Against exact operands; and against operands rounded as they are, over
# one step and over many of stacked layers: there only float32 sums differ, and now and then, with
# them, the side to which a number is rounded. (One kind of operand left unrounded makes about
# 1e-3 or more in one step.)
NEAR, ONE_STEP, STACKED = 2e-2, 5e-4, 1e-3

# steps, batch, inputs, hidden: fewer rows than tiles of matrix registers want and more, odd depths,
# depths beyond one of those registers, several panels and a part of one, one unit.
SIZES = [
    (7, 5, 5, 17),
    (4, 33, 16, 64),
    (30, 2, 1, 3),
    (3, 17, 35, 100),
    (40, 20, 6, 9),
    (5, 1, 3, 1),
]
DEEP = (1, 17, 1100, 5)  # more inputs than one block of a product takes


def check_one_step(cell: str, size: tuple[int, int, int, int]) -> None:
    _, batch, inputs, hidden = size
    layer = make(cell, inputs, hidden, compute="bfloat16")
    upstream: dict[str, Any] = {
        "state": random_state(cell, (1, batch, hidden)),
        "dy": draw(1, batch, hidden, seed=1),
        "tolerance": ONE_STEP,
    }
    with reference.rounded_operands():
        check_against_reference(layer, cell, draw(1, batch, inputs), **upstream)
        tokens = np.random.default_rng(0).integers(0, inputs, (1, batch))
        check_against_reference(layer, cell, tokens, **upstream)


def check_stacked(cell: str, size: tuple[int, int, int, int]) -> None:
    """Two layers, both directions, ragged; from numbers and from tokens."""
    steps, batch, inputs, hidden = size
    rng = np.random.default_rng(0)
    layer = make(cell, inputs, hidden, 2, bidirectional=True, compute="bfloat16")
    given: dict[str, Any] = {
        "state": random_state(cell, (4, batch, hidden)),
        "lengths": rng.integers(0, steps + 1, batch),
        "dy": rng.standard_normal((steps, batch, 2 * hidden)),
        "dstate": random_state(cell, (4, batch, hidden), seed=1),
    }
    x = draw(steps, batch, inputs)
    if hidden >= 64:  # in small layers too few errors meet to cancel
        check_against_reference(layer, cell, x, **given, tolerance=NEAR)
    with reference.rounded_operands():
        check_against_reference(layer, cell, x, **given, tolerance=STACKED)
        tokens = rng.integers(0, inputs, (steps, batch))
        check_against_reference(layer, cell, tokens, **given, tolerance=STACKED)


def check_threads(cell: str, size: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, hidden = size
    layer = make(cell, inputs, hidden, 2, bidirectional=True, dropout=0.3, compute="bfloat16")
    lengths = np.random.default_rng(4).integers(0, steps + 1, batch)
    x = draw(steps, batch, inputs)
    check_same_bits(lambda: run_all(layer, cell, x, lengths, key=3), threads=(2, 4), teams=())


def check_stream(cell: str) -> None:
    """Steps and blocks take rounded operands too."""
    layer = make(cell, 6, 33, 2, compute="bfloat16")
    for x in (draw(5, 3, 6), np.arange(15).reshape(5, 3) % 6):
        want, last = layer(x)
        steps, blocks = layer.stream(3), layer.stream(3)
        assert_close("steps", np.stack([steps.step(x_t) for x_t in x]), want, STACKED)
        for got, state in zip(as_tuple(steps.state), as_tuple(last), strict=True):
            assert_close("state", got, state, STACKED)
        assert_same_bits("block", blocks.block(x), want)


def check_steps(cell: str) -> None:
    """A step has the bits of a block of one, whatever the sizes and who takes it."""
    sizes = [(1, 6, 33), (3, 1, 1), (15, 35, 8), (16, 35, 64), (19, 300, 9)]
    for batch, inputs, hidden in sizes:
        layer = make(cell, inputs, hidden, 2, compute="bfloat16")
        dense = draw(4, batch, inputs)
        tokens = np.random.default_rng(0).integers(0, inputs, (4, batch))
        for x in (dense, tokens):
            steps, blocks = layer.stream(batch), layer.stream(batch)
            assert steps._stepper is not None
            for x_t in x:
                assert_same_bits(f"{batch}", steps.step(x_t), blocks.block(x_t[None])[0])
            for got, want in zip(as_tuple(steps.state), as_tuple(blocks.state), strict=True):
                assert_same_bits("state", got, want)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set(isa: str, cell: str) -> None:
    for size in SIZES:
        check_one_step(cell, size)
        check_stacked(cell, size)
    for size in (SIZES[0], SIZES[3], SIZES[4]):
        check_threads(cell, size)
    check_one_step(cell, DEEP)
    check_stream(cell)
    check_steps(cell)
    assert _core.isa() == isa


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("cell", CELLS)
def test_threads_change_no_bit_of_a_large_step(isa: str, cell: str) -> None:
    """Of so many flops that a second thread joins in, if there is one."""
    for compute, batch in ((None, 1), ("bfloat16", 1), ("bfloat16", 16)):
        gates = len(CLASSES[cell][0].gates)
        hidden = math.isqrt(int(_SHARED_STEP_FLOPS) // (2 * batch * gates)) + 1
        layer = make(cell, 40, hidden, compute=compute)
        x = draw(3, batch, 40)

        def results(layer: Any = layer, x: Any = x, batch: int = batch) -> list[Any]:
            stream = layer.stream(batch)
            return [*(stream.step(x_t) for x_t in x), *as_tuple(stream.state)]

        check_same_bits(results, threads=[2], teams=())


@pytest.mark.parametrize("dtype", ["float64", np.float64])
def test_float64_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="compute='bfloat16' needs dtype='float32', got dtype='fl"):
        rk.LSTM(2, 3, dtype=dtype, compute="bfloat16")


def test_the_kernels_refuse_what_they_do_not_have() -> None:
    w = np.zeros((3, 3))
    for compute, says in (
        ("bfloat16", "compute 'bfloat16' or 'int8' needs float32 weights, got float64"),
        ("int8", "compute 'bfloat16' or 'int8' needs float32 weights, got float64"),
        ("int4", "compute must be None, 'bfloat16' or 'int8', got 'int4'"),
    ):
        with pytest.raises(ValueError, match=says):
            _core.Network(LayerSpec("rnn_tanh", 3, 3, compute=compute), [(w, w, None, None)])


def test_the_plan_and_info_tell_what_multiplies() -> None:
    exact, narrow = (make("lstm", 4, 8, compute=compute) for compute in (None, "bfloat16"))
    assert exact.plan(3, 2)["product"] == "float32"
    assert narrow.plan(3, 2)["product"] == _core.bfloat16_product()
    assert rk.info()["bfloat16 products"] == _core.bfloat16_product()
    assert make("lstm", 4, 8, dtype="float64").plan(3, 2)["product"] == "float64"


@pytest.mark.parametrize("cell", CELLS)
def test_only_operands_are_rounded(cell: str) -> None:
    """Where all operands have 8 bits already, float32's own products are the same numbers."""
    exact, narrow = (make(cell, 8, 16, compute=compute) for compute in (None, "bfloat16"))
    for layer in (exact, narrow):
        for name, p in layer.params.items():
            if name.startswith("weight_"):
                p[...] = rounded(p)
    state = tuple(rounded(s) for s in random_state(cell, (1, 3, 16)))
    x = rounded(draw(1, 3, 8))
    plain = reference.Tape(cell, exact.params, x, state)
    with reference.rounded_operands():
        same = np.array_equal(reference.Tape(cell, exact.params, x, state).y, plain.y)
    for got, want in zip(
        (narrow(x, as_layer_state(state))[0], *as_tuple(narrow(x, as_layer_state(state))[1])),
        (exact(x, as_layer_state(state))[0], *as_tuple(exact(x, as_layer_state(state))[1])),
        strict=True,
    ):
        # Where a gate times h is an operand, that one has more bits.
        assert_close("state", got, want, 1e-6 if same else NEAR)


@pytest.mark.parametrize("rows", [1, 40])
def test_operands_are_rounded_to_the_nearest_ties_to_even(rows: int) -> None:
    """A layer that gives its input back, rounded: half way between two bfloat16 above all."""
    layer = rk.RNN(16, 16, nonlinearity="relu", compute="bfloat16")
    for name, array in layer.params.items():
        array[...] = np.eye(16) if name == "weight_ih_l0" else 0.0
    step = np.float32(2.0**-7)  # between bfloat16 of 1 to 2
    places = np.arange(16, dtype=np.float32)
    below, above, even = places, places + 1, places + places % 2
    for share, nearest in ((0.49, below), (0.51, above), (0.5, even)):
        x = np.broadcast_to(1 + (places + np.float32(share)) * step, (3, rows, 16))
        y, _ = layer(x.astype(np.float32))
        np.testing.assert_array_equal(y, np.broadcast_to(1 + nearest * step, y.shape))


def test_numbers_that_are_not_finite_stay_so() -> None:
    layer = make("rnn_relu", 1, 3, compute="bfloat16")
    layer.params["weight_ih_l0"][:, 0] = [np.inf, np.nan, np.finfo(np.float32).max]
    y, _ = layer(np.ones((1, 1, 1), np.float32))
    assert np.isposinf(y[0, 0, 0])
    assert np.isnan(y[0, 0, 1])
    assert np.isposinf(y[0, 0, 2])  # rounds beyond the largest number


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    layer = make("gru_after", 3, 5, compute="bfloat16")
    model = rk.Seq2Seq(4, 4, 5, bos=0, eos=1, compute="bfloat16", seed=0)
    for k, saved in enumerate((layer, model)):
        rk.save(tmp_path / f"{k}.safetensors", saved)
        loaded = rk.load(tmp_path / f"{k}.safetensors")
        assert loaded.config() == saved.config()
        assert loaded.config()["compute"] == "bfloat16"
    assert model.encoder.compute == model.decoder.compute == "bfloat16"
    x = draw(4, 2, 3)
    assert_same_bits("y", rk.load(tmp_path / "0.safetensors")(x)[0], layer(x)[0])


def test_the_adder_learns() -> None:
    """As in float32, of which test_adder.py asks as much."""
    settings = Settings(
        digits=1, hidden=32, batch=64, steps=1500, share=0.9, lr=5e-3, compute="bfloat16"
    )
    assert share_learnt(settings) > 0.9
