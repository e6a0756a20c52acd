# SPDX-License-Identifier: Apache-2.0
"""What the programs share: their models' gradients, results over seeds, and the command."""

from __future__ import annotations

import argparse
import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern.explore as explore
from rnnkern.explore import EXPERIMENTS, Result
from rnnkern.explore.command import configure
from rnnkern.explore.model import Batch, Model
from rnnkern.explore.result import spread
from rnnkern.explore.run import Run
from rnnkern.progress import Progress

from support.differences import check_slope

Command = Callable[..., None]


def small_batch(readout: str, loss: str) -> Batch:
    rng = np.random.default_rng(3)
    places = (6, 4) if readout == "all" else (4,)
    targets: np.ndarray[Any, Any] = rng.integers(0, 3, places)
    if loss == "mse":
        targets = rng.standard_normal((*places, 3))
    mask = rng.random(places) < 0.7
    return Batch(rng.integers(0, 5, (6, 4)), targets, np.array([6, 3, 1, 5]), mask)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mse"])
@pytest.mark.parametrize("readout", ["all", "last", "mean"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_of_a_model_are_those_of_its_loss(
    cell: str, readout: str, loss: str, bidirectional: bool
) -> None:
    batch = small_batch(readout, loss)
    model = Model(
        cell,
        5,
        4,
        3,
        readout=readout,
        loss=loss,
        seed=1,
        dtype="float64",
        bidirectional=bidirectional,
        num_layers=2,
    )
    before, grads = model.loss_and_gradients(batch)
    assert before == pytest.approx(model.loss_of(batch), abs=1e-12)
    assert grads.keys() == model.params.keys()
    claimed = {name: (p, grads[name]) for name, p in model.params.items()}
    check_slope(lambda: model.loss_of(batch), claimed)


def test_without_a_mask_the_live_steps_count() -> None:
    batch = small_batch("all", "softmax_cross_entropy")
    assert batch.lengths is not None
    model = Model("rnn", 5, 4, 3, dtype="float64")
    live = np.arange(6)[:, None] < batch.lengths
    masked, whole = (
        model.loss_of(Batch(batch.x, batch.targets, batch.lengths, mask)) for mask in (live, None)
    )
    assert masked == whole


def test_the_mean_is_over_the_live_steps() -> None:
    model = Model("rnn", 5, 4, 3, readout="mean", dtype="float64")
    x, lengths = small_batch("mean", "softmax_cross_entropy").x, np.array([6, 3, 1, 5])
    whole = model.predict(x, lengths)
    for row, n in enumerate(lengths):
        alone = model.predict(x[:n, row : row + 1], lengths[row : row + 1])
        np.testing.assert_allclose(whole[row], alone[0], rtol=1e-12)


def test_training_learns_and_is_the_same_again() -> None:
    def draw(rng: np.random.Generator) -> Batch:
        x = rng.integers(0, 3, (4, 16))
        return Batch(x, x[-1])

    runs = []
    for _ in range(2):
        model = Model("gru", 3, 8, 3, readout="last", seed=2, lr=0.03)
        losses = Run(cells=["gru"]).train(model, draw, 60, rng=np.random.default_rng(5), decay=0.5)
        runs.append((losses, model.params["head.weight"].tobytes()))
    assert runs[0] == runs[1]
    assert losses[-1] < 0.2 * losses[0]
    assert model.accuracy(draw(np.random.default_rng(6))) == 1.0


def test_the_rate_falls_in_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("rnn", 5, 4, 3, readout="last", lr=0.5)
    rates: list[float] = []

    def noted(batch: Batch, lr: float) -> float:
        rates.append(lr)
        return 0.0

    monkeypatch.setattr(model, "step", noted)
    batch, rng = small_batch("last", "softmax_cross_entropy"), np.random.default_rng(0)
    Run(cells=["rnn"]).train(model, lambda _: batch, 10, rng=rng, decay=0.4)
    assert rates == pytest.approx([0.5] * 7 + [0.375, 0.25, 0.125])


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for clip in (1e-3, 1e3):
        model = Model("rnn", 5, 4, 3, readout="last", clip=clip)
        monkeypatch.setattr(
            model.optimizer,
            "step",
            lambda grads, lr: norms.append(np.sqrt(sum((g**2).sum() for g in grads.values()))),
        )
        model.step(small_batch("last", "softmax_cross_entropy"))
    assert norms[0] == pytest.approx(1e-3, rel=1e-5)
    assert norms[1] > 1e-2


def test_a_diverged_step_is_an_error_and_changes_nothing() -> None:
    model = Model("rnn", 1, 4, 1, readout="last", loss="mse", seed=0)
    before = {name: p.copy() for name, p in model.params.items()}
    with pytest.raises(ArithmeticError, match="step 0"):
        model.step(Batch(np.full((3, 2, 1), np.nan, np.float32), np.zeros((2, 1), np.float32)))
    for name, p in model.params.items():
        assert np.array_equal(p, before[name])


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert spread([0.93, 0.912, 0.951]).text() == "0.93 (0.91-0.95)"
    assert spread([0.5]).text(".0%") == "50%"


def example() -> Result:
    rows = [
        {"cell": cell, "T": 5, "seed": seed, "error": 0.25 * seed + (cell == "lstm")}
        for cell in ("rnn", "lstm")
        for seed in (0, 1, 2)
    ]
    curve = {"cell": "rnn", "seed": 0, "loss": np.array([1.0, np.inf])}
    return Result("example", "Title", {"T": 5}, {"error": ".2f"}, rows, [curve], ("A note.",))


def test_a_table_has_a_line_per_case_and_spreads_over_seeds() -> None:
    lines = example().table().splitlines()
    assert lines[0] == "Title; median (least-greatest) over 3 seeds"
    assert [line.split() for line in lines[2:6] if "--" not in line] == [
        ["cell", "T", "error"],
        ["rnn", "5", "0.25", "(0.00-0.50)"],
        ["lstm", "5", "1.25", "(1.00-1.50)"],
    ]
    assert lines[-1] == "A note."


def test_a_json_holds_the_numbers_and_is_the_same_again(tmp_path: Path) -> None:
    for name in "ab":
        example().to_json(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = json.loads((tmp_path / "a").read_text(encoding="utf-8"))
    assert read["program"] == "example"
    assert read["seeds"] == [0, 1, 2]
    assert [row["error"] for row in read["rows"]] == [0.0, 0.25, 0.5, 1.0, 1.25, 1.5]
    assert read["curves"][0]["loss"] == [1.0, None]


@pytest.mark.parametrize("name", list(EXPERIMENTS))
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0, got -1"),
        ({"seeds": 0}, ValueError, "seeds must be a positive integer, got 0"),
        ({"seeds": 1.5}, TypeError, "seeds must be a positive integer, got 1.5"),
        ({"cells": ("elman",)}, ValueError, "cells must be one of 'rnn'.*, got 'elman'"),
        ({"cells": "rnn"}, TypeError, "cells must be a sequence of names"),
        ({"cells": ()}, ValueError, "cells must be different names"),
        ({"cells": ("rnn", "rnn")}, ValueError, "cells must be different names"),
        ({"quick": "yes"}, TypeError, "quick must be True or False, got 'yes'"),
    ],
)
def test_bad_arguments_are_named(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(explore, name)(**arguments)


def test_good_arguments_are_the_seeds_and_cells() -> None:
    run = Run(seed=3, seeds=2, cells=["lstm", "rnn"])
    assert (run.seeds, run.cells, run.quick) == (range(3, 5), ("lstm", "rnn"), False)


def test_the_bar_is_the_share_of_the_whole_program() -> None:
    shown: list[tuple[float, str]] = []

    class Bar(Progress):
        def show(self, fraction: float, text: str) -> None:
            shown.append((fraction, text))

    run = Run(cells=["rnn"], progress=Bar())
    run.expect(4)
    batch, model = (
        small_batch("last", "softmax_cross_entropy"),
        Model("rnn", 5, 4, 3, readout="last"),
    )
    for name in ("one", "two"):
        run.train(model, lambda _: batch, 2, rng=np.random.default_rng(0), text=name)
    assert [fraction for fraction, _ in shown] == [0.25, 0.5, 0.75, 1.0]
    assert [text.partition(":")[0] for _, text in shown] == ["one", "one", "two", "two"]


@pytest.fixture
def command() -> Command:
    parser = argparse.ArgumentParser()
    configure(parser)

    def run(*arguments: str) -> None:
        options = parser.parse_args(arguments)
        options.run(options)

    return run


@pytest.mark.parametrize("arguments", [(), ("--list",)])
def test_the_programs_are_listed(
    command: Command, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    command(*arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(EXPERIMENTS)


def test_an_unknown_program_is_refused(command: Command) -> None:
    with pytest.raises(ValueError, match=r"must be one of 'gradients'.*, got 'gates'"):
        command("gates")


def test_a_run_prints_its_table_and_writes_numbers_and_picture(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = tmp_path / "new"
    command("copy", "--quick", "--cell", "rnn", "--seed", "4", "--output", str(where))
    printed = capsys.readouterr().out
    assert printed.startswith("The copy-memory task\n")
    assert str(where / "copy.json") in printed
    assert str(where / "copy.png") in printed
    read = json.loads((where / "copy.json").read_text(encoding="utf-8"))
    assert read["seeds"] == [4]
    assert {row["cell"] for row in read["rows"]} == {"rnn"}
    assert (where / "copy.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_numbers_still_come(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **others: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", refuse)
    command("copy", "--quick", "--cell", "rnn", "--output", str(tmp_path))
    out, err = capsys.readouterr()
    assert out.startswith("The copy-memory task\n")
    assert "pip install 'rnnkern[plot]'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["copy.json"]
