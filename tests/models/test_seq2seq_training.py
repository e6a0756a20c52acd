# SPDX-License-Identifier: Apache-2.0
"""Seq2Seq: what it is taught, attention by PyTorch, several answers, drawn answers, ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_same_bits
from support.marks import live_steps

BOS, EOS, SOURCE, TARGET = 0, 1, 5, 4


def make(*, large: bool = True, **options: Any) -> rk.Seq2Seq:
    """A model whose answers vary in length: its parameters are larger than a fresh one's."""
    model = rk.Seq2Seq(SOURCE, TARGET, 3, bos=BOS, eos=EOS, seed=0, **options)
    rng = np.random.default_rng(3)
    if large:
        for p in model.params.values():
            p[...] = rng.normal(0.0, 1.5, p.shape)
    return model


def tokens(shape: tuple[int, ...], vocabulary: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, vocabulary, shape)


def test_what_is_taught() -> None:
    answers, _ = rk.pad([[2, 3], [], [3, 2, 2]], value=EOS)
    fed, targets, lengths = make().teach(answers)
    assert fed.T.tolist() == [[0, 2, 3, 1], [0, 1, 1, 1], [0, 3, 2, 2]]
    assert targets.T.tolist() == [[2, 3, 1, 1], [1, 1, 1, 1], [3, 2, 2, 1]]
    assert lengths.tolist() == [3, 1, 4]
    padded = np.vstack([answers, answers[:1]])  # what stands past a length is not looked at
    for got, want in zip(make().teach(padded, [2, 0, 3]), (fed, targets, lengths), strict=True):
        np.testing.assert_array_equal(got, want)
    fed, targets, lengths = make().teach(answers[:, 1:2])  # nothing but an eos
    assert (fed.tolist(), targets.tolist(), lengths.tolist()) == ([[0]], [[1]], [1])
    with pytest.raises(ValueError, match=r"lengths must lie in 0\.\.3, got 0\.\.4"):
        make().teach(answers, [4, 0, 0])
    with pytest.raises(ValueError, match=r"lengths must be integers \(3,\)"):
        make().teach(answers, [1.0, 0.0, 0.0])
    with pytest.raises(TypeError, match="answers must be integers"):
        make().teach(answers.astype(float))


@pytest.mark.parametrize("attention", [None, "dot"])
def test_loss_and_gradients_are_those_of_teacher_forcing(attention: str | None) -> None:
    model = make(dtype="float64", attention=attention)
    source, lengths = tokens((4, 3), SOURCE), np.array([3, 0, 4])
    answers, _ = rk.pad([[2, 3], [], [3, 2, 2]], value=EOS)
    fed, targets, ends = model.teach(answers)
    logits, tape = model.forward(source, lengths, fed, ends)
    live = live_steps(4, ends)
    want, dlogits = rk.softmax_cross_entropy(logits, targets, live)
    loss, grads = model.loss_and_grads(source, answers, lengths)
    assert loss == want
    assert model.evaluate(source, answers, lengths) == pytest.approx(want, rel=1e-12)
    assert model.places(source, answers, lengths) == live.sum() == 8
    for name, gradient in tape.backward(dlogits).params.items():
        assert_same_bits(name, grads.params[name], gradient)
    mask = np.array([True, False, True])
    loss, grads = model.loss_and_grads(source, answers, lengths, mask=mask)
    some, _ = model.loss_and_grads(source[:, mask], answers[:, mask], lengths[mask])
    assert loss == pytest.approx(some, rel=1e-12)
    assert model.places(source, answers, lengths, mask=mask) == 7

    def twice(*arguments: Any) -> Any:
        loss, gradient = rk.softmax_cross_entropy(*arguments)
        return 2.0 * loss, 2.0 * gradient

    assert model.evaluate(source, answers, lengths, loss=twice) == pytest.approx(2.0 * want)
    assert model.loss_and_grads(source, answers, lengths, loss=twice)[0] == 2.0 * want


