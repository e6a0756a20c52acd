# SPDX-License-Identifier: Apache-2.0
"""``zoneout`` and ``cell_zoneout``: units of h and c that keep their value of the step before."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.layers.configured import spec_of

from support import reference
from support.compare import assert_close, assert_same_bits
from support.differences import check_slope, weighted
from support.draws import Zoned
from support.dropped import (
    BATCH,
    HIDDEN,
    INPUTS,
    KEY,
    STEPS,
    check_differences,
    check_pieces,
    check_recompute,
    check_share,
    check_tokens_and_bfloat16,
    computed,
    h_factors,
)
from support.layers import CELLS, DTYPES, TOLERANCE, arrays, as_layer_state, as_tuple, make
from support.reference import Array
from support.ways import check_ways

LENGTHS = np.array([STEPS, 1, 0, 4, 3])


def options_of(cell: str, share: float = 0.3) -> dict[str, float]:
    return {"zoneout": share, **({"cell_zoneout": 0.4} if cell == "lstm" else {})}


def drawn(layer: Any, steps: int = STEPS, batch: int = BATCH, key: int = KEY) -> list[Array]:
    """Which units of h, and of c, keep their value: (L·D, T, B, ·) bool.

    Of layers whose states count the steps that they do not keep, run for ever more steps.
    """
    widths = [
        s.shape[2] for s in as_tuple(layer(np.zeros((1, 1, layer.input_size), layer.dtype))[1])
    ]
    zones = [layer.zoneout, getattr(layer, "cell_zoneout", 0.0)]
    ways = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional}
    rnn = rk.RNN(1, widths[0], nonlinearity="identity", zoneout=zones[0], **ways)
    for name, p in rnn.params.items():
        p[...] = np.eye(widths[0]) if name.startswith("weight_hh") else float("bias" in name)
    lstm = rk.LSTM(1, widths[-1], cell_zoneout=zones[1], **ways)
    for name, p in lstm.params.items():
        p[...] = 40.0 if "bias" in name else 0.0
    found = []
    for counter, place in zip((rnn, lstm), range(len(widths)), strict=False):
        counts = [np.zeros((spec_of(layer).states, batch, widths[place]))]
        for count in range(1, steps + 1):
            x = np.zeros((count, batch, 1), np.float32)
            counts.append(as_tuple(counter.forward(x, dropout_key=key)[1])[place])
        found.append(np.diff(np.stack(counts, axis=1), axis=1) == 0)
    return found


@contextmanager
def zoned(layer: Any, cell: str, zones: list[Any], steps: int = STEPS) -> Iterator[Zoned]:
    """A cell "zoned" of the reference."""
    own = Zoned(reference.CELLS[cell], zones, steps, layer.num_directions)
    reference.CELLS["zoned"] = own
    try:
        yield own
    finally:
        del reference.CELLS["zoned"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("cell", CELLS)
def test_against_the_reference(cell: str, lengths: Any, dtype: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, bidirectional=True, dtype=dtype, **options_of(cell))
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    with zoned(layer, cell, drawn(layer)):
        tape = reference.Tape("zoned", layer.params, x, state, lengths)
        dx, dfirst, grads = tape.backward(dy, dstate)
    want = {"y": tape.y, "dx": dx, **{f"d{name}": g for name, g in grads.items()}}
    for letter, end, first in zip("hc", tape.state, dfirst, strict=False):
        want |= {f"{letter}_n": end, f"d{letter}_0": first}
    got = computed(layer, x, state, dy, dstate, lengths=lengths)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert array is not None
        assert_close(name, got[name], array, 5 * TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
def test_state_gradients_are_of_the_states(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, dtype="float64", **options_of(cell))
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    with zoned(layer, cell, drawn(layer)) as own:
        reference.Tape("zoned", layer.params, x, state).backward(dy, dstate)
    _, _, tape = layer.forward(x, as_layer_state(state), dropout_key=KEY)
    steps = tape.backward(dy, as_layer_state(dstate), state_gradients=True).steps[0]
    want = [np.stack(each) for each in zip(*(own.told[0, t] for t in range(STEPS)), strict=True)]
    assert_close("h", steps.h, want[0], 1e-12)
    if steps.c is not None:  # where c is new h is made of it, which the reference counts later
        kept = drawn(layer)[1][0]
        assert_close("c", steps.c[kept], want[1][kept], 1e-12)


CASES: list[tuple[type[Any], dict[str, Any]]] = [
    (rk.RNN, {"nonlinearity": "softsign", "zoneout": 0.3}),
    (rk.MGU, {"zoneout": 0.3}),
    (rk.GRU, {"clip": 0.9, "zoneout": 0.3, "recurrent_dropout": 0.2}),
    (rk.GRU, {"reset": "after", "zoneout": 0.5}),
    (rk.LSTM, {"peepholes": True, "coupled": True, "zoneout": 0.1, "cell_zoneout": 0.5}),
    (rk.LSTM, {"cell_clip": 0.5, "cell_zoneout": 0.5}),
    (rk.LSTM, {"zoneout": 0.5}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_against_a_loop_of_pytorch(kind: type[Any], options: dict[str, Any]) -> None:
    """Written by hand, and differentiated by autograd."""
    pytest.importorskip("torch")
    variants = importlib.import_module("support.variants")
    layer = kind(INPUTS, HIDDEN, 2, bidirectional=True, **options, seed=3)
    x, state, dy, dstate = arrays(layer, STEPS, BATCH)
    of_h = h_factors(layer) if layer.recurrent_dropout else None
    want = variants.run(layer, x, state, LENGTHS, dy, dstate, of_h, drawn(layer))
    got = computed(layer, x, state, dy, dstate, lengths=LENGTHS)
    for name, array in want.items():
        assert_close(name, got[name], array, 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_inference_is_what_is_expected(cell: str, dtype: str, tmp_path: Path) -> None:
    layer = make(cell, INPUTS, HIDDEN, dtype=dtype, **options_of(cell))
    x, state, _, _ = arrays(layer, STEPS, BATCH)
    with zoned(layer, cell, list(options_of(cell).values())):
        want = reference.Tape("zoned", layer.params, x, state)
    y, last = check_ways(layer, x, state, tmp_path, drops=True)
    assert_close("y", y, want.y, TOLERANCE[dtype])
    for mine, theirs in zip(last, want.state, strict=True):
        assert_close("state", mine, theirs, TOLERANCE[dtype])
    ended, _ = layer(x, as_layer_state(state), LENGTHS)
    for b, end in enumerate(LENGTHS):
        assert_same_bits(f"row {b}", ended[:end, b], y[:end, b])


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_finite_differences(cell: str) -> None:
    layer = make(cell, 2, 3, bidirectional=True, dtype="float64", **options_of(cell))
    given = arrays(layer, 4, 2)
    check_differences(layer, *given, lengths=[4, 2])
    if cell in ("gru_before", "lstm"):
        check_differences(layer, *given, recompute=3)


@pytest.mark.parametrize(
    "zones", [{"zoneout": 0.4}, {"zoneout": 0.4, "cell_zoneout": 0.4}], ids=str
)
def test_of_a_projection(zones: dict[str, float], tmp_path: Path) -> None:
    layer = make("lstm", 2, 5, proj_size=3, dtype="float64", recurrent_dropout=0.3, **zones)
    given = arrays(layer, 4, 3)
    check_differences(layer, *given)
    check_differences(layer, *given, lengths=[4, 0, 2])
    check_ways(layer, *given[:2], tmp_path, drops=True)


def test_draws_are_of_their_share_and_of_nothing_else() -> None:
    layer = rk.LSTM(INPUTS, 32, 2, bidirectional=True, zoneout=0.2, cell_zoneout=0.6)
    of_h, of_c = drawn(layer, steps=12, batch=9)
    for draws, share in ((of_h, 0.2), (of_c, 0.6)):
        for own in draws:
            check_share(~own, share)
        assert len({row.tobytes() for own in draws for step in own for row in step}) == 4 * 12 * 9
    other = drawn(layer, steps=12, batch=9, key=KEY + 1)[1]
    assert abs(np.mean(other == of_c) - (0.6**2 + 0.4**2)) < 0.03
    assert abs(np.mean(of_c[of_h]) - 0.6) < 0.05  # those of c do not follow from those of h


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_by_any_team_and_in_pieces(cell: str) -> None:
    check_pieces(make(cell, INPUTS, 33, 2, dropout=0.3, **options_of(cell)))


def test_both_directions_in_pieces() -> None:
    layer = make("lstm", INPUTS, 7, 2, bidirectional=True, **options_of("lstm"))
    check_recompute(layer, *arrays(layer, STEPS, BATCH), every=4)


@pytest.mark.parametrize("cell", ["gru_before", "lstm"])
def test_resets_begin_with_nothing_to_keep(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, **options_of(cell))
    x, _, dy, _ = arrays(layer, STEPS, BATCH)
    resets = np.zeros((STEPS, BATCH), bool)
    resets[3, ::2] = True
    y, _, tape = layer.forward(x, resets=resets, dropout_key=KEY)
    whole = layer.forward(x, dropout_key=KEY)[0]
    assert_same_bits("before", y[:3], whole[:3])
    assert_same_bits("rows that are not", y[:, 1::2], whole[:, 1::2])
    kept = drawn(layer)[0][0, 3]
    assert (y[3, ::2][kept[::2]] == 0).all()
    assert kept[::2].any()
    assert np.isfinite(tape.backward(dy).x).all()
    apart = [layer(part)[0] for part in (x[:3], x[3:])]
    resets[3] = True
    assert_same_bits("inference", layer(x, resets=resets)[0], np.concatenate(apart))


def test_resets_of_more_rows_than_are_run_at_once() -> None:
    """Every row begins anew: two stretches each, which the kernels take in parts."""
    layer = make("lstm", 2, 3, dtype="float64", zoneout=0.2, cell_zoneout=0.5)
    random = np.random.default_rng(0)
    x, dy = random.standard_normal((6, 300, 2)), random.standard_normal((6, 300, 3))
    resets = np.zeros((6, 300), bool)
    resets[3] = True

    def loss() -> float:
        return weighted(layer.forward(x, resets=resets, dropout_key=KEY)[:1], [dy])

    found = layer.forward(x, resets=resets, dropout_key=KEY)[2].backward(dy)
    params = {name: (p, found.params[name]) for name, p in layer.params.items()}
    check_slope(loss, {"x": (x, found.x), **params})


def test_tokens_and_bfloat16() -> None:
    check_tokens_and_bfloat16("lstm", None, **options_of("lstm"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zoneout": 1.0}, "zoneout must be below 1, got 1.0"),
        ({"zoneout": -0.1}, "zoneout must be a finite number of at least 0"),
        ({"cell_zoneout": 2.0}, "cell_zoneout must be below 1, got 2.0"),
        ({"cell_zoneout": "c"}, "cell_zoneout must be a finite number"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        rk.LSTM(2, 3, **options)


def test_only_cells_with_c_have_it_of_c() -> None:
    with pytest.raises(TypeError, match="GRU has no argument 'cell_zoneout'"):
        rk.GRU(2, 3, cell_zoneout=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"zoneout": 0.25}, {"cell_zoneout": 0.25}], ids=str)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any]) -> None:
    layer, name = rk.LSTM(2, 3, **options), next(iter(options))
    x = np.ones((4, 1, 2), np.float32)
    with pytest.raises(ValueError, match=f"dropout_key must be given when {name} is 0.25"):
        layer.forward(x)
    with pytest.raises(ValueError, match=f"PyTorch has no layer with {name}=0.25"):
        layer.to_torch(arrays=True)
    with pytest.raises(ValueError, match=f"layer must have {name}=0 for a cell of one step"):
        rk.LSTMCell.of(layer)


def test_gates_of_a_cell_that_saves_none() -> None:
    layer = rk.RNN(2, 3, zoneout=0.25)
    _, _, tape = layer.forward(np.ones((4, 1, 2), np.float32), dropout_key=1)
    with pytest.raises(ValueError, match=r"gates\(\) needs zoneout=0 of this cell, got 0.25"):
        tape.gates()


def test_stacks_and_models_train_with_it() -> None:
    stack = rk.Stack([rk.GRU(3, 8, zoneout=0.5, seed=0), rk.LSTM(8, 8, cell_zoneout=0.5, seed=0)])
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    model = rk.Model(stack, rk.Linear(8, 2, seed=0), loss="mse")
    batches = [(x, None, np.zeros((4, 2, 2), np.float32))] * 5
    loss = rk.fit(model, batches, epochs=5, progress=False)["loss"]
    assert loss[-1] < loss[0]
    stream = stack.stream(batch=2)
    assert_same_bits("stream", np.stack([stream.step(x_t) for x_t in x]), stack(x)[0])
