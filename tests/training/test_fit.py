# SPDX-License-Identifier: Apache-2.0
"""``fit`` is the loop that one would write, stops when it should, and goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_same_bits
from support.ranks import mpi, with_mpi

CLASSES, ROWS = 4, 40


def sequences(seed: int = 0) -> tuple[list[Any], Any]:
    """Tokens of many lengths, and the first of each."""
    rng = np.random.default_rng(seed)
    x = [rng.integers(0, CLASSES, rng.integers(1, 6)) for _ in range(ROWS)]
    return x, np.array([row[0] for row in x])


def data(seed: int = 0) -> rk.Batches:
    return rk.batches(*sequences(seed), 16, shuffle=True, seed=1, bucket=2)


def build(*, dropout: float = 0.0, of: type[rk.Model] = rk.Model) -> rk.Model:
    layer = rk.GRU(CLASSES, 8, 2, seed=0, dropout=dropout)
    return of(layer, rk.Linear(8, CLASSES, seed=1), readout="last")


def losses(history: rk.History) -> Any:
    """All but the seconds."""
    return history.array[:, :-1]


class Halved(rk.Model):
    """A model whose loss is its own, with the arguments that `fit` always gives."""

    def loss_and_grads(  # type: ignore[override]
        self,
        x: Any,
        targets: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        dropout_key: int | None = None,
        loss: Any = None,
    ) -> tuple[float, rk.Gradients]:
        value, grads = super().loss_and_grads(
            x, targets, lengths, mask=mask, dropout_key=dropout_key, loss=loss
        )
        return value / 2, grads


def test_a_subclass_may_have_a_loss_of_its_own() -> None:
    model, plain = build(of=Halved), build()
    history, want = (rk.fit(m, data(), epochs=2) for m in (model, plain))
    np.testing.assert_array_equal(2 * history["loss"], want["loss"])
    assert model.params == plain.params


def test_it_learns_and_notes_every_epoch() -> None:
    model = build()
    history = rk.fit(
        model,
        data(),
        valid=data(5),
        epochs=25,
        optimizer=rk.Adam(model, lr=0.03),
        measures={"norm": lambda m: float(np.abs(m.params["head.bias"]).max())},
    )
    assert history.columns == ("loss", "valid", "norm", "lr", "seconds")
    assert len(history) == 25
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    assert history["valid"].min() < 0.3
    assert (np.diff(history["seconds"]) > 0.0).all()
    assert (history["lr"] == 0.03).all()
    assert history.best == history["valid"].argmin()
    assert "valid" in repr(history)
    with pytest.raises(KeyError, match="history has loss, valid, norm, lr, seconds"):
        history["accuracy"]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_it_is_the_loop_that_one_would_write(clip: float | None) -> None:
    def rate(step: int) -> float:
        return 0.02 / (1 + step)

    model, by_hand = build(), build()
    history = rk.fit(model, data(), epochs=3, optimizer=rk.Adam(model, lr=rate), clip=clip)
    optimizer, batches, means = rk.Adam(by_hand), data(), []
    for _ in range(3):
        total = 0.0
        for x, lengths, targets in batches:
            loss, grads = by_hand.loss_and_grads(x, targets, lengths)
            if clip is not None:
                rk.clip_grad_norm(grads, clip)
            optimizer.step(grads, rate(optimizer.steps))
            total += loss * len(targets)
        means.append(total / ROWS)
    for name, array in by_hand.params.items():
        assert_same_bits(name, model.params[name], array)
    assert history["loss"] == pytest.approx(means, rel=1e-12)
    assert history["lr"][-1] == rate(8)


def test_no_step_computes_the_gradient_of_the_data() -> None:
    class Watched(rk.Model):
        """Notes what its gradients are."""

        def loss_and_grads(self, *arguments: Any, **options: Any) -> Any:
            value, grads = super().loss_and_grads(*arguments, **options)
            found.append(grads)
            return value, grads

    found: list[rk.Gradients] = []
    model = Watched(rk.GRU(3, 4, seed=0), rk.Linear(4, 2, seed=1), readout="last")
    x = np.random.default_rng(0).standard_normal((5, 6, 3)).astype(np.float32)
    rk.fit(model, [(x, None, np.zeros(6, np.int64))], epochs=2)
    assert len(found) == 2
    assert all(grads.x is None for grads in found)


def test_data_may_be_a_list_or_a_function() -> None:
    batches = [tuple(batch) for batch in data().epoch(0)]
    one, two, three = build(), build(), build()
    rk.fit(one, batches, epochs=2)
    rk.fit(two, lambda epoch: iter(batches), epochs=2)
    everything = [(*batch, np.ones(len(batch[2]), bool)) for batch in batches]
    rk.fit(three, everything, epochs=2)
    assert one.params == two.params == three.params
    masked = [(*batch, np.arange(len(batch[2])) < 1) for batch in batches]
    rk.fit(three, masked, epochs=1)
    rk.fit(two, [(x[:, :1], n[:1], t[:1]) for x, n, t in batches], epochs=1)
    for name, array in two.params.items():
        np.testing.assert_allclose(three.params[name], array, atol=1e-5)


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    kept: list[dict[str, Any]] = []

    def keep(model: rk.Model) -> float:
        kept.append(model.params.copy())
        return 0.0

    def rate(step: int) -> float:  # after 15 steps it forgets what it has learned
        return 0.03 if step < 15 else 1.0

    model = build()
    history = rk.fit(
        model,
        data(),
        valid=data(5),
        epochs=30,
        optimizer=rk.Adam(model, lr=rate),
        patience=4,
        measures={"kept": keep},
        path=path,
    )
    assert history.best is not None
    assert 0 < history.best < len(history) - 1
    assert len(history) == history.best + 5
    best = kept[history.best]
    assert model.params == best
    assert rk.load(path).params == best
    again = build()
    more: dict[str, Any] = {
        "valid": data(5),
        "measures": {"kept": keep},
        "path": path,
        "resume": True,
    }
    adam = rk.Adam(again, lr=rate)
    resumed = rk.fit(again, data(), epochs=30, optimizer=adam, patience=4, **more)
    assert_same_bits("history", resumed.array, history.array)
    assert again.params == best
    longer = rk.fit(again, data(), epochs=len(history) + 1, optimizer=adam, **more)
    assert len(longer) == len(history) + 1
    np.testing.assert_array_equal(longer.array[:-1], history.array)


class Stop(BaseException):
    """What ends a run in the middle."""


def interrupted(stop: int, error: type[BaseException]) -> Callable[[int], float]:
    """A schedule that ends the run before step ``stop``."""

    def rate(step: int) -> float:
        if step == stop:
            raise error
        return 0.01 / (1 + 0.1 * step)

    return rate


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("save_every", [0.0, 1e9])
@pytest.mark.parametrize("with_valid", [False, True])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    with_valid: bool, save_every: float, error: type[BaseException], tmp_path: Path
) -> None:
    valid = data(5) if with_valid else None
    whole = build(dropout=0.3)
    optimizer = rk.Adam(whole, lr=interrupted(-1, error))
    want = rk.fit(whole, data(), valid=valid, epochs=4, optimizer=optimizer)
    path = tmp_path / "run"
    for stop in (2, 7, 7, -1):
        model = build(dropout=0.3)
        own = rk.Adam(model, lr=interrupted(stop, error))
        arguments: dict[str, Any] = {
            "valid": valid,
            "epochs": 4,
            "optimizer": own,
            "path": path,
            "resume": True,
            "save_every": save_every,
        }
        if stop >= 0:
            with pytest.raises(error):
                rk.fit(model, data(), **arguments)
            assert isinstance(rk.load(path), rk.Model)
        else:
            got = rk.fit(model, data(), **arguments)
    assert_same_bits("history", losses(got), losses(want))
    for name, array in whole.params.items():
        assert_same_bits(name, model.params[name], array)
    for name, array in optimizer.state_dict().items():
        assert_same_bits(name, own.state_dict()[name], array)


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
import rnnkern as rk
from test_fit import build, data

def rate(step):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.01

model = build()
adam = rk.Adam(model, lr=rate)
rk.fit(model, data(), valid=data(5), epochs=5, optimizer=adam, path=sys.argv[1], save_every=0.0)
"""


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    path, here = tmp_path / "run", Path(__file__).parent
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, path, here, here.parent], check=False, cwd=tmp_path
    )
    assert ended.returncode == -signal.SIGKILL
    whole, model = build(), build()
    options: dict[str, Any] = {"valid": data(5), "epochs": 5}
    want = rk.fit(whole, data(), **options, optimizer=rk.Adam(whole, lr=0.01))
    got = rk.fit(
        model, data(), **options, optimizer=rk.Adam(model, lr=0.01), path=path, resume=True
    )
    assert_same_bits("history", losses(got), losses(want))
    assert model.params == whole.params
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_without_resume_a_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "run"
    one, two = build(), build()
    rk.fit(one, data(), epochs=2, path=path)
    assert len(rk.fit(two, data(), epochs=1, path=path)) == 1
    assert rk.load(path).params == two.params != one.params


