# SPDX-License-Identifier: Apache-2.0
"""Blocks of streams of stacks and models, with rows that begin anew or skip steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits

STEPS, BATCH, WIDTH = 7, 4, 5
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((STEPS, BATCH, WIDTH))
MARKS = {
    "resets": RANDOM.random((STEPS, BATCH)) < 0.3,
    "mask": RANDOM.random((STEPS, BATCH)) < 0.6,
}
WANTED: list[tuple[str, ...]] = [(), ("resets",), ("mask",), ("resets", "mask")]
PARTS = [slice(0, 3), slice(3, 4), slice(4, STEPS)]


def joined(state: Any) -> Any:
    """A layer's state as one array."""
    return np.stack(state)


def of(names: tuple[str, ...], steps: slice) -> dict[str, Any]:
    """Those marks of some steps."""
    return {name: MARKS[name][steps] for name in names}


def stack(residual: bool | list[bool]) -> rk.Stack:
    """Of two layers, float64."""
    layers = [rk.GRU(WIDTH, WIDTH, dtype="float64", seed=1)]
    return rk.Stack([*layers, rk.LSTM(WIDTH, WIDTH, dtype="float64", seed=2)], residual=residual)


@pytest.mark.parametrize("residual", [False, True, [True, True]])
@pytest.mark.parametrize("names", WANTED, ids="+".join)
def test_blocks_of_a_stack_are_a_call(names: tuple[str, ...], residual: Any) -> None:
    made = stack(residual)
    stream = made.stream(BATCH)
    want, last = made(X, **of(names, slice(None)))
    got = [stream.block(X[t], **of(names, t)) for t in PARTS]
    assert_same_bits("y", np.concatenate(got), want)
    for mine, theirs in zip(stream.state, last, strict=True):
        assert_same_bits("last", joined(mine), joined(theirs))
    stream.reset()
    out = X[:3].copy()  # where x is too
    assert stream.block(out, out, **of(names, PARTS[0])) is out
    assert_same_bits("out", out, got[0])


def test_a_block_that_is_refused_leaves_the_states_of_all_layers() -> None:
    stream = stack(True).stream(BATCH)
    stream.block(X)
    before = stream.state
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mask": MARKS["mask"][:2]}, r"mask must have shape \(7, 4\), got \(2, 4\)"),
        ({"resets": np.zeros((STEPS, BATCH))}, "resets must be bool, got float64"),
    ]
    for given, message in wrong:
        with pytest.raises((TypeError, ValueError), match=message):
            stream.block(X, **given)
    for mine, theirs in zip(stream.state, before, strict=True):
        assert_same_bits("state", joined(mine), joined(theirs))


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("names", WANTED, ids="+".join)
def test_blocks_of_a_model_are_a_call(names: tuple[str, ...], embedding: bool) -> None:
    words = rk.Embedding(9, WIDTH, dtype="float64", seed=3) if embedding else None
    model = rk.Model(stack(True), rk.Linear(WIDTH, 2, dtype="float64", seed=4), embedding=words)
    tokens = np.random.default_rng(0).integers(0, 9, (STEPS, BATCH))
    x: Any = tokens if embedding else X.copy()
    features = words(x) if words is not None else x
    y, _ = model.recurrent(features, **of(names, slice(None)))
    want = model.head(y)
    if "mask" in names:
        want[~MARKS["mask"]] = 0.0
        x[~MARKS["mask"]] = 99 if embedding else np.nan  # which nobody looks at
    stream = model.stream(BATCH)
    got = [stream.block(x[t], **of(names, t)) for t in PARTS]
    assert_close("outputs", np.concatenate(got), want, 1e-14)
    stream.reset()
    out = np.empty((3, BATCH, 2))
    assert stream.block(x[:3], out, **of(names, PARTS[0])) is out
    assert_same_bits("out", out, got[0])
    if "mask" in names:
        stream.reset()
        for t in range(STEPS):  # as steps of rows that are held
            if "resets" in names:
                stream.reset(MARKS["resets"][t])
            step = stream.step(x[t], mask=MARKS["mask"][t])
            assert_close("step", step, want[t], 1e-14)


@pytest.mark.parametrize("embedding", [False, True])
def test_what_a_models_stream_refuses_of_masks(embedding: bool) -> None:
    words = rk.Embedding(9, WIDTH, seed=3) if embedding else None
    model = rk.Model(rk.GRU(WIDTH, 3), rk.Linear(3, 2), embedding=words)
    stream = model.stream(BATCH)
    x: Any = np.zeros((2, BATCH), int) if embedding else X[:2].astype(np.float32)
    mask = np.ones((2, BATCH), bool)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 4\), got \(2, 3\)"):
        stream.block(x, mask=mask[:, :3])
    with pytest.raises(TypeError, match="mask must be bool, got int64"):
        stream.block(x, mask=mask.astype(int))
    with pytest.raises(ValueError, match=r"mask must be bool \(4,\), got bool of shape \(3,\)"):
        stream.step(x[0], mask=mask[0, :3])
    if embedding:
        for wrong in (np.zeros((2, BATCH, WIDTH), np.float32), np.zeros((2, BATCH), np.float32)):
            with pytest.raises(TypeError, match="x must be integer"):
                stream.block(wrong, mask=mask)
    assert not np.any(stream.state)
