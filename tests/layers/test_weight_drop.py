# SPDX-License-Identifier: Apache-2.0
"""``weight_drop``: one mask of W_hh for all steps and rows of a call."""

from __future__ import annotations

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
    check_share,
    check_tokens_and_bfloat16,
    computed,
)
from support.layers import KINDS_WITHOUT_PRODUCT, TOLERANCE, WITH_PRODUCT, arrays, make
from support.reference import Array

SHARE, SIZES = 0.4, (INPUTS, HIDDEN, 2)


def factors(layer: Any, key: int = KEY) -> dict[str, Array]:
    """Of each W_hh: where its gradient is not 0 it was kept."""
    x = np.random.default_rng(0).standard_normal((20, 16, layer.input_size)).astype(layer.dtype)
    y, _, tape = layer.forward(x, dropout_key=key)
    grads = tape.backward(np.random.default_rng(1).standard_normal(y.shape).astype(layer.dtype))
    scale = layer.dtype.type(1.0 / (1.0 - layer.weight_drop))
    return {n: (g != 0) * scale for n, g in grads.params.items() if n.startswith("weight_hh")}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [None, [STEPS, 1, 0, 4, 3]], ids=["whole", "lengths"])
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_against_the_reference_with_those_weights(cell: str, lengths: Any, dtype: str) -> None:
    options = {"bidirectional": True, "weight_drop": SHARE, "dtype": dtype}
    layer = make(cell, *SIZES, **options)
    # Masks follow from the key and the shape alone; of a relu some gradients are 0 too.
    masks = factors(make("rnn_tanh", *SIZES, **options) if cell == "rnn_relu" else layer)
    assert len(masks) == 4
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    params = {n: p * masks[n] if n in masks else p for n, p in layer.params.items()}
    oracle = reference.Tape(cell, params, x, state, None if lengths is None else np.array(lengths))
    want_dx, want_first, want_grads = oracle.backward(dy, dstate)
    got = computed(layer, x, state, dy, dstate, lengths=lengths)
    tolerance = TOLERANCE[dtype]
    for name, want in {"y": oracle.y, "h_n": oracle.state[0], "dx": want_dx}.items():
        assert want is not None
        assert_close(name, got[name], want, tolerance)
    assert_close("dh_0", got["dh_0"], want_first[0], tolerance)
    for name, want in want_grads.items():
        assert_close(name, got[f"d{name}"], want * masks.get(name, 1.0), 3 * tolerance)


def test_against_pytorch_with_that_mask() -> None:
    """PyTorch's own LSTM, differentiated by autograd through weight * mask."""
    torch = pytest.importorskip("torch")
    layer = make("lstm", INPUTS, HIDDEN, weight_drop=SHARE)
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    got = computed(layer, x, state, dy, dstate)
    module = torch.nn.LSTM(INPUTS, HIDDEN, dtype=torch.float64)
    module.load_state_dict(layer.to_torch())
    mask = torch.tensor(factors(layer)["weight_hh_l0"].astype(np.float64))
    of_x = torch.tensor(x.astype(np.float64), requires_grad=True)
    raw = dict(module.named_parameters())
    y, last = torch.func.functional_call(
        module,
        {**raw, "weight_hh_l0": raw["weight_hh_l0"] * mask},
        (of_x, tuple(torch.tensor(s.astype(np.float64)) for s in state)),
    )
    ends = zip((y, *last), (dy, *dstate), strict=True)
    sum((a * torch.tensor(d)).sum() for a, d in ends).backward()
    for name, want in {
        "y": y,
        "dx": of_x.grad,
        "dweight_hh_l0": raw["weight_hh_l0"].grad,
        "dweight_ih_l0": raw["weight_ih_l0"].grad,
    }.items():
        assert_close(name, got[name], want.detach().numpy(), 1e-5)


@pytest.mark.parametrize("cell", ["gru_before", "gru_after", "minimal_gated", "lstm"])
def test_gradients_are_those_of_finite_differences(cell: str) -> None:
    layer = make(cell, 2, 3, bidirectional=True, weight_drop=SHARE, dtype="float64")
    check_differences(layer, *arrays(layer, 4, 2))


def test_a_projection_keeps_its_own_weights() -> None:
    layer = make("lstm", 2, 5, proj_size=3, weight_drop=SHARE, dtype="float64")
    check_differences(layer, *arrays(layer, 3, 2))
    x = arrays(layer, STEPS, BATCH)[0]
    _, _, tape = layer.forward(x, dropout_key=KEY)
    grads = tape.backward(np.ones((*x.shape[:2], 3))).params
    assert (grads["weight_hr_l0"] != 0).all()
    assert (grads["weight_hh_l0"] == 0).any()