def test_a_run_that_diverges_says_so_and_changes_nothing() -> None:
    model = build()

    def rate(step: int) -> float:
        if step == 2:
            model.params["head.bias"][...] = np.inf
            kept.update(model.params.copy())
        return 0.01

    kept: dict[str, Any] = {}
    optimizer = rk.Adam(model, lr=rate)
    with np.errstate(all="ignore"), pytest.raises(ArithmeticError, match="diverged in step 2"):
        rk.fit(model, data(), epochs=2, optimizer=optimizer)
    assert model.params == kept
    assert optimizer.steps == 2


def test_a_run_is_silent_but_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rk.fit(build(), data(), epochs=2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    rk.fit(build(), data(), epochs=2, progress=False)
    assert capsys.readouterr() == ("", "")
    rk.fit(build(), data(), epochs=2, valid=data(5))
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [["epoch", "1"], ["epoch", "2"]]
    assert "valid" in out
    assert "epoch 1 of 2, step 1, loss" in err


def test_history_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = rk.fit(build(), data(), valid=data(5), epochs=2, measures={"one": lambda m: 1.0})
    figure = history.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    above, below = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in (*above.lines, *below.lines)}
    np.testing.assert_array_equal(drawn["validation"], history["valid"])
    np.testing.assert_array_equal(drawn["one"], [1.0, 1.0])
    assert len(rk.fit(build(), data(), epochs=1).plot().axes) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be a positive integer"),
        ({"clip": 0.0}, ValueError, "clip must be a finite number above 0"),
        ({"patience": 1}, ValueError, "patience needs valid"),
        ({"resume": True}, ValueError, "resume needs a path"),
        ({"resume": 1}, TypeError, "resume must be True or False"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
        ({"save_every": -1.0}, ValueError, "save_every must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"measures": {"lr": float}}, ValueError, "measures must have names other than loss"),
        ({"data": iter(list(data())[:1]), "epochs": 2}, ValueError, "none in epoch 1: a generator"),
        ({"data": []}, ValueError, "data must give a batch in every epoch, got none in epoch 0"),
        ({"data": 5}, TypeError, "data must be batches.* got <class 'int'>"),
        ({"data": sequences()}, TypeError, r"data must hold .* batches\(x, targets\) makes such"),
        ({"data": [(1, 2)]}, TypeError, "data must hold .* got <class 'tuple'>"),
        ({"valid": []}, ValueError, "valid must hold a target that counts"),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"data": data(), **options}
    with pytest.raises(error, match=message):
        rk.fit(build(), **arguments)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "run", build()
    rk.save(path, model, optimizer=rk.Adam(model))
    with pytest.raises(rk.FormatError, match="is not a checkpoint of fit"):
        rk.fit(model, data(), path=path, resume=True)
    rk.fit(model, data(), epochs=1, path=path)
    other = rk.Model(rk.GRU(CLASSES, 9), rk.Linear(9, CLASSES), readout="last")
    with pytest.raises(ValueError, match="is of another model"):
        rk.fit(other, data(), path=path, resume=True)
    with pytest.raises(ValueError, match="resume it with the same valid and measures"):
        rk.fit(model, data(), valid=data(5), path=path, resume=True)
    with pytest.raises(ValueError, match="state"):
        rk.fit(model, data(), optimizer=rk.SGD(model, 0.1), path=path, resume=True)
    assert len(rk.fit(model, data(), epochs=2, path=path, resume=True)) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "change",
    [
        {"run": np.zeros(3)},
        {"run": np.full(8, np.nan)},
        {"run": np.zeros((8, 2))},
        {"run": None},
        {"history": None},
        {"history": np.zeros((2, 9))},
        {"history": np.zeros(())},
        {"last.head.bias": None},
        {"last.head.bias": np.zeros(3)},
    ],
)
def test_checkpoints_that_hold_something_else_are_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path, model = tmp_path / "run", build()
    optimizer = rk.Adam(model)
    rk.fit(model, data(), valid=data(5), epochs=1, optimizer=optimizer, path=path)
    found = rk.load_checkpoint(path)
    extra = {name: a for name, a in {**found.extra, **change}.items() if a is not None}
    rk.save(path, found.model, optimizer=optimizer, extra=extra, notes=found.notes)
    again = build()
    before = again.params.copy()
    with pytest.raises((rk.FormatError, TypeError, ValueError)):
        rk.fit(again, data(), valid=data(5), path=path, resume=True)
    assert again.params == before


