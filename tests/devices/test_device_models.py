# SPDX-License-Identifier: Apache-2.0
"""``device="cuda"``: models, their streams and their training give what they give on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import devices

from support.compare import assert_same_bits
from support.devices import LENGTHS, STEPS, agree, agree_by_name, move, put
from support.layers import as_tuple

VOCABULARY, FEATURES, HIDDEN, OUTPUTS = 6, 4, 7, 3
READOUTS = ["all", "last", "mean", "max"]


def pair(cuda: devices.Cuda, readout: str, *, both: bool = False) -> tuple[rk.Model, rk.Model]:
    """A model, and its twin on the device."""
    made = []
    for device in ("cpu", "cuda"):
        recurrent = rk.LSTM(FEATURES, HIDDEN, 2, bidirectional=both, seed=0, device=device)
        made.append(
            rk.Model(
                recurrent,
                rk.Linear((1 + both) * HIDDEN, OUTPUTS, seed=1, device=device),
                embedding=rk.Embedding(VOCABULARY, FEATURES, seed=2, device=device),
                readout=readout,
            )
        )
    move(cuda, made[0], made[1])
    return made[0], made[1]


def data(readout: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    shape = (STEPS, len(LENGTHS)) if readout == "all" else (len(LENGTHS),)
    return rng.integers(0, VOCABULARY, (STEPS, len(LENGTHS))), rng.integers(0, OUTPUTS, shape)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
def test_losses_and_gradients(
    cuda: devices.Cuda, no_looks: None, readout: str, masked: bool
) -> None:
    model, twin = pair(cuda, readout, both=True)
    x, targets = data(readout)
    mask = np.random.default_rng(1).random(targets.shape) < 0.7 if masked else None
    lengths = None if masked and readout != "all" else LENGTHS
    loss, grads = model.loss_and_grads(x, targets, lengths, mask=mask)
    got, of_twin = twin.loss_and_grads(
        cuda.put(x), cuda.put(targets), lengths, mask=put(cuda, mask)
    )
    np.testing.assert_allclose(cuda.get(got), loss, rtol=1e-6)  # type: ignore[arg-type]
    agree_by_name(cuda, of_twin.params, grads.params)


@pytest.mark.parametrize("readout", READOUTS)
def test_places_and_parts(cuda: devices.Cuda, readout: str) -> None:
    model, twin = pair(cuda, readout)
    x, targets = data(readout)
    mask = np.random.default_rng(1).random(targets.shape) < 0.7
    for some in (None, mask):
        want = model.places(x, targets, LENGTHS, mask=some)
        moved = put(cuda, (x, targets, some))
        assert twin.places(moved[0], moved[1], LENGTHS, mask=moved[2]) == want
        part = model.part(x, targets, LENGTHS, some, lambda count: slice(1, count))
        got = twin.part(moved[0], moved[1], LENGTHS, moved[2], lambda count: slice(1, count))
        for place in (0, 1, 3):
            if part[place] is not None:
                assert_same_bits("part", cuda.get(got[place]), part[place])


def test_a_service(cuda: devices.Cuda) -> None:
    model, twin = pair(cuda, "all")
    here, there = model.stream(4), twin.stream(4)
    x, _ = data("all")
    x = x[:, :4]
    mask = np.array([True, False, True, True])
    agree(cuda, "outputs", there.step(cuda.put(x[0])), here.step(x[0]), 1e-5)
    agree(cuda, "masked", there.step(cuda.put(x[1]), mask=mask), here.step(x[1], mask=mask), 1e-5)
    for stream in (here, there):
        stream.set_rows([0], stream.get_rows([2]))
        stream.remove_rows([1])
        assert stream.add_rows(2).tolist() == [3, 4]
        stream.reset([0])
    x = np.arange(5) % VOCABULARY
    agree(cuda, "outputs", there.step(cuda.put(x)), here.step(x), 1e-5)
    for a, b in zip(as_tuple(there.state), as_tuple(here.state), strict=True):
        agree(cuda, "state", a, b, 1e-5)
    move(cuda, model, twin)
    for p in model.params.values():
        p *= 0.5
    move(cuda, model, twin)
    here.refresh()
    there.refresh()
    agree(cuda, "refreshed", there.block(cuda.put(x[None])), here.block(x[None]), 1e-5)


@pytest.mark.parametrize("readout", READOUTS)
def test_the_forms_of_what_is_asked(cuda: devices.Cuda, readout: str) -> None:
    model, twin = pair(cuda, readout)
    rows = [np.arange(n) % VOCABULARY for n in (3, 0, 4, 1)]
    for got, want in zip(twin.predict(rows), model.predict(rows), strict=True):
        agree(cuda, "a row", got, want, 1e-5)
    x, _ = data(readout)
    there = cuda.put(x.T.copy())
    first, want = twin.predict(there, batch_first=True), model.predict(x)
    agree(cuda, "rows first", first, want.swapaxes(0, 1) if readout == "all" else want, 1e-5)
    agree(cuda, "alone", twin.predict(cuda.put(x[:, 0])), model.predict(x[:, 0]), 1e-5)
    *_, tape = twin.forward(cuda.put(x[:, 0]))
    want, _, of_model = model.forward(x[:, 0])
    ones = np.ones_like(want)
    agree_by_name(cuda, tape.backward(cuda.put(ones)).params, of_model.backward(ones).params)
    if readout in ("all", "last"):
        prompts = [[1, 2], [0], [2, 1, 0]]
        written = twin.generate(prompts, 6, top_k=1)
        for got, row in zip(written, model.generate(prompts, 6, top_k=1), strict=True):
            assert_same_bits("written", cuda.get(got), row)
        alone = twin.generate(cuda.put(np.array([1, 2])), 6, top_k=1)
        assert_same_bits("written", cuda.get(alone), cuda.get(written[0]))


def test_outputs_go_where_they_are_told(cuda: devices.Cuda) -> None:
    model, twin = pair(cuda, "all")
    x, _ = data("all")
    stream, room = twin.stream(x.shape[1]), cuda.xp.zeros((x.shape[1], OUTPUTS + 1), np.float32)
    for t, out in enumerate((room[:, 1:], cuda.xp.zeros((x.shape[1], OUTPUTS), np.float32))):
        assert stream.step(cuda.put(x[t]), out) is out
        agree(cuda, "step", out, model.predict(x[: t + 1])[-1], 1e-5)
    with pytest.raises(TypeError, match="out must be a CuPy array, got"):
        stream.step(cuda.put(x[0]), np.zeros((x.shape[1], OUTPUTS), np.float32))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_attention(cuda: devices.Cuda, lengths: Any) -> None:
    options: dict[str, Any] = {"cell": "GRU", "bidirectional": True, "attention": "dot"}
    model = rk.Seq2Seq(VOCABULARY, 5, HIDDEN, bos=0, eos=1, seed=0, **options)
    twin = rk.Seq2Seq(VOCABULARY, 5, HIDDEN, bos=0, eos=1, device="cuda", **options)
    rng = np.random.default_rng(0)
    for p in model.params.values():
        p[...] = rng.standard_normal(p.shape)
    move(cuda, model, twin)
    source, answers = data("all")[0], rng.integers(2, 5, (3, len(LENGTHS)))
    answers[1:, 1] = 1
    loss, grads = model.loss_and_grads(source, answers, lengths)
    got, of_twin = twin.loss_and_grads(cuda.put(source), cuda.put(answers), lengths)
    np.testing.assert_allclose(cuda.get(got), loss, rtol=1e-5)  # type: ignore[arg-type]
    agree_by_name(cuda, of_twin.params, grads.params, 1e-4)
    assert twin.places(cuda.put(source), cuda.put(answers)) == model.places(source, answers)
    value = twin.evaluate(cuda.put(source), cuda.put(answers), lengths)
    np.testing.assert_allclose(float(value), model.evaluate(source, answers, lengths), rtol=1e-5)
    there = cuda.put(source)
    for on_gpu, here in (
        (twin.greedy(there, lengths, 5), model.greedy(source, lengths, 5)),
        (twin.beam(there, lengths, 5, 3, n_best=2), model.beam(source, lengths, 5, 3, n_best=2)),
        (
            twin.sample(there, lengths, 5, top_k=3, seed=1),
            model.sample(source, lengths, 5, top_k=3, seed=1),
        ),
    ):
        for a, b in zip(on_gpu, here, strict=True):
            np.testing.assert_allclose(cuda.get(a), b, rtol=1e-4)
    rows = [np.arange(n) % VOCABULARY for n in (3, 1, 2)]
    for a, b in zip(twin.greedy(rows), model.greedy(rows), strict=True):
        assert_same_bits("greedy", cuda.get(a), b)


def test_fit(cuda: devices.Cuda, tmp_path: Any) -> None:
    model, twin = pair(cuda, "last")
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, VOCABULARY, rng.integers(1, 5)) for _ in range(20)]
    targets = rng.integers(0, OUTPUTS, 20)
    batches = rk.batches(rows, targets, 8, shuffle=True, seed=0)
    want = rk.fit(model, batches, valid=batches, epochs=2)
    rk.fit(twin, batches, valid=batches, epochs=1, path=tmp_path / "run")
    _, again = pair(cuda, "last")
    got = rk.fit(again, batches, valid=batches, epochs=2, path=tmp_path / "run", resume=True)
    np.testing.assert_allclose(got.array[:, :-1], want.array[:, :-1], rtol=1e-4)
    agree_by_name(cuda, again.params, model.params, 1e-4)