@pytest.mark.parametrize("lengths", [None, np.array([5, 1, 3])])
def test_attention_is_what_pytorch_computes(lengths: Any) -> None:
    torch = pytest.importorskip("torch")
    model = make(dtype="float64", attention="dot", cell="GRU", bidirectional=True)
    source, target = tokens((5, 3), SOURCE), tokens((4, 3), TARGET)
    logits, tape = model.forward(source, lengths, target)
    memory, state = model.encoder(source, None, lengths)
    start = np.concatenate([state[0], state[1]], axis=-1)[None]
    h, _ = model.decoder(target, start)
    m, q = (torch.from_numpy(a).transpose(0, 1).requires_grad_() for a in (memory, h))
    w, out, bias = (
        torch.from_numpy(model.params[name].copy()).requires_grad_()
        for name in ("attention.weight", "output.weight", "output.bias")
    )
    seen = torch.ones(3, 1, 5, dtype=torch.bool)
    if lengths is not None:
        seen = torch.arange(5) < torch.from_numpy(lengths)[:, None, None]
    context = torch.nn.functional.scaled_dot_product_attention(q, m, m, seen, scale=1.0)
    y = torch.tanh(torch.cat([context, q], dim=-1) @ w.T)
    want = (y @ out.T + bias).transpose(0, 1)
    np.testing.assert_allclose(logits, want.detach().numpy(), rtol=1e-10, atol=1e-12)
    dlogits = np.random.default_rng(1).standard_normal(logits.shape)
    want.backward(torch.from_numpy(dlogits))
    grads = tape.backward(dlogits).params
    for name, tensor in (
        ("attention.weight", w),
        ("output.weight", out),
        ("output.bias", bias),
    ):
        np.testing.assert_allclose(grads[name], tensor.grad.numpy(), rtol=1e-9, atol=1e-12)
    # The way back to the layers, by their own tapes.
    _, _, encoder_tape = model.encoder.forward(source, None, lengths)
    _, _, decoder_tape = model.decoder.forward(target, start)
    decoder = decoder_tape.backward(q.grad.transpose(0, 1).contiguous().numpy())
    dstate = decoder.state.reshape(3, 2, 3).swapaxes(0, 1)
    encoder = encoder_tape.backward(m.grad.transpose(0, 1).contiguous().numpy(), dstate)
    for part, own in (("decoder", decoder), ("encoder", encoder)):
        for name, gradient in own.params.items():
            np.testing.assert_allclose(
                grads[f"{part}.{name}"], gradient, rtol=1e-9, atol=1e-12, err_msg=name
            )
    weights = tape.attention()
    assert weights is not None
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0)
    if lengths is not None:
        assert not weights[1, :, 1:].any()
    assert make().forward(source, None, target)[1].attention() is None


@pytest.mark.parametrize("steps", [0, 2])
def test_attention_to_nothing_is_a_context_of_0(steps: int) -> None:
    model = make(attention="dot")
    source, target = np.zeros((steps, 3), np.int64), tokens((2, 3), TARGET)
    logits, tape = model.forward(source, np.zeros(3, np.int64), target)
    h, _ = model.decoder(target)
    y = np.tanh(h @ model.params["attention.weight"][:, 3:].T)
    np.testing.assert_allclose(logits, model.output(y), rtol=1e-5, atol=1e-6)
    assert np.isfinite(tape.backward(logits).params["attention.weight"]).all()
    assert model.greedy(source, np.zeros(3, np.int64), 3)[1].shape == (3,)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("attention", [None, "dot"])
