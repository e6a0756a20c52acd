# SPDX-License-Identifier: Apache-2.0
"""Arguments that are odd but right, and errors that say what was meant and what helps."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_same_bits
from support.layers import CELLS, as_tuple, make

STEPS, BATCH, INPUTS, HIDDEN = 6, 3, 5, 4
FLOATS = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS), np.float32)
TOKENS = np.random.default_rng(0).integers(0, INPUTS, (STEPS, BATCH))
LENGTHS = np.array([6, 2, 4])


def model(**options: Any) -> rk.Seq2Seq:
    return rk.Seq2Seq(INPUTS, 9, HIDDEN, bos=0, eos=8, seed=0, **options)


def unaligned(array: Any) -> Any:
    """The same numbers one byte off their boundaries."""
    raw = np.empty(array.nbytes + 1, np.uint8)
    moved = raw[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


# --- Dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_a_dropout_key_may_be_numpys(dtype: Any) -> None:
    seq, layer = model(num_layers=2, dropout=0.5), make("gru_before", 5, 4, 2, dropout=0.5)
    want, _ = seq.forward(TOKENS, None, TOKENS, dropout_key=200)
    got, _ = seq.forward(TOKENS, None, TOKENS, dropout_key=dtype(200))
    assert_same_bits("logits", got, want)
    assert_same_bits(
        "y",
        layer.forward(FLOATS, dropout_key=dtype(200))[0],
        layer.forward(FLOATS, dropout_key=200)[0],
    )


BAD_KEYS = [(True, TypeError), ("abc", TypeError), (1.0, TypeError), (-1, ValueError)]


@pytest.mark.parametrize(("key", "error"), [*BAD_KEYS, (2**64, ValueError)])
@pytest.mark.parametrize("layers", [1, 2])
def test_bad_dropout_keys_of_a_layer(layers: int, key: Any, error: type[Exception]) -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, layers)
    with pytest.raises(error, match="dropout_key must be"):
        layer.forward(FLOATS, dropout_key=key)


@pytest.mark.parametrize(("key", "error"), [*BAD_KEYS, (2**63, ValueError)])
def test_bad_dropout_keys_of_a_model(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="dropout_key must be"):
        model().forward(TOKENS, None, TOKENS, dropout_key=key)


def test_the_largest_dropout_keys() -> None:
    rk.LSTM(INPUTS, HIDDEN, 2, dropout=0.5).forward(FLOATS, dropout_key=2**64 - 1)
    model(num_layers=2, dropout=0.5).forward(TOKENS, None, TOKENS, dropout_key=2**63 - 1)


@pytest.mark.parametrize("make", [lambda: rk.GRU(5, 4, dropout=0.5), lambda: model(dropout=0.5)])
def test_dropout_of_one_layer_is_warned_of(make: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        make()
    assert [str(w.message) for w in caught] == [
        "dropout=0.5 does nothing with num_layers=1: it lies between layers"
    ]
    assert caught[0].filename == __file__


# --- Tokens, lengths, states ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint8])
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}])
def test_padding_of_tokens_past_the_lengths(dtype: Any, options: dict[str, Any]) -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, seed=0, **options)
    past = np.arange(STEPS)[:, None] >= LENGTHS
    tokens = TOKENS.astype(dtype)
    tokens[past] = np.iinfo(dtype).max
    got, want = (
        layer(t.T.copy() if layer.batch_first else t, None, LENGTHS)[0] for t in (tokens, TOKENS)
    )
    assert_same_bits("y", got, want)


def test_padding_of_a_models_tokens() -> None:
    seq, padded = model(), TOKENS.astype(np.uint64)
    padded[np.arange(STEPS)[:, None] >= LENGTHS] = 2**64 - 1
    got, _ = seq.forward(padded, LENGTHS, padded, LENGTHS)
    want, _ = seq.forward(TOKENS, LENGTHS, TOKENS, LENGTHS)
    assert_same_bits("logits", got, want)


def test_a_live_token_too_large_is_told_as_it_is() -> None:
    tokens = TOKENS.astype(np.uint64)
    tokens[1, 1] = 2**64 - 2
    with pytest.raises(ValueError, match=rf"tokens in 0\.\.4, got {2**64 - 2}"):
        rk.LSTM(INPUTS, HIDDEN)(tokens, None, LENGTHS)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}])
def test_unaligned_tokens_are_copied(options: dict[str, Any]) -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, seed=0, **options)
    assert_same_bits("y", layer(unaligned(TOKENS))[0], layer(TOKENS)[0])
    fields = np.zeros(TOKENS.shape, [("flag", "u1"), ("token", "i8")])
    fields["token"] = TOKENS
    assert_same_bits("y", layer(fields["token"])[0], layer(TOKENS)[0])
    stream = layer.stream(BATCH)
    assert_same_bits("step", stream.step(unaligned(TOKENS[0])), layer.stream(BATCH).step(TOKENS[0]))


def test_odd_strides_of_an_axis_of_one() -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, seed=0)
    fields = np.zeros((1, 1), [("pad", "f4"), ("x", "f4", INPUTS), ("flag", "u1")])
    fields["x"] = FLOATS[:1, :1]
    assert_same_bits("y", layer(fields["x"])[0], layer(FLOATS[:1, :1].copy())[0])


def test_integers_of_three_axes_are_told_to_be_tokens() -> None:
    with pytest.raises(ValueError, match=r"integers, which are tokens: \.astype\('float32'\)"):
        rk.LSTM(INPUTS, HIDDEN)(np.zeros((STEPS, BATCH, INPUTS), int))


def test_a_token_out_of_range_says_that_integers_are_tokens() -> None:
    with pytest.raises(ValueError, match=r"got 7 at .*: integers are tokens, features are floats"):
        rk.LSTM(INPUTS, HIDDEN)(np.full((STEPS, INPUTS), 7))


@pytest.mark.parametrize(
    "lengths", [np.array([6, 2, 4], "m8[s]"), np.array([True] * 3), [6.0, 2.0, 4.0], ["6"] * 3]
)
def test_lengths_are_integers(lengths: Any) -> None:
    for call in (rk.LSTM(INPUTS, HIDDEN), rk.LSTM(INPUTS, HIDDEN).freeze()):
        with pytest.raises(TypeError, match="lengths must be an integer array, got"):
            call(FLOATS, None, lengths)
    with pytest.raises(TypeError, match="lengths must be an integer array, got"):
        model().forward(TOKENS, lengths, TOKENS)


def test_spans_of_time_are_no_tokens() -> None:
    spans = TOKENS.astype("m8[s]")
    calls: list[Callable[[], Any]] = [
        lambda: rk.LSTM(INPUTS, HIDDEN)(spans),
        lambda: rk.LSTM(INPUTS, HIDDEN).stream(BATCH).step(spans[0]),
        lambda: model().forward(spans, None, TOKENS),
        lambda: rk.softmax_cross_entropy(FLOATS, spans),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="must"):
            call()


def test_half_of_a_state_may_be_none() -> None:
    layer = make("lstm", INPUTS, HIDDEN, 2)
    h, zero = np.ones((2, BATCH, HIDDEN), np.float32), np.zeros((2, BATCH, HIDDEN), np.float32)
    _, _, tape = layer.forward(FLOATS)
    for given, full in [((h, None), (h, zero)), ((None, h), (zero, h)), ((None, None), None)]:
        assert_same_bits("y", layer(FLOATS, given)[0], layer(FLOATS, full)[0])
        got, want = tape.backward(dstate=given), tape.backward(dstate=full)
        assert_same_bits("dx", got[0], want[0])
        for name, gradient in want[2].items():
            assert_same_bits(name, got[2][name], gradient)
    assert np.all(h == 1.0)


# --- Kinds of arrays ------------------------------------------------------------------------------


def masked(array: Any) -> Any:
    return np.ma.masked_array(array, np.zeros(array.shape, bool))


def every_argument() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Name -> what is right there, and a call that takes it."""
    layer, linear, seq = make("lstm", INPUTS, HIDDEN), rk.Linear(INPUTS, HIDDEN), model()
    y, state, tape = layer.forward(FLOATS)
    z, linear_tape = linear.forward(FLOATS)
    _, seq_tape = seq.forward(TOKENS, None, TOKENS)
    stream = layer.stream(BATCH)
    h, logits, mask = np.ones_like(state[0]), FLOATS, np.ones((STEPS, BATCH), bool)
    grads = {name: np.ones_like(p) for name, p in linear.params.items()}
    optimizer = rk.Adam(linear.params)
    return {
        "x": (FLOATS, layer),
        "x of tokens": (TOKENS, layer),
        "x of a frozen layer": (FLOATS, layer.freeze()),
        "x of Linear": (FLOATS, linear),
        "x of a step": (FLOATS[0].copy(), stream.step),
        "x of a block": (FLOATS, stream.block),
        "state['h']": (h, lambda a: layer(FLOATS, (a, h))),
        "state['c'] of a stream": (h, lambda a: setattr(stream, "state", (h, a))),
        "lengths": (LENGTHS, lambda a: layer(FLOATS, None, a)),
        "dy": (y, tape.backward),
        "dstate['c']": (h, lambda a: tape.backward(None, (h, a))),
        "dy of Linear": (z, linear_tape.backward),
        "source": (TOKENS, lambda a: seq.forward(a, None, TOKENS)),
        "target": (TOKENS, lambda a: seq.forward(TOKENS, None, a)),
        "dy of a model": (np.zeros((STEPS, BATCH, 9), np.float32), seq_tape.backward),
        "logits": (logits, lambda a: rk.softmax_cross_entropy(a, TOKENS)),
        "targets": (TOKENS, lambda a: rk.softmax_cross_entropy(logits, a)),
        "mask": (mask, lambda a: rk.softmax_cross_entropy(logits, TOKENS, a)),
        "mask of reset": (mask[0].copy(), stream.reset),
        "params['weight']": (
            np.ones((HIDDEN, INPUTS), np.float32),
            lambda a: linear.params.__setitem__("weight", a),
        ),
        "grads['bias']": (grads["bias"], lambda a: optimizer.step({**grads, "bias": a})),
    }


