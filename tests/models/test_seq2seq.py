# SPDX-License-Identifier: Apache-2.0
"""Seq2Seq: gradients by finite differences, decoding against brute force."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import _core
from rnnkern.cells import layer_classes

from support.differences import differences
from support.threads import using_threads

BOS, EOS, SOURCE, TARGET = 0, 1, 5, 4
MODELS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "RNN"},
    "relu": {"cell": "RNN", "cell_options": {"nonlinearity": "relu"}},
    "simplified_gru": {"cell": "SimplifiedGRU"},
    "gru_before": {"cell": "GRU"},
    "gru_after": {"cell": "GRU", "cell_options": {"reset": "after"}},
    "lstm": {"cell": "LSTM"},
    "stacked": {"cell": "LSTM", "num_layers": 2},
    "bidirectional": {"cell": "LSTM", "bidirectional": True},
    "both": {"cell": "GRU", "num_layers": 2, "bidirectional": True},
    "lstm_to_gru": {
        "decoder_cell": "GRU",
        "decoder_options": {"reset": "after"},
        "bidirectional": True,
    },
    "gru_to_lstm": {"cell": "GRU", "decoder_cell": "LSTM", "num_layers": 2},
    "attention": {"cell": "LSTM", "attention": "dot"},
    "attention_both": {"cell": "GRU", "num_layers": 2, "bidirectional": True, "attention": "dot"},
}
# Seeds of parameters with which greedy answers are of several lengths.
VARIED = {"lstm": 1, "both": 8, "lstm_to_gru": 2, "attention_both": 2}
SOURCE_LENGTHS, TARGET_LENGTHS = np.array([3, 1, 4]), np.array([2, 3, 0])


def make(name: str, dtype: str = "float64", **options: Any) -> rk.Seq2Seq:
    """A model whose answers vary in length: its parameters are larger than a fresh one's."""
    rng = np.random.default_rng(VARIED.get(name, 0))
    model = rk.Seq2Seq(
        SOURCE, TARGET, 3, bos=BOS, eos=EOS, dtype=dtype, seed=0, **MODELS[name], **options
    )
    for p in model.params.values():
        p[...] = rng.normal(0.0, 1.5, p.shape)
    return model


def tokens(shape: tuple[int, ...], vocabulary: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, vocabulary, shape)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    model = make(name)
    source, target = tokens((4, 3), SOURCE), tokens((3, 3), TARGET, 1)
    arguments = (source, SOURCE_LENGTHS, target, TARGET_LENGTHS)
    logits, tape = model.forward(*arguments)
    weights = np.random.default_rng(2).standard_normal(logits.shape)
    found = tape.backward(weights)
    assert isinstance(found, rk.Gradients)
    assert (found.x, found.state, found.steps) == (None, None, None)
    grads = found.params
    assert list(grads) == list(model.params)
    with pytest.raises(TypeError, match=r"'output.bias': .params has the names"):
        found["output.bias"]  # type: ignore[index]

    def loss() -> float:
        return float(np.sum(model.forward(*arguments)[0] * weights))

    for key, p in model.params.items():
        want = differences(loss, p)
        assert np.linalg.norm(grads[key] - want) <= 1e-6 * np.linalg.norm(want) + 1e-9, key


@pytest.mark.parametrize("name", MODELS)
def test_a_row_does_not_see_its_neighbours(name: str) -> None:
    model = make(name)
    source, target = tokens((4, 3), SOURCE), tokens((3, 3), TARGET, 1)
    logits, _ = model.forward(source, SOURCE_LENGTHS, target, TARGET_LENGTHS)
    for row, (s, t) in enumerate(zip(SOURCE_LENGTHS, TARGET_LENGTHS, strict=True)):
        np.testing.assert_array_equal(
            logits[t:, row], np.tile(model.params["output.bias"], (3 - t, 1))
        )
        if t == 0:
            continue
        alone, _ = model.forward(source[:s, row : row + 1], None, target[:t, row : row + 1])
        np.testing.assert_allclose(logits[:t, row], alone[:, 0], rtol=1e-10, atol=1e-12)


def test_parameters_are_the_parts_own_arrays() -> None:
    model = make("both")
    for part in ("encoder", "decoder", "output"):
        for name, p in getattr(model, part).params.items():
            assert model.params[f"{part}.{name}"] is p
    assert model.params["decoder.weight_hh_l0"].shape == (3 * 6, 6)


def test_seeds_and_config() -> None:
    first = make("lstm_to_gru")
    again = make("lstm_to_gru")
    assert again.config() == first.config() == rk.Seq2Seq(**first.config()).config()
    for name, p in first.params.items():
        assert p.tobytes() == again.params[name].tobytes()