def test_the_best_answers_in_order(attention: str | None, penalty: float) -> None:
    """An exhaustive beam knows all 40 answers of at most three tokens."""
    model = make(dtype="float64", attention=attention)
    source, every = tokens((4, 5), SOURCE), 60
    tokens_of, lengths, scores = model.beam(source, None, 3, every, penalty, n_best=every)
    assert tokens_of.shape == (every, 3, 5)
    assert lengths.shape == scores.shape == (every, 5)
    for row in range(5):
        count = int(np.isfinite(scores[:, row]).sum())
        assert count == 1 + 3 + 9 + 27
        found = set()
        ranks = []
        for n in range(count):
            length = lengths[n, row]
            answer = [*tokens_of[n, :length, row].tolist(), *([EOS] if length < 3 else [])]
            found.add(tuple(answer))
            fed = np.array([BOS, *answer[:-1]])[:, None]
            logits = model.forward(source[:, row : row + 1], None, fed)[0][:, 0]
            steps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            total = steps[np.arange(len(answer)), answer].sum()
            assert scores[n, row] == pytest.approx(total, abs=1e-9)
            ranks.append(total / len(answer) ** penalty)
        assert len(found) == count
        assert ranks == sorted(ranks, reverse=True)
    best = model.beam(source, None, 3, every, penalty)  # it may stop earlier
    np.testing.assert_array_equal(best[0], tokens_of[0, : len(best[0])])
    np.testing.assert_array_equal(best[1], lengths[0])
    np.testing.assert_array_equal(best[2], scores[0])