@pytest.mark.parametrize("name", list(every_argument()))
def test_masked_arrays_are_refused(name: str) -> None:
    value, call = every_argument()[name]
    call(value)
    with pytest.raises(TypeError, match=re.escape(name.split(" ")[0]) + " must be .* mask"):
        call(masked(value))


@pytest.mark.parametrize("name", list(every_argument()))
def test_tensors_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    value, call = every_argument()[name]
    tensor = torch.from_numpy(value.copy())
    call(tensor)
    told = re.escape(name.split(" ")[0])
    if tensor.is_floating_point():
        with pytest.raises(TypeError, match=rf"{told} cannot be read .*: \.detach\(\) gives"):
            call(tensor.requires_grad_())
        with pytest.raises(TypeError, match=rf"{told} must be float32.* got float16: .*\.to\(tor"):
            call(tensor.detach().half())
        with pytest.raises(TypeError, match=rf"{told} cannot be read .*\.float\(\)"):
            call(tensor.detach().bfloat16())


@pytest.mark.parametrize("name", list(every_argument()))
def test_lists_that_are_no_arrays(name: str) -> None:
    _, call = every_argument()[name]
    told = re.escape(name.split(" ")[0])
    for value in ([[1.0], [1.0, 2.0]], [object()], {"a": 1}):
        with pytest.raises(TypeError, match=f"{told} must be an array of numbers, got <class '"):
            call(value)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_an_array() -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, seed=0)
    assert_same_bits("y", layer(np.asmatrix(FLOATS[:, 0]))[0], layer(FLOATS[:, 0])[0])


