# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: maps, losses, optimizers, models and the programs that train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices
from rnnkern.adder import Adder, Settings, Training
from rnnkern.cli import main

from support.compare import assert_same_bits
from support.devices import (
    BATCH,
    HIDDEN,
    INPUTS,
    LENGTHS,
    STEPS,
    TINY,
    agree,
    agree_by_name,
    move,
    put,
    refused,
    twins,
)
from support.layers import WITH_PRODUCT, as_tuple
from support.reference import Array


def test_linear(cuda: devices.Cuda) -> None:
    for bias in (True, False):
        layer, twin = rk.Linear(5, 3, bias=bias), rk.Linear(5, 3, bias=bias, device="cuda")
        for shape in ((2, 4, 5), (0, 5), (3, 0, 5)):
            move(cuda, layer, twin)
            x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            y, tape = layer.forward(x)
            got, got_tape = twin.forward(cuda.put(x))
            agree(cuda, "y", got, y, 1e-5)
            frozen = twin.freeze()
            move(cuda, rk.Linear(5, 3, bias=bias), twin)
            agree(cuda, "frozen y", frozen(cuda.put(x)), y, 1e-5)
            dx, grads = tape.backward(y)
            got_dx, got_grads = got_tape.backward(cuda.put(y))
            agree(cuda, "dx", got_dx, dx, 1e-5)
            agree_by_name(cuda, got_grads, grads)


def test_loss(cuda: devices.Cuda) -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((4, 3, 5), dtype=np.float32)
    targets = random.integers(0, 5, (4, 3))
    some = random.random((4, 3)) < 0.5
    for mask in (None, some, np.zeros((4, 3), bool)):
        loss, dlogits = rk.softmax_cross_entropy(logits, targets, mask)
        got, got_dlogits = rk.softmax_cross_entropy(*put(cuda, (logits, targets, mask)))
        assert float(got) == pytest.approx(loss, rel=1e-5)
        agree(cuda, "dlogits", got_dlogits, dlogits, 1e-5)
    targets[1, 1] = 5
    loss, _ = rk.softmax_cross_entropy(*put(cuda, (logits, targets)))
    assert np.isnan(float(loss))
    loss, _ = rk.softmax_cross_entropy(*put(cuda, (logits, targets, targets < 5)))
    assert np.isfinite(float(loss))


