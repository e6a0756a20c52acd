# SPDX-License-Identifier: Apache-2.0
"""The command line, with tiny models: what it prints, where, and its exit codes."""

from __future__ import annotations

import importlib.metadata
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.adder import Training
from rnnkern.cli import main

from support.processes import run_python
from support.threads import using_threads

TINY = ["--digits", "1", "--hidden", "16", "--batch", "32", "--share", "0.5"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rnnkern", *arguments], capture_output=True, text=True, check=False
    )


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rnnkern: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_train_ask_evaluate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adder", "train", *TINY, "--steps", "30"]) == 0
    captured = capsys.readouterr()
    assert "30 steps in " in captured.out
    assert "whole answers to held-out questions: " in captured.out
    assert " of 50 right (" in captured.out
    assert captured.out.endswith('ask it: rnnkern adder ask "3+4"\n')
    assert captured.err == ""
    assert [p.name for p in here.iterdir()] == ["adder.safetensors"]

    adder = Training.load("adder.safetensors").adder
    assert main(["adder", "ask", "3+4", "5 + 6"]) == 0
    answers = adder.add(np.array([3, 5]), np.array([4, 6]))
    assert capsys.readouterr().out == f"{answers[0]}\n{answers[1]}\n"

    assert main(["adder", "evaluate", "--pairs", "20"]) == 0
    score = adder.evaluate(*adder.pairs.held_out(20))
    assert capsys.readouterr().out.startswith(f"held out: {score}\n")

    assert main(["adder", "evaluate", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" of ")[1].split()[0] for line in lines[:3]] == ["50", "50", "100"]
    assert lines[3].startswith("wrong, with the right answer behind: ")


def test_options_reach_the_run(here: Path) -> None:
    options = "--cell gru-after --layers 2 --bidirectional --steps 2 --lr 0.01 --clip 2 --seed 7"
    assert main(["adder", "train", *TINY, *options.split(), "--model", "mine"]) == 0
    settings = Training.load("mine").adder.settings
    assert settings.cell == "gru-after"
    assert settings.bidirectional
    assert (settings.layers, settings.seed, settings.hidden) == (2, 7, 16)
    assert (settings.lr, settings.clip, settings.share) == (0.01, 2.0, 0.5)
    assert main(["adder", "train", *TINY, "--minutes", "0.001", "--model", "timed"]) == 0
    assert Training.load("timed").adder.settings.minutes == 0.001


def test_threads_are_the_commands_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, advance = [], Training.advance

    def noted(training: Training) -> None:
        seen.append(rk.get_num_threads())
        advance(training)

    monkeypatch.setattr(Training, "advance", noted)
    with using_threads(3):
        for count in (1, 2):
            options = ["--steps", "1", "--model", str(count), "--threads", str(count)]
            assert main(["adder", "train", *TINY, *options]) == 0
            assert rk.get_num_threads() == 3
    assert seen == [1, 2]


def test_a_model_in_the_way_is_set_aside(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in ("1", "2"):
        assert main(["adder", "train", *TINY, "--steps", steps]) == 0
    assert (
        "the earlier adder.safetensors is now adder.previous.safetensors" in capsys.readouterr().out
    )
    assert Training.load("adder.previous.safetensors").step == 1
    assert Training.load("adder.safetensors").step == 2


def test_a_link_in_the_way_stays(here: Path) -> None:
    (here / "away").mkdir()
    (here / "adder.safetensors").symlink_to("away/mine.safetensors")
    for steps in ("1", "2"):
        assert main(["adder", "train", *TINY, "--steps", steps]) == 0
    assert (here / "adder.safetensors").is_symlink()
    assert Training.load("away/mine.previous.safetensors").step == 1
    assert Training.load("away/mine.safetensors").step == 2


def test_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adder", "train", *TINY, "--steps", "4"]) == 0
    before = Training.load("adder.safetensors")
    assert main(["adder", "train", "--resume", *TINY]) == 0
    after = Training.load("adder.safetensors")
    assert (before.step, after.step) == (4, 4)
    assert before.adder.model.params["output.bias"].tobytes() == (
        after.adder.model.params["output.bias"].tobytes()
    )
    capsys.readouterr()
    message = fails(capsys, "adder", "train", "--resume", "--steps", "5")
    assert "--steps 5 was given, but the run in adder.safetensors has steps 4" in message
    assert "a.previous" not in [p.name for p in here.iterdir()]
    message = fails(capsys, "adder", "train", "--resume", "--model", "missing")
    assert "missing: there is no model here yet; begin a run without --resume" in message


def test_plot(here: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["adder", "train", *TINY, "--steps", "20", "--plot", "run.png"]
    assert main([*arguments, "--report-every", "0"]) == 0
    picture = (here / "run.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5000


def test_a_plot_needs_matplotlib(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = fails(capsys, "adder", "train", *TINY, "--plot", "run.png")
    assert "pip install 'rnnkern[plot]'" in message
    assert not list(here.iterdir()), "it must be told before any training"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "1+1"], "adder.safetensors: there is no model here yet; train one first"),
        (["evaluate"], "adder.safetensors: there is no model here yet; train one first"),
        (["train", "--hidden", "0"], "hidden must be a positive integer, got 0"),
        (["train", "--cell", "transformer"], "cell must be one of 'rnn', "),
        (["train", "--lr", "nan"], "lr must be a finite number above 0"),
        (["train", *TINY, "--model", "no/where"], "No such file"),
        (["train", *TINY, "--threads", "0"], "threads"),
    ],
)
def test_errors_have_no_traceback(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, "adder", *arguments)
    assert not list(here.iterdir())