# --- Nothing to compute ---------------------------------------------------------------------------

EMPTY = [(0, BATCH), (STEPS, 0), (0, 0)]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", ["floats", "tokens"])
@pytest.mark.parametrize(("steps", "batch"), EMPTY)
@pytest.mark.parametrize("cell", CELLS)
def test_empty_layers(
    cell: str, steps: int, batch: int, kind: str, options: dict[str, Any]
) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, dropout=0.5, **options)
    features = HIDDEN * layer.num_directions
    sizes = (batch, steps) if layer.batch_first else (steps, batch)
    x = np.zeros(sizes, int) if kind == "tokens" else np.zeros((*sizes, INPUTS), np.float32)
    shape = (2 * layer.num_directions, batch, HIDDEN)
    h = np.random.default_rng(0).standard_normal(shape, np.float32)
    state = (h, h + 1) if cell == "lstm" else h
    for lengths in (None, np.zeros(batch, int), [0] * batch):
        y, last = layer(x, state, lengths)
        frozen_y, _ = layer.freeze()(x, state, lengths)
        out = np.empty((*sizes, features), np.float32)
        assert layer(x, state, lengths, out=out)[0] is out
        trained_y, trained_last, tape = layer.forward(x, state, lengths, dropout_key=1)
        for got in (y, frozen_y, trained_y):
            assert (got.shape, got.dtype) == ((*sizes, features), np.float32)
        for got, again, want in zip(
            *(as_tuple(s) for s in (last, trained_last, state)), strict=True
        ):
            assert_same_bits("state", got, want)
            assert_same_bits("state", again, want)
            assert not np.shares_memory(got, want)
        dx, dstate, grads, traces = tape.backward(y, state, state_gradients=True)
        assert (dx is None) if kind == "tokens" else (dx.shape == x.shape)
        for got, want in zip(as_tuple(dstate), as_tuple(state), strict=True):
            assert_same_bits("dstate", got, want)
        assert {n: g.shape for n, g in grads.items()} == {
            n: p.shape for n, p in layer.params.items()
        }
        assert not any(g.any() for g in grads.values())
        assert all(g.shape == y.shape for of in tape.gates() for g in of.values())
        assert all(trace.h.shape == y.shape for trace in traces)