def test_masks_are_of_their_share_and_of_nothing_else() -> None:
    layer = make("rnn_tanh", INPUTS, 64, 2, bidirectional=True, weight_drop=SHARE)
    masks = factors(layer)
    for mask in masks.values():
        check_share(mask != 0, SHARE)
        check_share((mask != 0).mean(axis=0) > 0, 0.0)  # no column is lost
    assert len({m.tobytes() for m in masks.values()}) == 4
    for key in (0, KEY + 1, 2**64 - 1):
        other = factors(layer, key)["weight_hh_l0"]
        agreement = np.mean((other != 0) == (masks["weight_hh_l0"] != 0))
        assert abs(agreement - (SHARE**2 + (1 - SHARE) ** 2)) < 0.05
    again = make("rnn_tanh", INPUTS, 64, 2, bidirectional=True, weight_drop=SHARE, dropout=0.3)
    with np.errstate(all="raise"):
        same = factors(again)
    for name, mask in masks.items():
        assert_same_bits(name, same[name], mask)


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_the_same_by_any_team_and_in_pieces(cell: str) -> None:
    layer = make(cell, INPUTS, 33, 2, weight_drop=SHARE, dropout=0.3)
    want, cut = check_pieces(layer, lengths=None)
    assert (cut["dweight_hh_l0"] == 0).sum() == (want["dweight_hh_l0"] == 0).sum()


def test_with_resets_tokens_and_bfloat16() -> None:
    resets = np.zeros((STEPS, BATCH), bool)
    resets[3] = True
    layer = make("gru_after", INPUTS, HIDDEN, weight_drop=SHARE)
    x = arrays(layer, STEPS, BATCH)[0]
    y, _, _ = layer.forward(x, resets=resets, dropout_key=KEY)
    apart = [layer.forward(part, dropout_key=KEY)[0] for part in (x[:3], x[3:])]
    assert_same_bits("y", y, np.concatenate(apart))
    check_tokens_and_bfloat16("gru_after", None, weight_drop=SHARE)


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_inference_has_all_weights(cell: str, tmp_path: Path) -> None:
    check_inference(cell, tmp_path, weight_drop=SHARE)


def test_the_tape_forgets_later_changes_and_the_key_is_looked_at() -> None:
    layer = make("lstm", INPUTS, HIDDEN, weight_drop=SHARE)
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    want = computed(layer, x, state, dy, dstate)["dweight_hh_l0"]
    _, _, tape = layer.forward(x, state, dropout_key=KEY)
    layer.params["weight_hh_l0"][...] = 0.0
    assert_same_bits("dweight_hh", tape.backward(dy, dstate).params["weight_hh_l0"], want)
    with pytest.raises(ValueError, match=r"dropout_key must be given when weight_drop is 0\.4"):
        layer.forward(x)
    with pytest.raises(ValueError, match="dropout_key must be an integer of at least 0"):
        layer.forward(x, dropout_key=-1)


def test_stacks_and_models_train_with_it() -> None:
    lstm = rk.LSTM(8, 8, weight_drop=0.5, seed=1)
    stack = rk.Stack([rk.GRU(3, 8, weight_drop=0.5, seed=0), lstm])
    x = np.ones((4, 2, 3), np.float32)
    with pytest.raises(ValueError, match="dropout_key must be given when weight_drop"):
        stack.forward(x)
    y, _, tape = stack.forward(x, dropout_key=1)
    grads = tape.backward(np.ones_like(y)).params
    for name in ("0.weight_hh_l0", "1.weight_hh_l0"):
        check_share(grads[name] != 0, 0.5)
    model = rk.Model(rk.LSTM(3, 8, weight_drop=0.5, seed=0), rk.Linear(8, 2, seed=0), loss="mse")
    batches = [(x, None, np.zeros((4, 2, 2), np.float32))] * 5
    loss = rk.fit(model, batches, epochs=5, progress=False)["loss"]
    assert loss[-1] < loss[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_drop": 1.0}, "weight_drop must be below 1, got 1.0"),
        ({"weight_drop": -0.1}, "weight_drop must be a finite number of at least 0"),
        ({"weight_drop": "half"}, "weight_drop must be a finite number"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    for kind in (rk.RNN, rk.GRU, rk.LSTM, rk.MGU, rk.SimplifiedGRU):
        with pytest.raises((ValueError, TypeError), match=message):
            kind(2, 3, **options)


@pytest.mark.parametrize("kind", KINDS_WITHOUT_PRODUCT)
def test_cells_without_a_recurrent_matrix_refuse_it(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=f"weight_drop must be 0 for {kind.__name__}, which has"):
        kind(2, 3, weight_drop=0.5)
    assert kind(2, 3, weight_drop=0.0).weight_drop == 0.0