def test_errors_with_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adder", "train", *TINY, "--steps", "1"]) == 0
    capsys.readouterr()
    assert "two numbers of at most 1 digits" in fails(capsys, "adder", "ask", "10+1")
    assert "pairs must be a positive integer" in fails(capsys, "adder", "evaluate", "--pairs", "0")
    Path("adder.safetensors").write_bytes(b"something else")
    assert "adder.safetensors: is not a safetensors file" in fails(capsys, "adder", "ask", "1+1")


def test_all_is_refused_where_it_would_take_for_ever(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--digits", "5", "--hidden", "4", "--batch", "1", "--steps", "1"]
    assert main(["adder", "train", *options]) == 0
    capsys.readouterr()
    assert "10,000,000,000 pairs" in fails(capsys, "adder", "evaluate", "--all")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["adder"],
        ["adder", "multiply"],
        ["adder", "ask"],
        ["adder", "train", "--steps", "many"],
        ["adder", "train", "--steps", "1", "--minutes", "1"],
        ["adder", "evaluate", "--all", "--pairs", "3"],
    ],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("usage: rnnkern")


def test_info() -> None:
    done = run("info")
    assert done.returncode == 0
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert lines.keys() == rk.info().keys()
    for key, value in rk.info().items():
        assert lines[key].strip() == str(value)


def test_as_a_module() -> None:
    assert run("--help").stdout.startswith("usage: rnnkern ")
    done = run("adder", "ask", "--model", "missing", "1+1")
    assert (done.returncode, done.stdout) == (2, "")
    why = "there is no model here yet; train one first: rnnkern adder train"
    assert done.stderr == f"rnnkern: error: missing: {why}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"rnnkern {rk.__version__}\n"
    assert rk.__version__ == rk.info()["version"] == importlib.metadata.version("rnnkern")


def test_an_import_does_not_load_what_few_need() -> None:
    loaded = run_python("import sys, rnnkern; print(*sys.modules)").stdout.split()
    assert not {"argparse", "importlib.metadata", "rnnkern.adder", "rnnkern.cli"} & set(loaded)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children take SIGINT, which a shell has ignored by what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted(here: Path) -> None:
    command = [sys.executable, "-m", "rnnkern", "adder", "train", *TINY, "--steps", "1000000"]
    with subprocess.Popen(
        [*command, "--save-every", "0.05"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as training:
        deadline = time.monotonic() + 60.0
        while not Path("adder.safetensors").exists() or Training.load("adder.safetensors").step < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        training.send_signal(signal.SIGINT)
        try:
            message = training.communicate(timeout=60.0)[1].decode()
        finally:
            training.kill()
    assert training.returncode == 130
    assert message == (
        "go on from the last checkpoint: --resume --model adder.safetensors\nrnnkern: interrupted\n"
    )
    assert Training.load("adder.safetensors").step >= 5
    assert [p.name for p in here.iterdir()] == ["adder.safetensors"]


def test_a_terminal_gets_a_progress_bar(here: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "rnnkern", "adder", "train", *TINY, "--minutes", "0.01"],
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as training:
        os.close(theirs)
        assert training.stdout is not None
        printed = training.stdout.read().decode()
        drawn = b""
        while part := _read(ours):
            drawn += part
    os.close(ours)
    assert training.returncode == 0
    assert b"% step " in drawn
    assert drawn.endswith(b"\r\x1b[K"), "the bar should be gone at the end"
    assert "\x1b" not in printed


def _read(terminal: int) -> bytes:
    """What a terminal shows next; nothing when its other end is closed."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""