def test_dropout_follows_its_key() -> None:
    model = make("stacked", dropout=0.5)
    arguments = (tokens((4, 3), SOURCE), None, tokens((3, 3), TARGET))
    logits = {
        key: [model.forward(*arguments, dropout_key=key)[0] for _ in range(2)] for key in (1, 2)
    }
    for pair in logits.values():
        assert pair[0].tobytes() == pair[1].tobytes()
    assert logits[1][0].tobytes() != logits[2][0].tobytes()
    with pytest.raises(ValueError, match="dropout_key"):
        model.forward(*arguments)


def test_no_two_keys_drop_the_same_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither do encoder and decoder: at every key each has a key of its own."""
    model = make("stacked", dropout=0.5)
    forward, keys = rk.LSTM.forward, []

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        keys.append(options["dropout_key"])
        return forward(self, *arguments, **options)

    monkeypatch.setattr(rk.LSTM, "forward", noted)
    for key in range(3):
        model.forward(tokens((4, 3), SOURCE), None, tokens((3, 3), TARGET), dropout_key=key)
    assert len(set(keys)) == len(keys) == 6


def log_probability(model: Any, source: Any, answer: tuple[int, ...]) -> float:
    """Of ``answer``, its eos included if it has one, by teacher forcing in float64."""
    fed = np.array([BOS, *answer[:-1]])[:, np.newaxis]
    logits = model.forward(source[:, np.newaxis], None, fed)[0][:, 0].astype(np.float64)
    steps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(steps[np.arange(len(answer)), answer].sum())


def answers(max_length: int) -> list[tuple[int, ...]]:
    """All that a decoder may produce: an eos can only be the last token."""
    others = [t for t in range(TARGET) if t != EOS]
    return [
        (*body, *end)
        for length in range(max_length + 1)
        for body in itertools.product(others, repeat=length)
        for end in ([(EOS,)] if length < max_length else [()])
    ]


@pytest.mark.parametrize("name", ["lstm", "both", "lstm_to_gru", "attention_both"])
def test_greedy_takes_the_likeliest_token_of_each_step(name: str) -> None:
    model = make(name)
    source, lengths = tokens((4, 16), SOURCE), 1 + tokens((16,), 4)
    decoded, decoded_lengths = model.greedy(source, lengths, 5)
    assert decoded.dtype == decoded_lengths.dtype == np.int64
    assert len(set(decoded_lengths.tolist())) > 1, "the rows should end at different steps"
    for row in range(16):
        fed = [BOS]
        while len(fed) == 1 or (len(fed) < 6 and fed[-1] != EOS):
            logits, _ = model.forward(
                source[: lengths[row], row : row + 1], None, np.array(fed)[:, np.newaxis]
            )
            fed.append(int(logits[-1, 0].argmax()))
        body = fed[1:-1] if fed[-1] == EOS else fed[1:]
        assert decoded[: decoded_lengths[row], row].tolist() == body
        assert np.all(decoded[decoded_lengths[row] :, row] == EOS)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize(("hidden", "batch"), [(16, 1), (20, 5), (128, 64)])
def test_greedy_is_a_loop_over_the_stream(
    hidden: int, batch: int, compute: str | None, threads: int
) -> None:
    """Bit for bit; of the largest size threads share a step."""
    model = rk.Seq2Seq(SOURCE, 300, hidden, bos=BOS, eos=EOS, compute=compute, seed=0)
    model.params["output.bias"][EOS] = -1e9
    source = tokens((4, batch), SOURCE)
    with using_threads(threads):
        decoded, lengths = model.greedy(source, None, 12)
        _, state = model.encoder(source)
        stream = model.decoder.stream(batch)
        stream.state = state
        fed = np.full(batch, BOS)
        for step in decoded:
            fed = model.output(stream.step(fed)).argmax(axis=-1)
            np.testing.assert_array_equal(step, fed)
    np.testing.assert_array_equal(lengths, 12)


@pytest.mark.parametrize("cell", layer_classes())
@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("batch", [1, 16])
def test_logits_of_decoding_are_those_of_teacher_forcing(
    cell: str, compute: str | None, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rk.Seq2Seq(
        *(SOURCE, 40, 24), bos=BOS, eos=EOS, cell=cell, num_layers=2, compute=compute, seed=3
    )
    model.params["output.bias"][EOS] = -1e9
    source = tokens((4, batch), SOURCE)
    heard: list[Any] = []
    decoding = model._decoding

    def listening(*arguments: Any) -> Any:
        decoder = decoding(*arguments)
        step = decoder.step

        def heard_step(token: Any) -> Any:
            heard.append(step(token))
            return heard[-1]

        monkeypatch.setattr(decoder, "step", heard_step)
        return decoder

    monkeypatch.setattr(model, "_decoding", listening)
    decoded, _ = model.greedy(source, None, 9)
    fed = np.concatenate([np.full_like(decoded[:1], BOS), decoded[:-1]])
    want, _ = model.forward(source, None, fed)
    np.testing.assert_allclose(np.stack(heard), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decode", ["greedy", "beam"])
def test_decoding_packs_the_weights_once(decode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("both", "float32")
    model.params["output.bias"][EOS] = -1e9
    calls: dict[str, int] = {}

    def counted(name: str) -> Any:
        real = getattr(_core, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*arguments, **options)

        return call

    for name in ("matmul", "PackedMatrix", "Stepper"):
        monkeypatch.setattr(_core, name, counted(name))
    source = tokens((4, 3), SOURCE)
    made = []
    for length in (1, 50):
        calls.clear()
        if decode == "greedy":
            model.greedy(source, None, length)
        else:
            model.beam(source, None, length, 3)
        made.append(dict(calls))
    # One packing each of decoder and head, whatever the length.
    assert made == [{"Stepper": 1, "PackedMatrix": 1}] * 2


@pytest.mark.parametrize("decode", ["greedy", "beam"])
def test_decoding_sees_the_parameters_of_its_moment(decode: str) -> None:
    model, again = make("stacked"), make("stacked")
    source = tokens((4, 8), SOURCE)

    def answer(of: rk.Seq2Seq) -> Any:
        return of.greedy(source, None, 5) if decode == "greedy" else of.beam(source, None, 5, 2)

    answer(model)
    for name, p in model.params.items():
        p *= -0.7
        again.params[name][...] = p
    for got, want in zip(answer(model), answer(again), strict=True):
        np.testing.assert_array_equal(got, want)


def test_greedy_stops_early_when_every_row_has_ended() -> None:
    model = make("lstm")
    model.params["output.bias"][EOS] = 1e3
    decoded, lengths = model.greedy(tokens((4, 3), SOURCE), None, 10**9)
    np.testing.assert_array_equal(decoded, np.full((1, 3), EOS))
    np.testing.assert_array_equal(lengths, 0)
    decoded, lengths, scores = model.beam(tokens((4, 3), SOURCE), None, 10**9, 2)
    np.testing.assert_array_equal(decoded, np.full((1, 3), EOS))
    np.testing.assert_array_equal(lengths, 0)
    np.testing.assert_allclose(scores, 0.0, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("name", ["lstm", "gru_before", "both", "attention"])
def test_beam_of_one_is_greedy(name: str, penalty: float) -> None:
    model = make(name, "float32")
    source, lengths = tokens((4, 16), SOURCE), tokens((16,), 5)
    greedy = model.greedy(source, lengths, 5)
    beam = model.beam(source, lengths, 5, 1, penalty)
    for got, want in zip(beam, greedy, strict=False):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("name", ["lstm", "both", "gru_to_lstm", "attention_both"])
def test_an_exhaustive_beam_finds_the_best_answer(name: str, penalty: float) -> None:
    model = make(name)
    source = tokens((4, 6), SOURCE)
    for row in range(6):
        # One row at a time, so that each may stop as early as it can.
        decoded, lengths, scores = model.beam(
            source[:, row : row + 1], None, 3, len(answers(3)), penalty
        )
        want = max(
            answers(3),
            key=lambda a: log_probability(model, source[:, row], a) / len(a) ** penalty,
        )
        assert decoded[: lengths[0], 0].tolist() == [t for t in want if t != EOS]
        assert scores[0] == pytest.approx(log_probability(model, source[:, row], want), abs=1e-9)


def test_a_wider_beam_finds_what_greedy_misses() -> None:
    model = make("lstm")
    source = tokens((4, 64), SOURCE)
    totals = [float(model.beam(source, None, 5, width)[2].sum()) for width in (1, 2, 8)]
    assert totals[0] < totals[1] < totals[2]
    _, short, _ = model.beam(source, None, 5, 4)
    _, long, _ = model.beam(source, None, 5, 4, length_penalty=2.0)
    assert long.sum() > short.sum()


@pytest.mark.parametrize("width", [2, 3])
def test_beam_scores_are_those_of_its_answers(width: int) -> None:
    model = make("both")
    source = tokens((4, 8), SOURCE)
    decoded, lengths, scores = model.beam(source, None, 4, width)
    for row in range(8):
        n = lengths[row]
        answer = (*decoded[:n, row].tolist(), *([EOS] if n < 4 else []))
        assert scores[row] == pytest.approx(
            log_probability(model, source[:, row], answer), abs=1e-9
        )


def test_it_learns_to_copy() -> None:
    model = rk.Seq2Seq(6, 6, 32, bos=0, eos=1, seed=0)
    optimizer = rk.Adam(model.params, 1e-2)
    for step in range(250):
        rng = np.random.default_rng(step)
        lengths = rng.integers(1, 4, 64)
        source = rng.integers(2, 6, (3, 64))
        place = np.arange(4)[:, np.newaxis]
        padded = np.concatenate([source, source[:1]])
        wanted = np.where(place < lengths, padded, 1)
        fed = np.concatenate([np.zeros((1, 64), np.int64), wanted[:-1]])
        logits, tape = model.forward(source, lengths, fed, lengths + 1)
        loss, dlogits = rk.softmax_cross_entropy(logits, wanted, place <= lengths)
        grads = tape.backward(dlogits)
        rk.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
    assert loss < 0.1
    decoded, decoded_lengths = model.greedy(source, lengths, 6)
    right = [
        decoded[: decoded_lengths[b], b].tolist() == source[: lengths[b], b].tolist()
        for b in range(64)
    ]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cell": "Transformer"}, ValueError, "cell"),
        ({"decoder_cell": "lstm"}, ValueError, "decoder_cell"),
        ({"decoder_options": {}}, ValueError, "decoder_options needs a decoder_cell"),
        ({"hidden_size": 0}, ValueError, "hidden_size"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"source_vocab": 0}, ValueError, "source_vocab"),
        ({"target_vocab": 2.0}, TypeError, "target_vocab"),
        ({"bos": 4}, ValueError, r"bos must be in 0..3, got 4"),
        ({"eos": -1}, ValueError, "eos"),
        ({"attention": "general"}, ValueError, "attention must be one of None, 'dot'"),
    ],
)
def test_refused_construction(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"source_vocab": 5, "target_vocab": 4, "hidden_size": 3, "bos": 0, "eos": 1}
    with pytest.raises(error, match=message):
        rk.Seq2Seq(**{**arguments, **change})


def test_refused_arguments() -> None:
    model = make("lstm")
    source = tokens((4, 3), SOURCE)
    with pytest.raises(ValueError, match="source and target must agree in B, got 3 and 2"):
        model.forward(source, None, tokens((2, 2), TARGET))
    for call in (
        lambda x: model.forward(x, None, source),
        lambda x: model.greedy(x, None, 1),
        lambda x: model.beam(x, None, 1, 1),
    ):
        with pytest.raises(TypeError, match="source must be integers, got float64"):
            call(np.zeros((5, 5)))
        with pytest.raises(ValueError, match=r"source must have shape \(steps, B\), got \(4, 1, 1"):
            call(np.zeros((4, 1, 1), np.int64))
        with pytest.raises(
            TypeError, match="source must be an array of numbers, got the text 'abc'"
        ):
            call("abc")
    with pytest.raises(ValueError, match="source_lengths needs source as one array, got a list"):
        model.greedy([[1, 2], [3]], [2, 1])
    with pytest.raises(TypeError, match="source must be integers, got float64"):
        model.greedy([[[1.0]]])
    with pytest.raises(TypeError, match="target must be integers, got float32"):
        model.forward(source, None, np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="max_length"):
        model.greedy(source, None, 0)
    with pytest.raises(ValueError, match="width"):
        model.beam(source, None, 3, 0)
    with pytest.raises(ValueError, match="length_penalty"):
        model.beam(source, None, 3, 2, length_penalty=-1.0)


@pytest.mark.parametrize("name", ["lstm", "both", "attention_both"])
def test_the_forms_of_a_question(name: str) -> None:
    """A list of sources, one alone, and no word about lengths: what is said in full elsewhere."""
    model = make(name)
    rng = np.random.default_rng(1)
    sources = [rng.integers(0, SOURCE, n) for n in (3, 1, 4, 2)]
    padded, lengths = rk.pad(sources)
    for ask in (
        model.greedy,
        functools.partial(model.sample, seed=3),
        functools.partial(model.beam, width=3, n_best=2),
        functools.partial(model.beam, width=4),
    ):
        want = ask(padded, lengths, 5)
        for got, one in zip(ask(sources, max_length=5), want, strict=True):
            np.testing.assert_array_equal(got, one)
        of_list = ask([source.tolist() for source in sources[:1]], None, 5)
        for got, one in zip(ask(sources[0], max_length=5), of_list, strict=True):
            np.testing.assert_array_equal(got, one[..., 0])
        full = ask(padded, np.full(4, 4), 18)
        for got, one in zip(ask(padded), full, strict=True):
            np.testing.assert_array_equal(got, one)


def test_an_answer_ends_by_itself_or_at_the_default_bound() -> None:
    model = make("lstm")
    for name in ("output.weight", "output.bias"):
        model.params[name][...] = 0.0
    model.params["output.bias"][EOS] = -100.0
    for steps in (0, 1, 7):
        tokens, lengths = model.greedy(np.zeros((steps, 2), np.int64))
        assert (tokens.shape, lengths.tolist()) == ((2 * steps + 10, 2), [2 * steps + 10] * 2)