def test_clipping(cuda: devices.Cuda) -> None:
    def grads(scale: float) -> dict[str, Array]:
        random = np.random.default_rng(0)
        return {
            name: scale * random.standard_normal((3, 4), dtype=np.float32) for name in ("a", "b")
        }

    for scale in (1e-3, 1.0, 1e30, np.inf, np.nan):
        with np.errstate(invalid="ignore"):
            here = grads(scale)
            there = {name: cuda.put(g) for name, g in here.items()}
            norm = rk.clip_grad_norm(here, 0.5)
            got = rk.clip_grad_norm(there, 0.5)
        np.testing.assert_allclose(float(got), norm, rtol=1e-6)
        for name, g in here.items():
            np.testing.assert_allclose(cuda.get(there[name]), g, rtol=1e-5)
    here = grads(1.0)
    there = {name: cuda.put(g) for name, g in here.items()}
    rk.clip_grad_value(here, 0.3)
    rk.clip_grad_value(there, 0.3)
    for name, g in here.items():
        assert_same_bits(name, cuda.get(there[name]), g)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (rk.SGD, {"lr": 0.1}),
        (rk.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (rk.Adam, {"lr": 0.1}),
        (rk.Adam, {"lr": 0.1, "weight_decay": 0.01}),
        (rk.RMSprop, {"lr": 0.1, "momentum": 0.9, "centered": True, "weight_decay": 0.01}),
    ],
)
def test_optimizers(cuda: devices.Cuda, kind: Any, options: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    params: dict[str, Array] = {
        "a": random.standard_normal((7, 3)),
        "b": random.standard_normal(5, np.float32),
    }
    there = {name: cuda.put(p) for name, p in params.items()}
    optimizer, twin = kind(params, **options), kind(there, **options)
    for step in range(6):
        grads = {
            name: np.random.default_rng(step).standard_normal(p.shape).astype(p.dtype)
            for name, p in params.items()
        }
        optimizer.step(grads)
        twin.step({name: cuda.put(g) for name, g in grads.items()})
        if step == 3:  # to the other device and back
            state = {name: devices.to_host(a) for name, a in twin.state_dict().items()}
            twin = kind(there, **options)
            twin.load_state_dict(state)
    agree_by_name(cuda, there, params)


def seq2seq(cuda: devices.Cuda, **options: Any) -> tuple[rk.Seq2Seq, rk.Seq2Seq]:
    """A model on the CPU and one on the device with the same parameters."""
    sizes: Any = {"source_vocab": 6, "target_vocab": 5, "hidden_size": 8, "bos": 0, "eos": 1}
    model = rk.Seq2Seq(**sizes, **options, seed=3)
    twin = rk.Seq2Seq(**sizes, **options, seed=4, device="cuda")
    for p in model.params.values():
        p *= 3  # so that answers differ
    move(cuda, model, twin)
    return model, twin


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "num_layers": 2, "dropout": 0.3},
        {"cell": "GRU", "decoder_cell": "LSTM", "decoder_options": {"forget_bias": 1.0}},
        {"cell": "LSTM", "decoder_cell": "GRU", "decoder_options": {"reset": "after"}},
    ],
)
def test_seq2seq(cuda: devices.Cuda, options: dict[str, Any]) -> None:
    model, twin = seq2seq(cuda, **options)
    random = np.random.default_rng(0)
    source, target = random.integers(0, 6, (STEPS, BATCH)), random.integers(0, 5, (4, BATCH))
    logits, tape = model.forward(source, LENGTHS, target, dropout_key=7)
    got, got_tape = twin.forward(cuda.put(source), LENGTHS, cuda.put(target), dropout_key=7)
    agree(cuda, "logits", got, logits, 1e-5)
    agree_by_name(cuda, got_tape.backward(cuda.put(logits)).params, tape.backward(logits).params)

    for got_array, want in zip(
        twin.greedy(cuda.put(source), LENGTHS, 9), model.greedy(source, LENGTHS, 9), strict=True
    ):
        np.testing.assert_array_equal(cuda.get(got_array), want)
    for penalty in (0.0, 0.7):
        tokens, lengths, scores = model.beam(source, LENGTHS, 9, 3, penalty)
        got_tokens, got_lengths, got_scores = twin.beam(cuda.put(source), LENGTHS, 9, 3, penalty)
        np.testing.assert_array_equal(cuda.get(got_tokens), tokens)
        np.testing.assert_array_equal(cuda.get(got_lengths), lengths)
        np.testing.assert_allclose(cuda.get(got_scores), scores, rtol=1e-5)


@pytest.mark.usefixtures("no_looks")
def test_a_step_of_training_waits_for_nothing(cuda: devices.Cuda) -> None:
    layer = rk.LSTM(3, 8, 2, bidirectional=True, dropout=0.2, device="cuda")
    head = rk.Linear(16, 4, device="cuda")
    model = rk.Seq2Seq(4, 4, 8, bos=0, eos=1, device="cuda")
    x, tokens = put(cuda, (np.ones((STEPS, BATCH, 3), np.float32), np.ones((STEPS, BATCH), int)))
    for optimizer in (rk.Adam(layer.params), rk.SGD(layer.params, 0.1, momentum=0.9)):
        y, _, tape = layer.forward(x, None, LENGTHS, dropout_key=1)
        logits, head_tape = head.forward(y)
        _, dlogits = rk.softmax_cross_entropy(logits, tokens, tokens > 0)
        dy, _ = head_tape.backward(dlogits)
        _, _, grads = tape.backward(dy)
        rk.clip_grad_norm(grads, 0.1)
        rk.clip_grad_value(grads, 0.1)
        optimizer.step(grads)
    logits, model_tape = model.forward(tokens, None, tokens)
    model_tape.backward(logits)
    stream = rk.GRU(3, 8, 2, device="cuda").stream(BATCH)
    stream.block(x)
    stream.step(x[0])
    stream.reset(tokens[0] > 0)


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_streams(cuda: devices.Cuda, cell: str) -> None:
    layer, twin = twins(cuda, cell, INPUTS, HIDDEN, 2)
    here, there = layer.stream(BATCH), twin.stream(BATCH)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUTS), dtype=np.float32)
    out = cuda.xp.zeros((BATCH, HIDDEN), np.float32)
    for x_t in x:
        assert there.step(cuda.put(x_t), out=out) is out
        agree(cuda, "step", out, here.step(x_t), 1e-5)
    mask = np.array([True, False, False, True, False])
    here.reset(mask)
    there.reset(cuda.put(mask))
    agree(cuda, "block", there.block(cuda.put(x)), here.block(x), 1e-5)
    tokens = np.arange(BATCH) % INPUTS
    agree(cuda, "tokens", there.step(cuda.put(tokens)), here.step(tokens), 1e-5)
    for a, b in zip(as_tuple(there.state), as_tuple(here.state), strict=True):
        agree(cuda, "state", a, b, 1e-5)
    there.reset()
    there.state = put(cuda, here.state)
    agree(cuda, "again", there.block(cuda.put(x)), here.block(x), 1e-5)
    with pytest.raises(ValueError, match="weights='bfloat16' needs device='cpu', got"):
        twin.stream(weights="bfloat16")
    for ask in (twin.stream, twin.freeze):
        with pytest.raises(ValueError, match="weights='int8' needs device='cpu', got"):
            ask(weights="int8")