def test_an_empty_sequence_without_a_batch_axis() -> None:
    layer = make("gru_before", INPUTS, HIDDEN)
    h = np.ones((1, HIDDEN), np.float32)
    y, last, tape = layer.forward(np.zeros((0, INPUTS), np.float32), h)
    assert y.shape == (0, HIDDEN)
    assert_same_bits("state", last, h)
    assert tape.backward(y)[0].shape == (0, INPUTS)


@pytest.mark.parametrize("cell", CELLS)
def test_empty_streams(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2)
    stream = layer.stream(BATCH)
    stream.step(FLOATS[0].copy())
    before = as_tuple(stream.state)
    assert stream.block(FLOATS[:0]).shape == (0, BATCH, HIDDEN)
    assert stream.block(TOKENS[:0]).shape == (0, BATCH, HIDDEN)
    for got, want in zip(as_tuple(stream.state), before, strict=True):
        assert_same_bits("state", got, want)
    nobody = layer.stream(0)
    assert nobody.step(FLOATS[0, :0]).shape == (0, HIDDEN)
    assert nobody.step(TOKENS[0, :0]).shape == (0, HIDDEN)
    assert nobody.block(FLOATS[:, :0]).shape == (STEPS, 0, HIDDEN)
    nobody.reset()


@pytest.mark.parametrize(("steps", "batch"), EMPTY)
def test_empty_models(steps: int, batch: int) -> None:
    seq = model()
    tokens = np.zeros((steps, batch), int)
    for source, target in [(tokens, tokens), (np.zeros((2, batch), int), tokens)]:
        logits, tape = seq.forward(source, None, target)
        assert logits.shape == (steps, batch, 9)
        loss, dlogits = rk.softmax_cross_entropy(logits, target)
        assert loss == 0.0
        assert not any(g.any() for g in tape.backward(dlogits).values())


@pytest.mark.parametrize(("steps", "batch"), EMPTY)
def test_answers_to_no_source(steps: int, batch: int) -> None:
    seq, source = model(), np.zeros((steps, batch), int)
    tokens, lengths = seq.greedy(source, None, 4)
    assert tokens.shape[1:] == lengths.shape == (batch,)
    best, lengths, scores = seq.beam(source, None, 4, width=2)
    assert best.shape[1:] == lengths.shape == scores.shape == (batch,)
    for array in (tokens, best, lengths):
        assert array.dtype == np.int64
    assert scores.dtype == np.float64


@pytest.mark.parametrize("shape", [(0, INPUTS), (0, 3, INPUTS), (3, 0, INPUTS)])
def test_empty_maps_and_losses(shape: tuple[int, ...]) -> None:
    linear, x = rk.Linear(INPUTS, HIDDEN), np.zeros(shape, np.float32)
    y, tape = linear.forward(x)
    assert y.shape == (*shape[:-1], HIDDEN)
    dx, grads = tape.backward(y)
    assert dx.shape == shape
    assert {n: g.shape for n, g in grads.items()} == {n: p.shape for n, p in linear.params.items()}
    assert not any(g.any() for g in grads.values())
    loss, gradient = rk.softmax_cross_entropy(y, np.zeros(shape[:-1], int))
    assert loss == 0.0
    assert gradient.shape == y.shape
    assert gradient.dtype == np.float32


