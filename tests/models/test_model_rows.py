# SPDX-License-Identifier: Apache-2.0
"""A model whose rows begin anew and skip steps: as its parts by hand, by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.layers.configured import state_names

from support.compare import assert_close, assert_same_bits
from support.differences import check_slope
from support.layers import CELLS, as_tuple, make

VOCABULARY, FEATURES, HIDDEN, OUTPUTS = 6, 4, 3, 5
STEPS, BATCH = 7, 4
READOUTS = ["all", "last", "mean", "max"]
RANDOM = np.random.default_rng(3)
LENGTHS = np.array([7, 0, 6, 7])
RESETS = RANDOM.random((STEPS, BATCH)) < 0.3
X_MASK = RANDOM.random((STEPS, BATCH)) < 0.7
X_MASK[:, 3] = False
ROWS: dict[str, Any] = {"lengths": LENGTHS, "resets": RESETS, "x_mask": X_MASK}
LIVE = X_MASK & (np.arange(STEPS)[:, None] < LENGTHS)


def build(cell: str, readout: str, *, embedding: bool = False, both: bool = False) -> rk.Model:
    return rk.Model(
        make(cell, FEATURES, HIDDEN, bidirectional=both, dtype="float64"),
        rk.Linear((1 + both) * HIDDEN, OUTPUTS, dtype="float64", seed=1),
        embedding=rk.Embedding(VOCABULARY, FEATURES, dtype="float64", seed=2)
        if embedding
        else None,
        readout=readout,
    )


def data(readout: str, *, embedding: bool = False) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, VOCABULARY, (STEPS, BATCH))
    if not embedding:
        x = rng.standard_normal((STEPS, BATCH, FEATURES))
    return x, rng.integers(0, OUTPUTS, (STEPS, BATCH) if readout == "all" else BATCH)


def pieces(row: int) -> list[list[int]]:
    """The steps that a row goes through, cut where it begins anew."""
    found: list[list[int]] = []
    pending = True
    for t in range(LENGTHS[row]):
        pending |= bool(RESETS[t, row])
        if LIVE[t, row]:
            if pending:
                found.append([])
            found[-1].append(t)
            pending = False
    return found


def by_hand(model: rk.Model, x: Any) -> Any:
    """The outputs, of layer and head called apart for each piece of each row."""
    weight, bias = model.params["head.weight"], model.params["head.bias"]
    both = model.recurrent.num_directions == 2
    y = np.zeros((STEPS, BATCH, weight.shape[1]))
    last = np.zeros((BATCH, weight.shape[1]))
    for b in range(BATCH):
        for steps in pieces(b):
            y[steps, b], _ = model.recurrent(x[steps, b])
        if pieces(b):  # the forward direction ends with the last step, the other with the first
            last[b] = y[pieces(b)[-1][-1], b]
            if both:
                last[b, HIDDEN:] = y[pieces(b)[0][0], b, HIDDEN:]
            if RESETS[pieces(b)[-1][-1] + 1 : LENGTHS[b], b].any():
                last[b, :HIDDEN] = 0
            if both and RESETS[1 : pieces(b)[0][0] + 1, b].any():
                last[b, HIDDEN:] = 0
    counts = np.maximum(LIVE.sum(axis=0), 1)[:, None]
    greatest = np.where(LIVE[..., None], y, -np.inf).max(axis=0)
    seen = {
        "all": y,
        "last": last,
        "mean": y.sum(axis=0) / counts,
        "max": np.where(LIVE.sum(axis=0)[:, None] > 0, greatest, 0.0),
    }
    return seen[model.readout] @ weight.T + bias


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_are_those_of_the_parts_by_hand(cell: str, readout: str, both: bool) -> None:
    model, (x, _) = build(cell, readout, both=both), data(readout)
    want = by_hand(model, x)
    outputs, _ = model(x, **ROWS)
    assert_close("outputs", outputs, want, 1e-12)
    assert_same_bits("forward", model.forward(x, **ROWS)[0], outputs)
    assert_same_bits("predict", model.predict(x, **ROWS), outputs)
    turned = {name: a if name == "lengths" else a.T for name, a in ROWS.items()}
    got = model.predict(x.swapaxes(0, 1), batch_first=True, **turned)
    assert_same_bits("turned", got.swapaxes(0, 1) if readout == "all" else got, outputs)
    alone = model.predict(x[:, 0], resets=RESETS[:, 0], x_mask=X_MASK[:, 0])
    assert_close("alone", alone, want[..., 0, :], 1e-12)


@pytest.mark.parametrize("reset_to", ["zero", "initial"])
@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_loss(
    cell: str, readout: str, embedding: bool, reset_to: str
) -> None:
    model = build(cell, readout, embedding=embedding)
    x, targets = data(readout, embedding=embedding)
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((1, BATCH, HIDDEN)) for _ in state_names(model.recurrent)]
    state: Any = tuple(parts) if len(parts) > 1 else parts[0]
    rows = {**ROWS, "state": state, "reset_to": reset_to}
    value, grads = model.loss_and_grads(x, targets, **rows)

    def loss() -> float:
        return model.evaluate(x, targets, **rows)

    assert value == pytest.approx(loss(), abs=1e-12)
    given: dict[str, Any] = {n: (p, grads.params[n]) for n, p in model.params.items()}
    given |= dict(zip("hc", zip(parts, as_tuple(grads.state), strict=True), strict=False))
    if not embedding:
        given["x"] = x, grads.x
    check_slope(loss, given, atol=1e-9)


def test_only_steps_gone_through_count() -> None:
    model, (x, targets) = build("gru_before", "all"), data("all")
    value, _ = model.loss_and_grads(x, targets, **ROWS)
    outputs, _ = model(x, **ROWS)
    chosen = np.log(np.exp(outputs).sum(axis=-1)) - np.take_along_axis(
        outputs, targets[..., None], axis=-1
    ).squeeze(-1)
    assert value == pytest.approx(chosen[LIVE].mean(), abs=1e-12)
    assert model.places(x, targets, LENGTHS, x_mask=X_MASK) == LIVE.sum()
    mask = np.arange(STEPS * BATCH).reshape(STEPS, BATCH) % 2 == 0
    half, _ = model.loss_and_grads(x, targets, mask=mask, **ROWS)
    assert half == pytest.approx(chosen[LIVE & mask].mean(), abs=1e-12)
    assert model.places(x, targets, LENGTHS, mask=mask, x_mask=X_MASK) == (LIVE & mask).sum()


@pytest.mark.parametrize("embedding", [False, True])
def test_nobody_looks_at_what_is_skipped(embedding: bool) -> None:
    model = build("lstm", "max", embedding=embedding)
    x, targets = data("max", embedding=embedding)
    spoilt = x.copy()
    spoilt[~X_MASK] = -1 if embedding else np.nan
    want, grads = model.loss_and_grads(x, targets, **ROWS)
    got, others = model.loss_and_grads(spoilt, targets, **ROWS)
    assert got == want
    for name, array in grads.params.items():
        assert_same_bits(name, others.params[name], array)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_stack_whose_input_goes_round_the_last_layer(readout: str) -> None:
    layers = [make("gru_before", FEATURES, HIDDEN), make("lstm", HIDDEN, HIDDEN)]
    stack = rk.Stack(layers, residual=True)
    model = rk.Model(stack, rk.Linear(HIDDEN, OUTPUTS, seed=1), readout=readout)
    x = data(readout)[0].astype(np.float32)
    outputs, _ = model(x, **ROWS)
    for b in (0, 2):
        want = model.predict(x[:, b], resets=RESETS[:, b], x_mask=LIVE[:, b])
        assert_close("row", outputs[..., b, :], want, 1e-6)


def test_errors_name_what_is_wrong() -> None:
    model, (x, _) = build("gru_before", "all"), data("all")
    with pytest.raises(TypeError, match=r"x_mask must be bool, got int64: x_mask != 0 is an array"):
        model(x, x_mask=X_MASK.astype(np.int64))
    with pytest.raises(ValueError, match=r"x_mask must have shape \(7, 4\), got \(4, 7\)"):
        model.forward(x, x_mask=X_MASK.T)
    with pytest.raises(ValueError, match="x_mask needs x as one array, got a list of sequences"):
        model.predict([x[:, 0]], x_mask=X_MASK)
    with pytest.raises(ValueError, match="reset_to must be one of 'zero', 'initial', got 'first'"):
        model(x, resets=RESETS, reset_to="first")