def test_files_move_models(cuda: devices.Cuda, tmp_path: Path) -> None:
    model, twin = seq2seq(cuda, bidirectional=True)
    layer = rk.LSTM(2, 3, device="cuda", compute="float16")
    for path, saved in (("here", model), ("there", twin), ("head", rk.Linear(2, 2))):
        rk.save(tmp_path / path, saved)
    assert (tmp_path / "here").stat().st_size == (tmp_path / "there").stat().st_size
    back = rk.load(tmp_path / "there")
    assert (back.device, back.encoder.device, back.output.device) == ("cpu", "cpu", "cpu")
    for name, p in model.params.items():
        assert_same_bits(name, back.params[name], p)
    moved = rk.load(tmp_path / "here", device="cuda")
    assert moved.device == "cuda"
    agree_by_name(cuda, moved.params, model.params, 0.0)
    assert rk.load(tmp_path / "head", device="cuda").device == "cuda"
    rk.save(tmp_path / "half", layer)
    assert rk.load(tmp_path / "half", device="cuda").compute == "float16"
    with pytest.raises(rk.FormatError, match="half: holds a LSTM that cannot be built: compute"):
        rk.load(tmp_path / "half")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_adder_learns_the_same(cuda: devices.Cuda, bidirectional: bool) -> None:
    settings = Settings(**{**vars(TINY), "bidirectional": bidirectional})
    here, there = Training(Adder(settings)), Training(Adder(settings, device="cuda"))
    for _ in range(5):
        here.advance()
        there.advance()
        assert there.loss == pytest.approx(here.loss, rel=1e-5)
    agree_by_name(cuda, there.adder.model.params, here.adder.model.params)
    # The untrained answers hang on the last digit of a logit here and there.
    pairs = here.adder.pairs.held_out(50)
    assert np.mean(there.adder.add(*pairs) == here.adder.add(*pairs)) > 0.9


def test_the_command_line(
    cuda: devices.Cuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--digits", "1", "--hidden", "16", "--batch", "32", "--share", "0.5", "--steps", "3"]
    assert main(["adder", "train", *tiny, "--device", "cuda"]) == 0
    assert main(["adder", "train", "--resume", "--device", "cuda"]) == 0
    assert main(["adder", "evaluate", "--pairs", "20", "--device", "cuda"]) == 0
    capsys.readouterr()
    for name in ("cuda", "cpu"):
        assert main(["adder", "ask", "3+4", "--device", name]) == 0
    there, here = capsys.readouterr().out.split()
    assert there == here
    assert "device must be one of 'cpu', 'cuda', got 'tpu'" in refused(capsys, "--device", "tpu")


def test_optimizers_take_several_layers(cuda: devices.Cuda, no_looks: None) -> None:
    twin, head = rk.LSTM(INPUTS, HIDDEN, device="cuda"), rk.Linear(HIDDEN, 2, device="cuda")
    owners: dict[str, Any] = {"lstm": twin, "head": head}
    grads = {
        part: {name: cuda.xp.ones(p.shape, p.dtype) for name, p in owner.params.items()}
        for part, owner in owners.items()
    }
    rk.clip_grad_norm(grads, 1.0)
    rk.clip_grad_value(grads, 1.0)
    for optimizer in (rk.Adam(owners), rk.SGD(owners, 0.1, momentum=0.9)):
        optimizer.step(grads)
        optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(TypeError, match=r"grads\['head\.bias'\] must be on the GPU"):
        optimizer.step({**grads, "head": {**grads["head"], "bias": np.ones(2, np.float32)}})