# --- Options --------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[..., Any]] = {
    "LSTM": lambda **o: rk.LSTM(5, 4, **o),
    "GRU": lambda **o: rk.GRU(5, 4, **o),
    "RNN": lambda **o: rk.RNN(5, 4, **o),
    "SimplifiedGRU": lambda **o: rk.SimplifiedGRU(5, 4, **o),
    "Linear": lambda **o: rk.Linear(5, 4, **o),
    "Seq2Seq": lambda **o: rk.Seq2Seq(5, 4, 3, bos=0, eos=1, **o),
    "Adam": lambda **o: rk.Adam(rk.Linear(5, 4), **o),
    "SGD": lambda **o: rk.SGD(rk.Linear(5, 4), 0.1, **o),
}
MISSPELT = {"Linear": ("biass", "bias"), "Adam": ("beta", "betas"), "SGD": ("momentun", "momentum")}


@pytest.mark.parametrize("name", MAKERS)
def test_misspelt_options(name: str) -> None:
    wrong, right = MISSPELT.get(name, ("bidirectionl", "bidirectional"))
    with pytest.raises(TypeError, match=f"^{name} has no argument '{wrong}': did .* '{right}'"):
        MAKERS[name](**{wrong: True})
    with pytest.raises(TypeError, match=f"^{name} has no argument 'xyz': only .*{right}"):
        MAKERS[name](xyz=1)


def test_options_that_are_not_there_yet() -> None:
    for option in ({"proj_size": 3}, {"proj_size": 0}):
        with pytest.raises(TypeError, match=r"'proj_size': projections .* not supported yet"):
            MAKERS["LSTM"](**option)
    with pytest.raises(TypeError, match="LSTM has no argument 'bais': did you mean 'bias'"):
        model(cell_options={"bais": False})


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "SimplifiedGRU", "Linear", "Seq2Seq"])
def test_spellings_of_dtype(name: str) -> None:
    for wide in ("float64", "f8", "double", float, np.float64, np.dtype("float64")):
        config = MAKERS[name](dtype=wide).config()
        assert config["dtype"] == "float64"
    for narrow in ("float32", "f4", np.float32, np.dtype("float32")):
        assert MAKERS[name](dtype=narrow).config()["dtype"] == "float32"
    wanted = "dtype must be 'float32' or 'float64', got "
    unknown: list[Any] = [None, "float23", [1, 2], {}]
    for wrong in unknown:
        with pytest.raises((TypeError, ValueError), match=wanted):
            MAKERS[name](dtype=wrong)
    for other in ("float16", int, ">f8"):
        with pytest.raises(ValueError, match=wanted):
            MAKERS[name](dtype=other)


FACTS = {
    "LSTM": [*rk.LSTM(1, 1).config(), "num_directions"],
    "GRU": ["reset"],
    "RNN": ["nonlinearity"],
    "Linear": list(rk.Linear(1, 1).config()),
    "Seq2Seq": ["bos", "eos", "device", "encoder"],
}


@pytest.mark.parametrize(("name", "fact"), [(n, f) for n, facts in FACTS.items() for f in facts])
def test_facts_are_read_only(name: str, fact: str) -> None:
    made = MAKERS[name]()
    before = getattr(made, fact)
    with pytest.raises(AttributeError, match=f"{fact}.*{name}"):
        setattr(made, fact, 3)
    with pytest.raises(AttributeError):
        delattr(made, fact)
    assert getattr(made, fact) is before
    made.note = "what is not ours may be set"
    made.note = "again"


def test_facts_of_a_stream() -> None:
    with pytest.raises(AttributeError, match="batch"):
        rk.LSTM(5, 4).stream().batch = 3  # type: ignore[misc]


# --- Floating-point errors ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e38])
@pytest.mark.parametrize("cell", CELLS)
def test_whatever_seterr_says(cell: str, scale: float) -> None:
    x = FLOATS * np.float32(1.0 if scale > 1 else scale)
    with np.errstate(all="raise"):
        layer = make(cell, INPUTS, HIDDEN, 2, dropout=0.5, seed=0)
        head = rk.Linear(HIDDEN, 9)
        optimizers = [
            rk.Adam([layer, head]),
            rk.SGD([layer, head], 0.1, momentum=0.9, nesterov=True, weight_decay=1e-30),
        ]
        y, _, tape = layer.forward(x, dropout_key=1)
        logits, head_tape = head.forward(y)
        rk.softmax_cross_entropy(logits, TOKENS)
        dlogits = np.full_like(logits, scale)
        dy, of_head = head_tape.backward(dlogits)
        _, _, grads = tape.backward(dy)
        layer.stream(BATCH, weights="bfloat16").block(x)
        rk.clip_grad_norm([grads, of_head], 1e-30)
        rk.clip_grad_value([grads, of_head], 1e-30)
        for optimizer in optimizers:
            optimizer.step([grads, of_head])


