# SPDX-License-Identifier: Apache-2.0
"""``recurrent_dropout``: one mask a row and unit, for all steps, of h as W_hh takes it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support import reference
from support.compare import assert_close, assert_same_bits
from support.dropped import (
    BATCH,
    HIDDEN,
    INPUTS,
    KEY,
    STEPS,
    check_differences,
    check_inference,
    check_pieces,
    check_recompute,
    check_share,
    check_tokens_and_bfloat16,
    computed,
    h_factors,
)
from support.layers import KINDS_WITHOUT_PRODUCT, TOLERANCE, WITH_PRODUCT, arrays, make
from support.reference import Array

SHARE = 0.4
LENGTHS = np.array([STEPS, 1, 0, 4, 3])


def wanted(
    layer: Any, cell: str, x: Array, state: Any, dy: Array, dstate: Any, *, lengths: Any = None
) -> dict[str, Array]:
    """By the reference, row by row, for a row's factors may as well be of the columns of W_hh."""
    of_h, parts = h_factors(layer, x.shape[1]), []
    for b in range(x.shape[1]):
        row = slice(b, b + 1)
        params = dict(layer.params)
        hidden = [name for name in params if name.startswith("weight_hh")]
        for name, own in zip(hidden, of_h[:, b], strict=True):
            params[name] = params[name].astype(np.float64) * own
        ends = None if lengths is None else lengths[row]
        tape = reference.Tape(cell, params, x[:, row], tuple(s[:, row] for s in state), ends)
        dx, dfirst, grads = tape.backward(dy[:, row], tuple(s[:, row] for s in dstate))
        for name, own in zip(hidden, of_h[:, b], strict=True):
            grads[name] *= own
        found: dict[str, Any] = {"y": tape.y, "dx": dx, **{f"d{n}": g for n, g in grads.items()}}
        for letter, end, first in zip("hc", tape.state, dfirst, strict=False):
            found |= {f"{letter}_n": end, f"d{letter}_0": first}
        parts.append(found)
    each = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: np.sum(own, axis=0) if name[1:] in layer.params else np.concatenate(own, axis=1)
        for name, own in each.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_against_the_reference(cell: str, lengths: Any, dtype: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, bidirectional=True, recurrent_dropout=SHARE, dtype=dtype)
    given = arrays(layer, STEPS, BATCH)
    got = computed(layer, *given, lengths=lengths)
    for name, want in wanted(layer, cell, *given, lengths=lengths).items():
        assert_close(name, got[name], want, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("reverse", [False, True])
def test_over_many_chunks_of_steps(reverse: bool) -> None:
    """As many rows as weight gradients take in parts."""
    options = {"recurrent_dropout": SHARE, "reverse": reverse}
    layer = make("gru_before", INPUTS, HIDDEN, **options)
    given = arrays(layer, 150, 14)
    if reverse:  # the reference's params say nothing of it
        x, state, dy, dstate = given
        got = computed(layer, x[::-1].copy(), state, dy[::-1].copy(), dstate)
        got["y"], got["dx"] = got["y"][::-1], got["dx"][::-1]
    else:
        got = computed(layer, *given)
    for name, want in wanted(layer, "gru_before", *given).items():
        assert_close(name, got[name], want, 3e-5)


CASES: list[tuple[type[Any], dict[str, Any]]] = [
    (rk.RNN, {"nonlinearity": "softsign"}),
    (rk.SimplifiedGRU, {}),
    (rk.MGU, {}),
    (rk.GRU, {"clip": 0.9}),
    (rk.GRU, {"reset": "after"}),
    (rk.LSTM, {"peepholes": True, "coupled": True}),
    (rk.LSTM, {"cell_clip": 0.5}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_against_a_loop_of_pytorch(kind: type[Any], options: dict[str, Any]) -> None:
    """Written by hand, and differentiated by autograd."""
    pytest.importorskip("torch")
    variants = importlib.import_module("support.variants")
    layer = kind(INPUTS, HIDDEN, 2, bidirectional=True, recurrent_dropout=SHARE, **options, seed=3)
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    want = variants.run(layer, x, state, LENGTHS, dy, dstate, h_factors(layer))
    got = computed(layer, x, state, dy, dstate, lengths=LENGTHS)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert_close(name, got[name], array, 2e-5)


@pytest.mark.filterwarnings("ignore")  # Keras' own
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU", "GRU, reset after"])
def test_as_keras_does_it_with_that_mask(kind: str) -> None:
    """Keras draws one mask for each gate; given the same for all of them, it is this."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    kind, _, after = kind.partition(",")
    options = {"reset_after": bool(after)} if kind == "GRU" else {}
    theirs = getattr(keras.layers, kind)(
        HIDDEN, return_sequences=True, recurrent_dropout=SHARE, **options
    )
    x = np.random.default_rng(0).standard_normal((BATCH, STEPS, INPUTS)).astype(np.float32)
    theirs(x)
    loaded = rk.from_keras(theirs)
    layer = type(loaded)(**{**loaded.config(), "recurrent_dropout": SHARE})
    layer.params.update(loaded.params)
    of_h = keras.ops.convert_to_tensor(factors_of_batch_first(layer))
    count = getattr(theirs.cell, "dropout_mask_count", None)
    theirs.cell._create_dropout_mask = lambda step_input, rate: (
        of_h if count is None else [of_h] * count
    )
    want = keras.ops.convert_to_numpy(theirs(x, training=True))
    assert_close("y", layer.forward(x, dropout_key=KEY)[0], want, 1e-5)
    assert not np.allclose(want, layer(x)[0])


def factors_of_batch_first(layer: Any) -> Array:
    twin = type(layer)(**{**layer.config(), "batch_first": False})
    of_h: Array = h_factors(twin)[0]
    return of_h


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_gradients_are_those_of_finite_differences(cell: str) -> None:
    layer = make(cell, 2, 3, bidirectional=True, recurrent_dropout=SHARE, dtype="float64")
    given = arrays(layer, 4, 2)
    check_differences(layer, *given, recompute=3)
    check_differences(layer, *given, lengths=[4, 2])


def test_of_a_projection() -> None:
    layer = make("lstm", 2, 5, proj_size=3, recurrent_dropout=SHARE, dtype="float64")
    assert h_factors(layer).shape == (1, BATCH, 3)
    given = arrays(layer, 4, 3)
    check_differences(layer, *given)
    got = computed(layer, *given, lengths=[4, 0, 2])
    assert np.isfinite(got["dweight_hr_l0"]).all()


def test_masks_are_of_their_share_and_of_nothing_else() -> None:
    layer = make("rnn_tanh", INPUTS, 64, 2, bidirectional=True, recurrent_dropout=SHARE)
    of_h = h_factors(layer, 50)
    np.testing.assert_allclose(of_h[of_h != 0], 1.0 / (1.0 - SHARE), rtol=1e-6)
    for own in of_h:
        check_share(own != 0, SHARE)
    assert len({row.tobytes() for own in of_h for row in own}) == 4 * 50
    for key in (0, KEY + 1, 2**64 - 1):
        agreement = np.mean((h_factors(layer, 50, key) != 0) == (of_h != 0))
        assert abs(agreement - (SHARE**2 + (1 - SHARE) ** 2)) < 0.03
    both = make("rnn_tanh", INPUTS, 64, 2, bidirectional=True, recurrent_dropout=SHARE, dropout=0.3)
    assert_same_bits("with dropout", h_factors(both, 50), of_h)


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_the_same_by_any_team_and_in_pieces(cell: str) -> None:
    check_pieces(make(cell, INPUTS, 33, 2, recurrent_dropout=SHARE, dropout=0.3))


@pytest.mark.parametrize("every", [2, 4])
def test_both_directions_in_pieces(every: int) -> None:
    layer = make("gru_after", INPUTS, 7, 2, bidirectional=True, recurrent_dropout=SHARE)
    check_recompute(layer, *arrays(layer, STEPS, BATCH), every=every)


@pytest.mark.parametrize("cell", ["gru_before", "lstm"])
def test_resets_keep_the_mask_of_the_row(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, recurrent_dropout=SHARE)
    x, _, dy, _ = arrays(layer, STEPS, BATCH)
    resets = np.zeros((STEPS, BATCH), bool)
    resets[3] = True
    y, _, tape = layer.forward(x, resets=resets, dropout_key=KEY)
    apart = [layer.forward(part, dropout_key=KEY) for part in (x[:3], x[3:])]
    assert_same_bits("y", y, np.concatenate([own for own, _, _ in apart]))
    parts = zip(apart, (dy[:3], dy[3:]), strict=True)
    each = [own.backward(d) for (_, _, own), d in parts]
    got = tape.backward(dy)
    assert_same_bits("dx", got.x, np.concatenate([own.x for own in each]))
    for name, array in got.params.items():
        assert_close(name, array, each[0].params[name] + each[1].params[name], 1e-5)
    uneven = resets & (np.arange(BATCH) % 2 == 0)  # rows of a batch of stretches stand elsewhere
    mixed = layer.forward(x, resets=uneven, dropout_key=KEY)[0]
    assert_same_bits("rows that are reset", mixed[:, ::2], y[:, ::2])
    whole = layer.forward(x, dropout_key=KEY)[0]
    assert_same_bits("rows that are not", mixed[:, 1::2], whole[:, 1::2])


def test_tokens_masks_and_bfloat16() -> None:
    skip = np.random.default_rng(1).random((STEPS, BATCH)) < 0.7
    check_tokens_and_bfloat16("gru_before", skip, recurrent_dropout=SHARE)


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_inference_drops_nothing(cell: str, tmp_path: Path) -> None:
    check_inference(cell, tmp_path, recurrent_dropout=SHARE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recurrent_dropout": 1.0}, "recurrent_dropout must be below 1, got 1.0"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout must be a finite number of at least 0"),
        ({"recurrent_dropout": None}, "recurrent_dropout must be a finite number"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    for kind in (rk.RNN, rk.GRU, rk.LSTM, rk.MGU, rk.SimplifiedGRU):
        with pytest.raises((ValueError, TypeError), match=message):
            kind(2, 3, **options)


@pytest.mark.parametrize("kind", KINDS_WITHOUT_PRODUCT)
def test_cells_without_a_recurrent_matrix_refuse_it(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=f"recurrent_dropout must be 0 for {kind.__name__}"):
        kind(2, 3, recurrent_dropout=0.5)


def test_the_key_is_asked_for_and_others_refuse_it() -> None:
    layer = make("gru_after", 2, 3, recurrent_dropout=0.25)
    x = np.ones((4, 1, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"dropout_key must be given when recurrent_dropout is 0\.2"
    ):
        layer.forward(x)
    plain = rk.GRU(2, 3, reset="after")
    assert layer.to_torch(arrays=True).keys() == plain.to_torch(arrays=True).keys()
    model = rk.Model(layer, rk.Linear(3, 1, seed=0), loss="mse", readout="all")
    value, _ = model.loss_and_grads(x, np.zeros((4, 1, 1), np.float32), dropout_key=3)
    assert np.isfinite(value)
