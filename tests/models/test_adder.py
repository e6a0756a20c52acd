# SPDX-License-Identifier: Apache-2.0
"""The adder: its encoding, its split of the pairs, its training and exact resumption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.adder import Adder, Pairs, Score, Settings, Training, train
from rnnkern.cells import CELLS
from rnnkern.progress import Progress

from support import files_of_0_1
from support.adding import share_learnt
from support.compare import assert_same_bits
from support.threads import using_threads

TINY = Settings(digits=1, hidden=16, batch=32, steps=40, share=0.5)


def numbers(*values: int) -> Any:
    return np.array(values, np.int64)


def same_bits(one: Training, other: Training) -> None:
    """The two runs' parameters, optimizers and losses are the same bit for bit."""
    assert one.step == other.step
    assert one.loss == other.loss
    for name, p in one.adder.model.params.items():
        assert p.tobytes() == other.adder.model.params[name].tobytes(), name
    theirs = other.optimizer.state_dict()
    for name, array in one.optimizer.state_dict().items():
        assert array.tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns(cell: str) -> None:
    # Units that see no other's state meet in the next layer.
    layers = 1 if CELLS[cell].facts.recurrent_product else 2
    settings = Settings(
        digits=1,
        hidden=32,
        batch=64,
        steps=1500,
        share=0.9,
        cell=cell,
        lr=5e-3,
        layers=layers,
    )
    assert share_learnt(settings) > 0.9


def test_bidirectional_and_stacked_runs_go() -> None:
    training = Training(Adder(replace(TINY, layers=2, bidirectional=True)))
    training.advance()
    first = training.loss
    while training.fraction < 1.0:
        training.advance()
    assert training.loss < first
    assert training.adder.model.params["decoder.weight_hh_l1"].shape == (4 * 32, 32)


def test_a_run_with_attention_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = replace(TINY, attention=True)
    whole, half = Training(Adder(settings)), Training(Adder(settings))
    whole.advance()
    first = whole.loss
    for step in range(1, TINY.steps):
        whole.advance()
        if step % 2:
            half.advance()
    assert whole.loss < first
    half.save(tmp_path / "run")
    resumed = Training.load(tmp_path / "run")
    while resumed.fraction < 1.0:
        resumed.advance()
    assert resumed.adder.settings.attention
    assert resumed.adder.model.params["attention.weight"].shape == (16, 32)
    assert resumed.adder.model.params == whole.adder.model.params