def test_whatever_seterr_says_of_answers() -> None:
    seq = model()
    seq.params["output.bias"][3] = 1e4
    with np.errstate(all="raise"):
        seq.greedy(TOKENS, None, 3)
        seq.beam(TOKENS, None, 3, width=2)
        seq.beam(TOKENS, None, 3, width=3, length_penalty=1.0)


def test_a_forget_bias_fits_the_dtype() -> None:
    rk.LSTM(2, 2, forget_bias=1e300, dtype="float64")
    with pytest.raises(ValueError, match="forget_bias must be a finite number of at least -3"):
        rk.LSTM(2, 2, forget_bias=1e300)


# --- Copies and pickles ---------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_frozen_layers(cell: str, how: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, batch_first=True)
    frozen = layer.freeze()
    x = FLOATS.swapaxes(0, 1)
    want = layer(x)[0]
    for array in layer.params.values():
        array[...] = np.nan
    assert_same_bits("y", COPIES[how](frozen)(x)[0], want)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_streams_share_nothing(cell: str, weights: str | None, how: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2)
    stream, again = layer.stream(BATCH, weights=weights), layer.stream(BATCH, weights=weights)
    for s in (stream, again):
        s.block(FLOATS[:2])
    twin = COPIES[how](stream)
    assert twin.batch == BATCH
    twin.reset()
    for x in FLOATS[2:4].copy():  # the twin moves nothing here
        assert_same_bits("y", stream.step(x), again.step(x))
    fresh = layer.stream(BATCH, weights=weights)
    assert_same_bits("y", twin.block(FLOATS), fresh.block(FLOATS))
    later = COPIES[how](stream)
    for x in FLOATS[4:].copy():
        y = stream.step(x)
        assert_same_bits("y", later.step(x), y)


@pytest.mark.parametrize("cell", CELLS)
def test_copies_of_tapes(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, dropout=0.5)
    x = FLOATS.copy()
    y, _, tape = layer.forward(x, dropout_key=1)
    dy = np.ones_like(y)
    _, _, want = tape.backward(dy)
    shallow, deep = copy.copy(tape), copy.deepcopy(tape)
    for array in layer.params.values():
        array += 1.0
    for name, gradient in want.items():
        assert_same_bits(name, shallow.backward(dy)[2][name], gradient)
    x[...] = np.nan  # a deep copy has an x of its own
    for name, gradient in want.items():
        assert_same_bits(name, deep.backward(dy)[2][name], gradient)
    with pytest.raises(TypeError, match="Tape cannot be pickled, since its weights are packed"):
        pickle.dumps(tape)


def test_copies_of_other_tapes() -> None:
    linear, seq = rk.Linear(INPUTS, HIDDEN), model()
    y, tape = linear.forward(FLOATS)
    for how in COPIES.values():
        assert_same_bits(
            "weight", how(tape).backward(y)[1]["weight"], tape.backward(y)[1]["weight"]
        )
    logits, seq_tape = seq.forward(TOKENS, None, TOKENS)
    want = seq_tape.backward(logits)
    for how in (copy.copy, copy.deepcopy):
        for name, gradient in how(seq_tape).backward(logits).items():
            assert_same_bits(name, gradient, want[name])
    with pytest.raises(TypeError, match="Tape cannot be pickled"):
        pickle.dumps(seq_tape)


def test_a_frozen_linear_can_be_copied() -> None:
    layer = rk.Linear(3, 2, seed=0)
    frozen = layer.freeze()
    x = np.ones((4, 3), np.float32)
    want = layer(x)
    layer.params["weight"][...] = 0.0
    for twin in (copy.copy(frozen), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        np.testing.assert_array_equal(twin(x), want)


@pytest.mark.parametrize("text", ["f4,f4", "(", "1(", "float32 if"])
def test_text_that_is_no_dtype(text: str) -> None:
    with pytest.raises((TypeError, ValueError), match="dtype must be 'float32' or 'float64'"):
        rk.Linear(1, 1, dtype=text)


def test_a_number_beyond_every_float() -> None:
    with pytest.raises(ValueError, match="max_norm must be a finite number above 0"):
        rk.clip_grad_norm({"p": np.ones(1)}, 10**400)
