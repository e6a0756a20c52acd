# SPDX-License-Identifier: Apache-2.0
"""Model: gradients by finite differences and by PyTorch, readouts row by row, streams, files."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.differences import check_slope, weighted
from support.layers import CELLS, as_tuple, make
from support.marks import live_steps

VOCABULARY, FEATURES, HIDDEN, OUTPUTS = 6, 4, 3, 5
STEPS, LENGTHS = 6, np.array([6, 0, 3, 1])
READOUTS = ["all", "last", "mean", "max"]


def build(
    cell: str = "lstm",
    readout: str = "all",
    *,
    embedding: bool = True,
    layers: int = 1,
    both: bool = False,
    dtype: str = "float64",
    batch_first: bool = False,
    inputs: int = FEATURES,
) -> rk.Model:
    recurrent = make(
        cell, inputs, HIDDEN, layers, bidirectional=both, dtype=dtype, batch_first=batch_first
    )
    return rk.Model(
        recurrent,
        rk.Linear((1 + both) * HIDDEN, OUTPUTS, dtype=dtype, seed=1),
        embedding=rk.Embedding(VOCABULARY, FEATURES, dtype=dtype, seed=2) if embedding else None,
        readout=readout,
    )


def data(readout: str, embedding: bool, dtype: str = "float64") -> tuple[Any, Any]:
    """x and targets, time first."""
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, VOCABULARY, (STEPS, len(LENGTHS)))
    if not embedding:
        x = rng.standard_normal((STEPS, len(LENGTHS), FEATURES)).astype(dtype)
    shape = (STEPS, len(LENGTHS)) if readout == "all" else (len(LENGTHS),)
    return x, rng.integers(0, OUTPUTS, shape)


def assert_slope(model: rk.Model, grads: rk.Gradients, loss: Any) -> None:
    """The gradients are the slope of the loss in a random direction."""
    assert list(grads.params) == list(model.params)
    check_slope(loss, {n: (p, grads.params[n]) for n, p in model.params.items()}, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_loss(
    cell: str, readout: str, embedding: bool, masked: bool
) -> None:
    x, targets = data(readout, embedding)
    model = build(cell, readout, embedding=embedding, layers=2, both=masked)
    mask = np.random.default_rng(1).random(targets.shape) < 0.7 if masked else None
    value, grads = model.loss_and_grads(x, targets, LENGTHS, mask=mask)
    assert value == pytest.approx(model.evaluate(x, targets, LENGTHS, mask=mask), abs=1e-12)
    assert (grads.x is None) == embedding
    assert_slope(model, grads, lambda: model.evaluate(x, targets, LENGTHS, mask=mask))


@pytest.mark.parametrize("readout", READOUTS)
def test_gradients_of_x_and_states(readout: str) -> None:
    x, _ = data(readout, embedding=False)
    model = build("lstm", readout, embedding=False)
    rng = np.random.default_rng(1)
    state: Any = tuple(rng.standard_normal((1, len(LENGTHS), HIDDEN)) for _ in range(2))
    outputs, last, tape = model.forward(x, state, LENGTHS)
    weights = [rng.standard_normal(a.shape) for a in (outputs, *last)]
    grads = tape.backward(weights[0], tuple(weights[1:]))

    def loss() -> float:
        again, after = model(x, state, LENGTHS)
        return weighted((again, *after), weights)

    for given, gradient in zip((x, *state), (grads.x, *as_tuple(grads.state)), strict=True):
        assert gradient is not None
        check_slope(loss, {"given": (given, gradient)})


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_of_the_last_h_needs_no_zeros(cell: str, both: bool) -> None:
    layer = make(cell, FEATURES, HIDDEN, 2, bidirectional=both)
    x, _ = data("all", False, "float32")
    for arguments in ((x, None, LENGTHS), (x[:, 0],)):
        _, state, tape = layer.forward(*arguments)
        h = as_tuple(state)[0]
        top = np.random.default_rng(0).standard_normal(h[-1 - both :].shape).astype("f4")
        zeros = [np.zeros_like(s) for s in as_tuple(state)]
        zeros[0][-1 - both :] = top
        dstate = tuple(zeros) if len(zeros) > 1 else zeros[0]
        dlast = np.concatenate(list(top), axis=-1)
        want, got = tape.backward(None, dstate), tape.backward(dlast=dlast)
        assert_same_bits("dx", got.x, want.x)
        for name, gradient in want.params.items():
            assert_same_bits(name, got.params[name], gradient)
        twice = tape.backward(None, dstate, dlast=dlast)
        assert_close("dx", twice.x, 2.0 * want.x, 1e-5)
        with pytest.raises(ValueError, match="dlast must have shape"):
            tape.backward(dlast=dlast[..., :-1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("readout", READOUTS)
def test_it_is_what_pytorch_computes(readout: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x, targets = data(readout, True)
    x, targets, lengths = x[:, ::2], targets[..., ::2], LENGTHS[::2]  # PyTorch packs no empty row
    model = build("lstm", readout, both=True, dtype=dtype)
    kind = getattr(torch, dtype)
    embedding = torch.nn.Embedding(VOCABULARY, FEATURES, dtype=kind)
    lstm = torch.nn.LSTM(FEATURES, HIDDEN, bidirectional=True, dtype=kind)
    head = torch.nn.Linear(2 * HIDDEN, OUTPUTS, dtype=kind)
    parts = {"embedding": embedding, "recurrent": lstm, "head": head}
    with torch.no_grad():
        for key, array in model.params.items():
            part, name = key.split(".")
            named = dict(parts[part].named_parameters())
            if part == "recurrent" and name.startswith("bias"):
                named[name.replace("bias", "bias_hh")].zero_()
                name = name.replace("bias", "bias_ih")
            named[name].copy_(torch.from_numpy(array))
    pack = torch.nn.utils.rnn.pack_padded_sequence
    unpack = torch.nn.utils.rnn.pad_packed_sequence
    packed = pack(embedding(torch.from_numpy(x)), torch.from_numpy(lengths), enforce_sorted=False)
    y, (h, _) = lstm(packed)
    y, live = unpack(y, total_length=STEPS)[0], torch.arange(STEPS)[:, None] < torch.tensor(lengths)
    features = {
        "all": lambda: y,
        "last": lambda: torch.cat([h[0], h[1]], dim=-1),
        "mean": lambda: y.sum(0) / torch.tensor(lengths)[:, None],
        "max": lambda: y.masked_fill(~live[..., None], -torch.inf).amax(0),
    }[readout]()
    logits, wanted = head(features), torch.from_numpy(targets)
    if readout == "all":
        logits, wanted = logits[live], wanted[live]
    loss = torch.nn.functional.cross_entropy(logits, wanted)
    loss.backward()
    value, grads = model.loss_and_grads(x, targets, lengths)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert value == pytest.approx(loss.item(), rel=tolerance)
    for key, gradient in grads.params.items():
        part, name = key.split(".")
        if part == "recurrent":
            name = name.replace("bias", "bias_ih")
        want = dict(parts[part].named_parameters())[name].grad.numpy()
        assert_close(key, gradient, want, tolerance)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_padding_does_not_count(readout: str, both: bool) -> None:
    x, _ = data(readout, True)
    model = build("gru_before", readout, both=both, dtype="float32")
    model.params["recurrent.bias_l0"][...] = -1.0  # so that 0 is greater than what is read
    whole = model.predict(x, LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = model.predict(x[:length, row : row + 1])
        got = whole[:length, row] if readout == "all" else whole[row]
        assert_close(f"row {row}", got, alone[:, 0] if readout == "all" else alone[0], 1e-6)


@pytest.mark.parametrize("readout", READOUTS)
def test_a_tape_has_its_own_lengths(readout: str) -> None:
    model, lengths = build(readout=readout, embedding=False), LENGTHS.copy()
    outputs, _, tape = model.forward(data(readout, embedding=False)[0], lengths=lengths)
    before, *_ = tape.backward(outputs)
    lengths[:] = STEPS
    after, *_ = tape.backward(outputs)
    assert np.array_equal(before, after)


def test_the_loss_is_over_the_live_steps() -> None:
    x, targets = data("all", True)
    model = build()
    live = live_steps(STEPS, LENGTHS)
    want, _ = rk.softmax_cross_entropy(model.predict(x, LENGTHS), targets, live)
    assert model.evaluate(x, targets, LENGTHS) == want
    assert model.places(x, targets, LENGTHS) == live.sum() == 10
    assert model.places(x, targets) == x.size
    mask = np.random.default_rng(0).random(x.shape) < 0.5
    assert model.places(x, targets, LENGTHS, mask=mask) == (live & mask).sum()
    last = build(readout="last")
    assert last.places(x, targets[0], LENGTHS) == 4
    assert last.places(x, targets[0], LENGTHS, mask=mask[0]) == mask[0].sum()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_batch_first(readout: str, masked: bool) -> None:
    x, targets = data(readout, True)
    one = build(readout=readout, both=True, dtype="float32")
    other = build(readout=readout, both=True, dtype="float32", batch_first=True)
    mask = np.random.default_rng(1).random(targets.shape) < 0.5 if masked else None
    want, grads = one.loss_and_grads(x, targets, LENGTHS, mask=mask)
    if readout == "all":
        targets, mask = targets.T, None if mask is None else mask.T
    got, of_other = other.loss_and_grads(x.T, targets, LENGTHS, mask=mask)
    assert got == pytest.approx(want, rel=1e-6)
    assert other.places(x.T, targets, LENGTHS, mask=mask) > 0
    for name, gradient in grads.params.items():
        assert_close(name, of_other.params[name], gradient, 1e-5)


def test_no_steps_at_all() -> None:
    for readout, steps in itertools.product(READOUTS, (0, 2)):
        model = build(readout=readout, dtype="float32")
        x = np.zeros((steps, 2), np.int64)
        outputs, _, tape = model.forward(x, None, np.zeros(2, np.int64))
        assert_same_bits(
            "outputs", outputs, np.broadcast_to(model.head.params["bias"], outputs.shape)
        )
        grads = tape.backward(np.ones_like(outputs)).params
        assert not grads["recurrent.weight_ih_l0"].any()
        assert grads["head.bias"].sum() == outputs.size


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_parts_of_a_batch(readout: str, batch_first: bool) -> None:
    x, targets = data(readout, True)
    model = build(readout=readout, batch_first=batch_first)
    mask = np.random.default_rng(1).random(targets.shape) < 0.8
    if batch_first:
        x, targets, mask = x.T, targets.T, mask.T
    whole, grads = model.loss_and_grads(x, targets, LENGTHS, mask=mask)
    total, places = 0.0, 0
    summed = np.zeros_like(grads.params["recurrent.weight_hh_l0"])
    for rows in (slice(0, 1), slice(1, 4), slice(4, 4)):
        part = model.part(x, targets, LENGTHS, mask, {4: rows}.__getitem__)
        loss, own = model.loss_and_grads(*part[:3], mask=part[3])
        count = model.places(*part[:3], mask=part[3])
        total, places = total + count * loss, places + count
        summed = summed + count * own.params["recurrent.weight_hh_l0"]
    assert places == model.places(x, targets, LENGTHS, mask=mask)
    assert total / places == pytest.approx(whole, rel=1e-12)
    assert_close("weights", summed / places, grads.params["recurrent.weight_hh_l0"], 1e-12)


@pytest.mark.parametrize("loss", ["mse", "huber", "binary_cross_entropy"])
@pytest.mark.parametrize("readout", ["all", "mean"])
def test_losses_of_numbers(readout: str, loss: str) -> None:
    x, classes = data(readout, True)
    rng = np.random.default_rng(0)
    targets = rng.random((*classes.shape, OUTPUTS))
    model = rk.Model(
        make("gru_before", VOCABULARY, HIDDEN, dtype="float64"),
        rk.Linear(HIDDEN, OUTPUTS, dtype="float64", seed=1),
        readout=readout,
        loss=loss,
    )
    value, grads = model.loss_and_grads(x, targets, LENGTHS)
    outputs = model.predict(x, LENGTHS)
    live = live_steps(STEPS, LENGTHS) if readout == "all" else None
    assert value == getattr(rk, loss)(outputs, targets, live)[0]
    assert_slope(model, grads, lambda: model.evaluate(x, targets, LENGTHS))


def test_another_loss() -> None:
    x, targets = data("last", True)
    model = build(readout="last")

    def twice(outputs: Any, targets: Any, mask: Any) -> Any:
        loss, gradient = rk.softmax_cross_entropy(outputs, targets, mask)
        return 2.0 * loss, 2.0 * gradient

    one, grads = model.loss_and_grads(x, targets, LENGTHS)
    two, doubled = model.loss_and_grads(x, targets, LENGTHS, loss=twice)
    assert two == 2.0 * one
    assert model.evaluate(x, targets, LENGTHS, loss=twice) == two
    assert_close("bias", doubled.params["head.bias"], 2.0 * grads.params["head.bias"], 1e-12)
    with pytest.raises(ValueError, match="loss must be one of 'softmax_cross_entropy'"):
        model.evaluate(x, targets, loss="hinge")


def test_dropout_goes_by_its_key() -> None:
    recurrent = rk.GRU(FEATURES, HIDDEN, 2, dropout=0.5, seed=0)
    model = rk.Model(recurrent, rk.Linear(HIDDEN, OUTPUTS, seed=1))
    x, targets = data("all", False, "float32")
    losses = [model.loss_and_grads(x, targets, dropout_key=key)[0] for key in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(ValueError, match="dropout_key must be given"):
        model.loss_and_grads(x, targets)


@pytest.mark.parametrize("readout", ["all", "last"])
@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_gives_the_outputs_so_far(cell: str, embedding: bool, readout: str) -> None:
    model = build(cell, readout, embedding=embedding, layers=2, dtype="float32")
    x, _ = data("all", embedding, "float32")
    stream = model.stream(len(LENGTHS))
    want = [model.predict(x[: t + 1])[-1 if readout == "all" else slice(None)] for t in range(4)]
    for x_t, outputs in zip(x, want[:2], strict=False):
        assert_close("step", stream.step(x_t), outputs, 1e-6)
    assert_close("block", stream.block(x[2:4]), np.stack(want[2:]), 1e-6)
    state = stream.state
    stream.reset()
    assert_close("reset", stream.step(x[0]), want[0], 1e-6)
    stream.state = state
    assert_same_bits("state", as_tuple(stream.state)[0], as_tuple(state)[0])


@pytest.mark.parametrize("embedding", [False, True])
def test_rows_of_a_stream_come_and_go_as_if_each_were_alone(embedding: bool) -> None:
    model = build(embedding=embedding, layers=2, dtype="float32")
    x, _ = data("all", embedding, "float32")
    stream, alone = model.stream(4), model.stream(1)
    spoilt = x[0].copy()
    spoilt[1] = VOCABULARY + 7
    outputs = stream.step(spoilt, mask=np.array([True, False, True, True]))
    assert not outputs[1].any()
    assert_same_bits("outputs", outputs[2:3], alone.step(x[0, 2:3]))
    stream.remove_rows([0, 1])
    assert stream.add_rows(1).tolist() == [2]
    assert stream.batch == 3
    outputs = stream.step(x[1, [2, 3, 0]])
    assert_same_bits("outputs", outputs[0:1], alone.step(x[1, 2:3]))
    assert_same_bits("a new row", outputs[2:3], model.stream(1).step(x[1, 0:1]))
    stream.set_rows([0], stream.get_rows([2]))
    outputs = stream.step(x[2, [1, 1, 1]])
    assert_same_bits("outputs", outputs[0], outputs[2])
    stream.take(np.array([1, 1, 1]))
    outputs = stream.step(x[2, [1, 1, 1]])
    assert_same_bits("outputs", outputs[0], outputs[1])


def test_a_stream_is_a_snapshot_until_it_is_refreshed() -> None:
    model = build(dtype="float32")
    x, _ = data("all", True)
    stream, old = model.stream(4), model.stream(4)
    for array in model.params.values():
        array *= 0.5
    assert_same_bits("a snapshot", stream.step(x[0]), old.step(x[0]))
    twin = pickle.loads(pickle.dumps(stream))
    stream.refresh()
    stream.reset()
    assert_same_bits("refreshed", stream.step(x[0]), model.stream(4).step(x[0]))
    assert_same_bits("a copy", twin.step(x[1]), old.step(x[1]))
    with pytest.raises(ValueError, match="refresh needs a stream"):
        twin.refresh()


def test_params_are_the_parts_own_and_copies_have_their_own() -> None:
    model = build()
    assert next(iter(model.params)) == "embedding.weight"
    model.params["head.bias"][...] = 7.0
    assert (model.head.params["bias"] == 7.0).all()
    twin = copy.deepcopy(model)
    twin.recurrent.params["bias_l0"][...] = 9.0
    assert (twin.params["recurrent.bias_l0"] == 9.0).all()
    assert not (model.params["recurrent.bias_l0"] == 9.0).any()
    with pytest.raises(AttributeError, match="head of Model is read-only"):
        model.head = rk.Linear(3, 3)


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_files(cell: str, embedding: bool, tmp_path: Path) -> None:
    model = build(cell, "max", embedding=embedding, layers=2, both=True, dtype="float32")
    optimizer = rk.Adam(model)
    x, targets = data("max", embedding, "float32")
    for path in (tmp_path / "one", tmp_path / "two"):
        optimizer.step(model.loss_and_grads(x, targets, LENGTHS)[1])
        rk.save(path, model, optimizer=optimizer)
        found = rk.load_checkpoint(path)
        assert type(found.model) is rk.Model
        assert repr(found.model) == repr(model)
        assert_same_bits("outputs", found.model.predict(x, LENGTHS), model.predict(x, LENGTHS))
    again = rk.Adam(found.model)
    again.load_state_dict(found.optimizer)
    for m, o in ((model, optimizer), (found.model, again)):
        o.step(m.loss_and_grads(x, targets, LENGTHS)[1])
    assert model.params == found.model.params
    rk.save(tmp_path / "three", {"a": model, "b": build("rnn_tanh")})
    loaded = rk.load(tmp_path / "three")
    assert loaded["a"].params == model.params
    assert loaded["b"].embedding.features == FEATURES


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recurrent": rk.Linear(3, 3)}, TypeError, "recurrent must be a recurrent layer, got Lin"),
        ({"head": rk.LSTM(3, 3)}, TypeError, "head must be a Linear, got LSTM"),
        ({"embedding": 5}, TypeError, "embedding must be an Embedding, got int"),
        ({"head": rk.Linear(4, 2)}, ValueError, "head must have in_features=3, as many as"),
        ({"embedding": rk.Embedding(5, 2)}, ValueError, "embedding must have features=4, the rec"),
        ({"head": rk.Linear(3, 2, dtype="float64")}, ValueError, "head must have the dtype of the"),
        ({"readout": "first"}, ValueError, "readout must be one of 'all', 'last', 'mean', 'max'"),
        ({"loss": "hinge"}, ValueError, "loss must be one of 'softmax_cross_entropy'"),
        ({"readouts": "all"}, TypeError, "did you mean 'readout'"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"recurrent": rk.LSTM(4, 3), "head": rk.Linear(3, 2), **change}
    with pytest.raises(error, match=message):
        rk.Model(**arguments)


def test_other_errors_are_named() -> None:
    model = build(both=True)
    with pytest.raises(
        ValueError, match=r"\(T, B\) of tokens or \(T, B, I\), or \(T,\) or \(T, I\)"
    ):
        model.predict(np.zeros((4, 1, 1), np.int64))
    with pytest.raises(ValueError, match=r"x must have shape \(B, T\) of tokens or \(B, T, I\)"):
        build(batch_first=True).predict(np.zeros(4))
    with pytest.raises(ValueError, match="stream needs a layer with bidirectional=False"):
        model.stream()
    for readout in ("mean", "max"):
        with pytest.raises(ValueError, match="stream needs readout='all' or 'last'"):
            build(readout=readout).stream()
    with pytest.raises(ValueError, match=r"tokens in 0\.\.5, got 6"):
        model.predict(np.full((2, 2), 6))
    stream = build(dtype="float32").stream(2)
    with pytest.raises(ValueError, match="x must have shape"):
        stream.step(np.zeros(3, np.int64), mask=np.array([True, False]))
    with pytest.raises(ValueError, match=r"mask must be bool \(2,\), got bool of shape \(5,\)"):
        stream.step(np.zeros(2, np.int64), mask=np.ones(5, bool))


def test_packed_sequences_learn_as_apart() -> None:
    model, (x, targets) = build(layers=2), data("all", True)
    segments = np.repeat([[0], [1]], [2, 4], axis=0) * np.ones(len(LENGTHS), int)
    value, gradients = model.loss_and_grads(x, targets, segments=segments)
    apart = [model.loss_and_grads(x[t], targets[t]) for t in (slice(0, 2), slice(2, 6))]
    shares = np.array([2, 4]) / 6
    assert np.isclose(value, shares @ [own for own, _ in apart], rtol=1e-12)
    assert np.isclose(value, model.evaluate(x, targets, segments=segments), rtol=1e-12)
    for name, array in gradients.params.items():
        both = sum(share * own.params[name] for share, (_, own) in zip(shares, apart, strict=True))
        assert_close(name, array, both, 1e-12)
    truncated = model.loss_and_grads(x, targets, tbptt=2, resets=segments == 9)[1]
    whole = model.loss_and_grads(x, targets)[1]
    assert_same_bits("head", truncated.params["head.weight"], whole.params["head.weight"])
    assert (truncated.params["embedding.weight"] != whole.params["embedding.weight"]).any()
