# SPDX-License-Identifier: Apache-2.0
"""Arguments that are odd but right, and errors that say what was meant and what helps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.arguments import (
    BATCH,
    FLOATS,
    HIDDEN,
    INPUTS,
    LENGTHS,
    STEPS,
    TOKENS,
    model,
    unaligned,
)
from support.compare import assert_same_bits
from support.layers import make
from support.marks import live_steps

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


@pytest.mark.parametrize(
    "make",
    [
        lambda: rk.GRU(5, 4, dropout=0.5),
        lambda: rk.Seq2Seq(5, 9, 4, bos=0, eos=8, dropout=0.5),
    ],
)
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
    past = ~live_steps(STEPS, LENGTHS)
    tokens = TOKENS.astype(dtype)
    tokens[past] = np.iinfo(dtype).max
    got, want = (
        layer(t.T.copy() if layer.batch_first else t, None, LENGTHS)[0] for t in (tokens, TOKENS)
    )
    assert_same_bits("y", got, want)


def test_padding_of_a_models_tokens() -> None:
    seq, padded = model(), TOKENS.astype(np.uint64)
    padded[~live_steps(STEPS, LENGTHS)] = 2**64 - 1
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


def test_integers_that_may_be_features_are_told_to_be_tokens() -> None:
    """(T, I) of integers below I is (T, B) of tokens: a batch's size decides nothing."""
    layer = rk.RNN(INPUTS, HIDDEN, seed=0)
    x, state = np.zeros((STEPS, INPUTS), int), np.zeros((1, HIDDEN), np.float32)
    one_hot = np.eye(INPUTS, dtype=np.float32)[x]
    assert_same_bits("y", layer(x)[0], layer(one_hot)[0])
    with pytest.raises(
        ValueError, match=r"batch of tokens.*if it is features, \.astype\('float32'"
    ):
        layer(x, state)
    assert layer(x.astype(np.float32), state)[0].shape == (STEPS, HIDDEN)
    assert layer(x[:, 0], state)[0].shape == (STEPS, HIDDEN)
    with pytest.raises(ValueError, match=r"got \(1, \d+\)$"):
        layer(x[:, 1:], state)  # which cannot be features


@pytest.mark.parametrize(
    "lengths", [np.array([6, 2, 4], "m8[s]"), np.array([True] * 3), [6.0, 2.0, 4.0]]
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
    for text in ("abc", ["abc", "de"], b"abc", np.array(["abc"])):
        with pytest.raises(TypeError, match=rf"{told} must be .* the text .*np\.frombuffer\(text"):
            call(text)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_an_array() -> None:
    layer = rk.LSTM(INPUTS, HIDDEN, seed=0)
    assert_same_bits("y", layer(np.asmatrix(FLOATS[:, 0]))[0], layer(FLOATS[:, 0])[0])


def _written(**options: Any) -> Callable[[], Any]:
    def write() -> None:
        pytest.importorskip("onnx")
        rk.GRU(2, 3).to_onnx("nowhere.onnx", **options)

    return write


def _gradients(**options: Any) -> Callable[[], Any]:
    y, _, tape = rk.GRU(INPUTS, HIDDEN).forward(FLOATS)
    return lambda: tape.backward(y, **options)


SWITCHES: dict[str, Callable[[], Any]] = {
    "x_gradient": _gradients(x_gradient="no"),
    "state_gradients": _gradients(state_gradients="no"),
    "training": lambda: rk.GRU(2, 3).plan(4, 5, training="no"),  # type: ignore[arg-type]
    "arrays": lambda: rk.Linear(2, 3).to_torch(arrays="no"),  # type: ignore[arg-type]
    "state": _written(state="no"),
    "lengths": _written(lengths="no"),
    "tokens": _written(tokens="no"),
    "batch_first": lambda: rk.pad([[1, 2]], batch_first="no"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_calls_are_true_or_false(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        SWITCHES[name]()