def test_answers_are_filled_with_eos() -> None:
    model = rk.Seq2Seq(6, 6, 8, bos=0, eos=1, seed=0)
    answers = [[2, 3], [4], [5, 2, 3]]
    wrong, right = rk.batches(answers, answers), rk.batches(answers, answers, target_pad=1)
    with pytest.raises(ValueError, match=r"data must .* eos, 1, got 0: .*target_pad=1"):
        rk.fit(model, wrong)
    with pytest.raises(ValueError, match=r"valid must .* eos, 1, got 0: .*target_pad=1"):
        rk.fit(model, right, valid=wrong)
    rk.fit(model, right, valid=right)
    even = [[2, 3], [4, 5]]
    rk.fit(model, rk.batches(even, even))  # where there is nothing to fill


RANKS = """
import sys
sys.path[:0] = sys.argv[2:]
import numpy as np
import rnnkern as rk
from mpi4py import MPI
from test_fit import build, data

with rk.Ranks(MPI.COMM_WORLD) as ranks:
    model, seq2seq = build(), rk.Seq2Seq(6, 6, 8, bos=0, eos=1, seed=0)
    path = sys.argv[1]
    options = {"valid": data(5), "comm": MPI.COMM_WORLD, "path": path}
    rk.fit(model, data(), epochs=2, **options)
    model = build()
    history = rk.fit(model, data(), epochs=4, resume=True, **options)
    assert len(history) == 4
    ranks.require_same(model.params)
    x = np.random.default_rng(0).integers(2, 6, (12, 3))
    rk.fit(seq2seq, rk.batches(x, x, 5, target_pad=1, shuffle=True, seed=0), comm=MPI.COMM_WORLD)
    ranks.require_same(seq2seq.params)
    if ranks.is_first:
        rk.save(path, {"model": model, "seq2seq": seq2seq}, extra={"history": history.array})
"""


@with_mpi
def test_ranks_train_the_model_of_one(tmp_path: Path) -> None:
    here = Path(__file__).parent
    found = {}
    for ranks in (1, 3):
        path = tmp_path / str(ranks)
        done = mpi(ranks, "-c", RANKS, str(path), str(here), str(here.parent))
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        found[ranks] = rk.load_checkpoint(path)
    for name in ("model", "seq2seq"):
        one, three = found[1].model[name].params, found[3].model[name].params
        assert one != three
        for key, array in one.items():
            np.testing.assert_allclose(three[key], array, rtol=1e-3, atol=2e-5)
    one, three = (found[n].extra["history"][:, :-1] for n in (1, 3))
    np.testing.assert_allclose(three, one, rtol=1e-4)


@with_mpi
def test_ranks_that_shuffle_by_seeds_of_their_own_are_stopped(tmp_path: Path) -> None:
    here = Path(__file__).parent
    text = RANKS.replace("seed=0), comm", "seed=None), comm")
    done = mpi(2, "-c", text, str(tmp_path / "run"), str(here), str(here.parent))
    assert done.returncode != 0
    assert "data must be shuffled by one seed on all ranks" in done.stderr