def test_several_answers_of_a_narrow_beam() -> None:
    model = make()
    source = tokens((4, 16), SOURCE)
    one, three = (model.beam(source, None, 6, 3, n_best=n) for n in (1, 3))
    np.testing.assert_array_equal(one[2][0], three[2][0])
    np.testing.assert_array_equal(one[1][0], three[1][0])
    assert (np.diff(three[2], axis=0) <= 0.0).all()
    assert model.beam(source[:, :0], None, 6, 3, n_best=2)[0].shape == (2, 0, 0)
    with pytest.raises(ValueError, match="n_best must be at most the width, 3, got 4"):
        model.beam(source, None, 6, 3, n_best=4)
    with pytest.raises(ValueError, match="n_best must be a positive integer"):
        model.beam(source, None, 6, 3, n_best=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("top_k", [None, 2, 9])
def test_tokens_are_drawn_by_their_probabilities(top_k: int | None, temperature: float) -> None:
    logits = np.array([0.3, -np.inf, 1.5, -1.0, 1.0], np.float32)
    p = np.exp(logits.astype(np.float64) / temperature)
    if top_k == 2:
        p[[0, 3]] = 0.0
    count = 40_000
    drawn = rk.sample(
        np.tile(logits, (2, count // 2, 1)),
        np.random.default_rng(0),
        temperature=temperature,
        top_k=top_k,
    )
    assert drawn.shape == (2, count // 2)
    assert drawn.dtype == np.int64
    shares = np.bincount(drawn.reshape(-1), minlength=5) / count
    p /= p.sum()
    assert (shares[p == 0.0] == 0.0).all()
    assert np.abs(shares - p).max() < 5.0 * np.sqrt(0.25 / count)


def test_of_ties_the_first_are_the_likeliest() -> None:
    drawn = rk.sample(np.zeros((1000, 5)), np.random.default_rng(0), top_k=2)
    assert set(drawn.tolist()) == {0, 1}


class Edge(np.random.Generator):
    """Draws that are as small, or as large, as they can be."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64())
        self.value = value

    def random(self, size: Any = None, *_: Any, **__: Any) -> Any:
        return np.full(size, self.value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_class_is_drawn_that_is_ruled_out(dtype: str) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype))
    for value, want in ((0.0, [1, 2]), (np.nextafter(1.0, 0.0), [2, 2])):
        assert rk.sample(logits, Edge(value)).tolist() == want


@pytest.mark.parametrize(
    ("logits", "options", "error", "message"),
    [
        (np.zeros(3), {"temperature": 0.0}, ValueError, "temperature must be a finite number abov"),
        (np.zeros(3), {"top_k": 0}, ValueError, "top_k must be a positive integer"),
        (np.zeros(()), {}, ValueError, r"logits must have shape \(..., classes\), got \(\)"),
        (np.array([0.0, np.nan]), {}, ValueError, "logits must have a finite greatest number"),
        (np.array([0.0, np.inf]), {}, ValueError, "logits must have a finite greatest number"),
        (np.full(3, -np.inf), {}, ValueError, "logits must have a finite greatest number"),
        (np.zeros(3), {"random": 5}, TypeError, "random must be a generator"),
    ],
)
def test_bad_draws_are_named(
    logits: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rk.sample(logits, options.pop("random", np.random.default_rng(0)), **options)


@pytest.mark.parametrize("attention", [None, "dot"])
def test_drawn_answers(attention: str | None) -> None:
    model = make(attention=attention)
    source = np.repeat(tokens((4, 1), SOURCE), 4000, axis=1)
    drawn, lengths = model.sample(source, None, 4, seed=1)
    again, _ = model.sample(source, None, 4, seed=1)
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, model.sample(source, None, 4, seed=2)[0])
    for row in range(100):
        assert (drawn[lengths[row] :, row] == EOS).all()
        assert not (drawn[: lengths[row], row] == EOS).any()
    # As often as the model says: the log-probability of the commonest answer.
    answers, counts = np.unique(drawn.T, axis=0, return_counts=True)
    commonest = answers[counts.argmax()]
    best, _, scores = model.beam(source[:, :1], None, 4, 64, n_best=64)
    same = [n for n in range(64) if best[n, :, 0].tolist() == commonest[: best.shape[1]].tolist()]
    share = counts.max() / 4000
    assert abs(share - np.exp(scores[same[0], 0])) < 5.0 * np.sqrt(0.25 / 4000)
    greedy, _ = model.greedy(source[:, :1], None, 4)
    cold, _ = model.sample(source[:, :1], None, 4, temperature=1e-6)
    np.testing.assert_array_equal(cold, greedy)
    only, _ = model.sample(source[:, :1], None, 4, top_k=1)
    np.testing.assert_array_equal(only, greedy)


@pytest.mark.parametrize("attention", [None, "dot"])
def test_it_is_fitted_and_goes_on(attention: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sources = [rng.integers(2, 6, rng.integers(1, 4)) for _ in range(256)]
    data = rk.batches(
        sources, [s[::-1] for s in sources], 64, shuffle=True, seed=0, bucket=2, target_pad=1
    )

    def build() -> rk.Seq2Seq:
        return rk.Seq2Seq(
            6, 6, 24, bos=0, eos=1, seed=0, attention=attention, num_layers=2, dropout=0.1
        )

    def right(model: rk.Seq2Seq) -> float:
        source, lengths = rk.pad(sources)
        answers, ends = model.greedy(source, lengths, 5)
        told = [a[:n].tolist() for a, n in zip(answers.T, ends, strict=True)]
        return float(np.mean([t == s[::-1].tolist() for t, s in zip(told, sources, strict=True)]))

    whole, model, path = build(), build(), tmp_path / "run"

    def fitted(model: rk.Seq2Seq, epochs: int, **options: Any) -> rk.History:
        adam = rk.Adam(model, lr=0.02)
        measures = {"right": right}
        return rk.fit(model, data, epochs=epochs, optimizer=adam, measures=measures, **options)

    history = fitted(whole, 40)
    assert history["right"][-1] > 0.9
    fitted(model, 2, path=path)
    model = build()
    longer = fitted(model, 3, path=path, resume=True)
    assert_same_bits("loss", longer["loss"], history["loss"][:3])
    found = rk.load(path)
    assert found.params == model.params
    assert found.config() == model.config()
    assert ("attention.weight" in found.params) == (attention is not None)


def test_onnx_has_no_attention_yet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to_onnx needs a model without attention"):
        make(attention="dot").to_onnx(tmp_path / "model.onnx")