def test_a_saved_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, half = Training(Adder(TINY)), Training(Adder(TINY))
    for _ in range(TINY.steps):
        whole.advance()
    for _ in range(TINY.steps // 2):
        half.advance()
    half.report()
    half.save(tmp_path / "run")
    resumed = Training.load(tmp_path / "run")
    same_bits(half, resumed)
    assert resumed.history == half.history
    while resumed.fraction < 1.0:
        resumed.advance()
    same_bits(whole, resumed)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_do_not_change_a_run(threads: int) -> None:
    settings = replace(TINY, hidden=64, batch=128, steps=10)
    runs = []
    for count in (1, threads):
        with using_threads(count):
            runs.append(Training(Adder(settings)))
            for _ in range(settings.steps):
                runs[-1].advance()
    same_bits(*runs)


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    steps = 2000
    command = [sys.executable, "-m", "rnnkern", "adder", "train", "--model", str(path)]
    options = "--digits 1 --hidden 16 --batch 32 --share 0.5 --save-every 0 --threads 1"
    length = ["--steps", str(steps)]
    with subprocess.Popen([*command, *options.split(), *length], stdout=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60.0
        while not path.exists() or Training.load(path).step < 20:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    killed = Training.load(path)
    assert 20 <= killed.step < steps, "the run should have been killed in its middle"
    subprocess.run(
        [*command, "--resume", "--save-every", "1000"], stdout=subprocess.DEVNULL, check=True
    )
    whole = Training(Adder(replace(TINY, steps=steps)))
    while whole.fraction < 1.0:
        whole.advance()
    same_bits(whole, Training.load(path))


def test_a_run_of_minutes_ends_in_time(tmp_path: Path) -> None:
    training = Training(Adder(replace(TINY, minutes=0.01, steps=1)))
    started = time.monotonic()
    train(training, tmp_path / "run", report_every=0.2)
    assert 0.6 <= time.monotonic() - started < 10.0
    assert training.step > 1
    assert training.seconds >= 0.6
    assert len(training.history) >= 2
    resumed = Training.load(tmp_path / "run")
    assert resumed.seconds == training.seconds
    assert resumed.fraction >= 1.0


def test_reports_tell_what_was_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    training = Training(Adder(TINY))
    score = train(training, tmp_path / "run", report_every=0.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == TINY.steps + 1 == len(training.history)
    assert score.total == 50
    for line in lines:
        assert line.count(" right") + line.count(" wrong") == 2
        for example in line.split("%  ")[1].split("   "):
            question, verdict = example.split()
            asked, answer = question.split("=")
            a, b = asked.split("+")
            assert verdict == ("right" if int(a) + int(b) == int(answer) else "wrong")


def test_evaluation_counts_every_pair() -> None:
    adder = Adder(replace(TINY, digits=2, share=0.2))
    trained, held_out = adder.evaluate_all(Progress())
    assert (trained.total, held_out.total) == (2000, 8000)
    a, b = (n.reshape(-1) for n in np.meshgrid(np.arange(100), np.arange(100)))
    answers = adder.add(a, b)
    assert (trained + held_out).right == int(np.sum(answers == a + b))
    for text in held_out.wrong:
        question, told = text.split("=")
        x, y = map(int, question.split("+"))
        assert told == f"{answers[100 * y + x]} ({x + y})"
    assert len(held_out.wrong) == 10


def test_scores() -> None:
    assert str(Score(999_999, 1_000_000)) == "999,999 of 1,000,000 right (99.9999%)"
    assert str(Score(9_999_999, 10_000_000)) == "9,999,999 of 10,000,000 right (99.9999%)"
    assert str(Score(3, 3)) == "3 of 3 right (100.0000%)"
    assert Score(1, 2, ["1+1=3 (2)"]) + Score(1, 1) == Score(2, 3, ["1+1=3 (2)"])


def test_the_learning_rate_rises_then_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(Adder(replace(TINY, steps=200, lr=0.01)))
    rates: list[float] = []
    monkeypatch.setattr(training.optimizer, "step", lambda grads, lr: rates.append(lr))
    while training.fraction < 1.0:
        training.advance()
    peak = int(np.argmax(rates))
    assert len(rates) == 200
    assert 0 < peak < 20
    assert rates[peak] == pytest.approx(0.01, rel=0.05)
    assert np.all(np.diff(rates[:peak]) > 0)
    assert np.all(np.diff(rates[peak:]) < 0)
    assert 0 <= rates[-1] < 0.0005


def joint_norm(arrays: Any) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = {}
    for clip in (1e-3, 1e3):
        training = Training(Adder(replace(TINY, clip=clip)))
        given: list[float] = []
        monkeypatch.setattr(
            training.optimizer,
            "step",
            lambda grads, lr, given=given: given.append(joint_norm(grads.params.values())),
        )
        training.advance()
        (norms[clip],) = given
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-5)
    assert 1e-2 < norms[1e3] < 1e3, "within the larger bound"


def test_a_diverged_run_stops() -> None:
    training = Training(Adder(TINY))
    training.adder.model.params["output.bias"][0] = np.nan
    before = training.adder.model.params["output.weight"].copy()
    with pytest.raises(ArithmeticError, match="diverged in step 0"):
        training.advance()
    np.testing.assert_array_equal(training.adder.model.params["output.weight"], before)


@pytest.mark.parametrize(
    "question", ["", "1", "1+", "+1", "1+2+3", "1-2", "a+b", "10+1", "1+01", "1.0+1", "٣+1"]
)
def test_other_questions_are_refused(question: str) -> None:
    with pytest.raises(ValueError, match="two numbers of at most 1 digits, as in 5"):
        Adder(TINY).ask(question)


def test_questions_may_have_spaces() -> None:
    adder = Adder(TINY)
    assert adder.ask(" 3 + 4 ") == adder.ask("3+4") == adder.add(numbers(3), numbers(4))[0]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("digits", 0, ValueError),
        ("digits", 7, ValueError),
        ("cell", "LSTM", ValueError),
        ("hidden", 0, ValueError),
        ("layers", 0, ValueError),
        ("bidirectional", 1, TypeError),
        ("attention", 1, TypeError),
        ("steps", -1, ValueError),
        ("batch", 2.5, TypeError),
        ("minutes", 0.0, ValueError),
        ("lr", float("nan"), ValueError),
        ("lr", 0.0, ValueError),
        ("clip", float("inf"), ValueError),
        ("compute", "float16", ValueError),
        ("seed", -1, ValueError),
        ("seed", 1 << 63, ValueError),
        ("share", 0.0, ValueError),
        ("share", 1.0, ValueError),
    ],
)
def test_refused_settings(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        replace(TINY, **{name: value})


def test_a_share_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        Pairs(1, 1e-3)


def test_a_run_of_version_0_1_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(files_of_0_1.content(files_of_0_1.HALF))
    half = Training.load(path)
    assert half.history == [(3.0, 1.5, half.loss, 0.25)]
    half.save(path)
    path.with_name("whole").write_bytes(files_of_0_1.content(files_of_0_1.WHOLE))
    whole = Training.load(path.with_name("whole"))
    assert (whole.fraction, whole.optimizer.steps) == (1.0, 6)
    # The questions have changed since, so that it does not end as version 0.1 would have.
    again = Training.load(path)
    for run in (half, again):
        while run.fraction < 1.0:
            run.advance()
        assert run.optimizer.steps == 6
    for name, p in half.adder.model.params.items():
        assert_same_bits(name, again.adder.model.params[name], p)


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "model"
    rk.save(path, rk.Linear(2, 2))
    refused(path)
    rk.save(path, rk.Linear(2, 2), notes={"adder": "{}"})
    refused(path)
    training = Training(Adder(TINY))
    training.advance()
    training.save(path)
    assert isinstance(rk.load(path), rk.Seq2Seq)
    model, _, extra, notes = rk.load_checkpoint(path)

    def save(*, adam: Any = training.optimizer, notes: Any = notes, **extras: Any) -> None:
        given = {n: a for n, a in {**extra, **extras}.items() if a is not None}
        rk.save(path, model, optimizer=adam, extra=given, notes=notes)

    save()
    Training.load(path)
    for damaged in (
        {"run": None},
        {"history": None},
        {"adam": None},
        {"adam": {"a": rk.SGD({"p": np.zeros(1)}, 0)}},
    ):
        save(**damaged)
        refused(path)
    # More than a step of floats, no number of them, or steps that the optimizer has not taken.
    for run in (
        [np.nan, 0, 0],
        [np.inf, 0, 0],
        [1e300, 0, 0],
        [-1, 0, 0],
        [0, 0, 0],
        [1.5, 0, 0],
        [1, -1, 0],
        [1, np.nan, 0],
        [1, np.inf, 0],
        [1, 1],
        1,
    ):
        save(run=np.array(run, float))
        refused(path)
    for history in (np.zeros(4), np.zeros((1, 3)), np.array(1.0)):
        save(history=history)
        refused(path)
    state = training.optimizer.state_dict()
    training.optimizer.steps = -1
    save(run=np.array([-1.0, 0, 0]))
    refused(path)
    training.optimizer.load_state_dict(state)
    changes = {"lr": 10**400, "digits": 10**400, "minutes": float("nan"), "cell": [], "batch": {}}
    mine = json.loads(notes["adder"])
    for settings in (
        "{}}",
        "[]",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        '{"colour": 1}',
        json.dumps({"\ud800\x1b": 1}),
        *(json.dumps({**mine, name: value}) for name, value in changes.items()),
    ):
        save(notes={"adder": settings})
        refused(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cell", "gru"),
        ("cell", "gru-after"),
        ("hidden", 17),
        ("hidden", 10**12),
        ("layers", 2),
        ("layers", 10**9),
        ("bidirectional", True),
        ("attention", True),
        ("compute", "bfloat16"),
        ("seed", 1),
    ],
)
def test_settings_that_contradict_the_model_are_refused(
    name: str, value: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    training = Training(Adder(TINY))
    training.save(path)
    model, _, extra, _ = rk.load_checkpoint(path)
    settings = replace(TINY, **{name: value})
    with pytest.raises(ValueError, match=r"model must have .*, as the settings say"):
        Adder(settings, model)
    notes = {"adder": json.dumps(vars(settings))}
    rk.save(path, model, optimizer=training.optimizer, extra=extra, notes=notes)
    refused(path, "model must have")


def test_other_models_are_no_adders() -> None:
    sizes: Any = {"source_vocab": 11, "target_vocab": 11, "hidden_size": 16, "bos": 10, "eos": 10}
    Adder(TINY, rk.Seq2Seq(**sizes, cell_options={}, seed=0))
    for other in (
        {"target_vocab": 12},
        {"source_vocab": 12},
        {"bos": 0},
        {"eos": 0},
        {"dropout": 0.1, "num_layers": 2},
        {"dtype": "float64"},
        {"decoder_cell": "LSTM"},
    ):
        with pytest.raises(ValueError, match="model must have"):
            Adder(TINY, rk.Seq2Seq(**{"cell_options": {}, "seed": 0, **sizes, **other}))


def refused(path: Path, why: str = "") -> None:
    """The file loads, if at all, as something else than an adder."""
    with pytest.raises(rk.FormatError, match=f"model: is not a checkpoint of an adder.*{why}") as e:
        Training.load(path)
    assert str(e.value).isprintable()
