# SPDX-License-Identifier: Apache-2.0
"""Layers that run back alone, and what two directions give together."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.devices import MERGES

from support.compare import assert_close, assert_same_bits
from support.differences import slope
from support.layers import (
    CELLS,
    DTYPES,
    TOLERANCE,
    check_against_reference,
    make,
    random_state,
)
from support.threads import using_threads

STEPS, BATCH, INPUTS = 9, 5, 4
WAYS: dict[str, dict[str, Any]] = {
    "reverse": {"reverse": True},
    **{m: {"bidirectional": True, "merge": m} for m in MERGES[1:]},
}
LENGTHS = np.array([STEPS, 0, 3, STEPS, 1])
ways = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def _x(dtype: str = "float32") -> Any:
    return np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@ways
def test_against_the_reference(options: dict[str, Any], cell: str, dtype: str) -> None:
    layer = make(cell, INPUTS, 7, 2, dtype=dtype, **options)
    shape = (2 * layer.num_directions, BATCH, 7)
    dy = np.random.default_rng(1).standard_normal((STEPS, BATCH, layer.output_size))
    for lengths in (None, LENGTHS):
        check_against_reference(
            layer,
            cell,
            _x(dtype),
            state=random_state(cell, shape),
            lengths=lengths,
            dy=dy,
            dstate=random_state(cell, shape, seed=2),
        )
    tokens = np.random.default_rng(2).integers(0, INPUTS, (STEPS, BATCH))
    check_against_reference(layer, cell, tokens, lengths=LENGTHS, dy=dy)


@ways
def test_threads_snapshots_and_batch_first(options: dict[str, Any]) -> None:
    layer, x = make("gru_after", INPUTS, 65, 2, **options), _x()
    want, state = layer(x, None, LENGTHS)
    with using_threads(1):
        assert_same_bits("one thread", layer(x, None, LENGTHS)[0], want)
    assert_same_bits("frozen", layer.freeze()(x, None, LENGTHS)[0], want)
    out = np.full_like(want, np.nan)
    layer(x, None, LENGTHS, out=out)
    assert_same_bits("out", out, want)
    turned = make("gru_after", INPUTS, 65, 2, batch_first=True, **options)
    got, same = turned(x.swapaxes(0, 1), None, LENGTHS)
    assert_same_bits("batch first", got.swapaxes(0, 1), want)
    assert_same_bits("state", same, state)
    assert copy.deepcopy(layer).config() == layer.config()
    assert eval(repr(layer), {"GRU": rk.GRU}).config() == layer.config()


def test_a_reverse_layer_is_the_second_direction_of_two() -> None:
    both, alone = make("lstm", INPUTS, 7, bidirectional=True), make("lstm", INPUTS, 7, reverse=True)
    for name, p in alone.params.items():
        p[...] = both.params[f"{name}_reverse"]
    y, (h, c) = both(_x(), None, LENGTHS)
    own, (own_h, own_c) = alone(_x(), None, LENGTHS)
    assert_same_bits("y", own, y[..., 7:])
    assert_same_bits("h", own_h, h[1:])
    assert_same_bits("c", own_c, c[1:])


@pytest.mark.parametrize("cell", ["lstm", "gru_before"])
@ways
def test_the_last_output_and_its_gradient(options: dict[str, Any], cell: str) -> None:
    """By finite differences, of rows without steps too."""
    layer = make(cell, INPUTS, 6, 2, dtype="float64", **options)
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((BATCH, layer.output_size))
    x = _x("float64")
    state: Any = random_state(cell, (2 * layer.num_directions, BATCH, 6))
    state = state if cell == "lstm" else state[0]

    def loss() -> float:
        y, last = layer(x, state, LENGTHS)
        return float((layer.last_output(y, last, LENGTHS) * weights).sum())

    _, last, tape = layer.forward(x, state, LENGTHS)
    for part in last if isinstance(last, tuple) else (last,):
        part[...] = np.nan  # the tape must not look there
    got = tape.backward(dlast=weights).x
    way = rng.standard_normal(x.shape)
    want = np.float64(slope(loss, [x], [way]))
    assert_close("dx along a way", np.sum(got * way), want, 1e-5)


@pytest.mark.parametrize("merge", MERGES[1:])
def test_gates_and_gradients_of_steps_are_each_directions(merge: str) -> None:
    for cell in ("rnn_tanh", "gru_after"):
        layer = make(cell, INPUTS, 7, 2, bidirectional=True, merge=merge)
        y, _, tape = layer.forward(_x(), None, LENGTHS)
        gates = tape.gates()
        assert [g.shape for g in gates[0].values()] == [(STEPS, BATCH, 14)] * len(layer.gates)
        steps = tape.backward(y, state_gradients=True).steps
        assert steps is not None
        assert steps[1].h.shape == (STEPS, BATCH, 14)
        if cell == "rnn_tanh":
            h = gates[1]["h"]
            want = {"sum": h[..., :7] + h[..., 7:], "product": h[..., :7] * h[..., 7:]}
            want["average"] = want["sum"] * np.float32(0.5)
            assert_same_bits("y", y, want[merge])
    empty = layer.forward(_x()[:0])[2].gates()
    assert empty[0]["n"].shape == (0, BATCH, 14)


def test_bfloat16_and_files(tmp_path: Any) -> None:
    layer = make("lstm", INPUTS, 7, compute="bfloat16", bidirectional=True, merge="sum")
    concat = make("lstm", INPUTS, 7, compute="bfloat16", bidirectional=True)
    y, both = layer(_x())[0], concat(_x())[0]
    assert_same_bits("y", y, both[..., :7] + both[..., 7:])
    rk.save(tmp_path / "a", layer)
    assert_same_bits("read again", rk.load(tmp_path / "a")(_x())[0], y)


def test_in_stacks_and_models() -> None:
    x = _x()
    bottom = rk.GRU(INPUTS, 6, bidirectional=True, merge="product", seed=0)
    back = rk.LSTM(6, 6, reverse=True, seed=1)
    stack = rk.Stack([bottom, back], residual=[False, True])
    y, state, tape = stack.forward(x, None, LENGTHS)
    last = stack.last_output(y, state, LENGTHS)
    rows = LENGTHS > 0
    assert_same_bits("last", last[rows], y[0][rows])  # it ends with the first step
    h = state[1][0][0]
    assert_same_bits("of rows without steps", last[~rows], h[~rows])
    way = np.random.default_rng(4).standard_normal(last.shape).astype("float32")
    by_last = tape.backward(dlast=way).x
    dy = np.zeros_like(y)
    dy[0] = np.where(rows[:, None], way, 0)
    by_y = tape.backward(dy).x
    assert by_last is not None
    assert by_y is not None
    assert_close("dx", by_last, by_y, TOLERANCE["float32"])
    model = rk.Model(bottom, rk.Linear(6, 3, seed=2), readout="last")
    loss, grads = model.loss_and_grads(x, np.zeros(BATCH, np.int64))
    assert np.isfinite(loss)
    assert grads.params.keys() == model.params.keys()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="reverse must be False with bidirectional=True"):
        rk.GRU(2, 3, bidirectional=True, reverse=True)
    with pytest.raises(ValueError, match="merge='sum' needs bidirectional=True"):
        rk.GRU(2, 3, merge="sum")
    with pytest.raises(ValueError, match="merge must be one of 'concat', 'sum', 'average'"):
        rk.GRU(2, 3, bidirectional=True, merge="mean")
    with pytest.raises(TypeError, match="reverse must be"):
        rk.GRU(2, 3, reverse=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stream needs a layer with reverse=False"):
        rk.GRU(2, 3, reverse=True).stream()
    merging = rk.GRU(3, 3, bidirectional=True, merge="sum")
    with pytest.raises(ValueError, match="residual must be False around a last layer with merge="):
        rk.Stack([merging], residual=[True])
    with pytest.raises(ValueError, match="PyTorch has no layer with merge='sum'"):
        rk.LSTM(3, 3, bidirectional=True, merge="sum").to_torch(arrays=True)
