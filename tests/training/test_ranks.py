# SPDX-License-Identifier: Apache-2.0
"""Training by several ranks, under a real mpiexec."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.training.ranks import launched_ranks

from support.ranks import MPIEXEC, mpi, with_mpi

LAUNCH = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"


def program(ranks: int, text: str) -> subprocess.CompletedProcess[str]:
    head = "import sys\nimport numpy as np\nimport rnnkern as rk\nfrom mpi4py import MPI\n"
    return mpi(ranks, "-c", head + textwrap.dedent(text))


def train(ranks: int, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    tiny = ["--digits", "1", "--hidden", "16", "--batch", "37", "--share", "0.5"]
    new = [] if "--resume" in more else tiny
    return mpi(ranks, "-m", "rnnkern", "adder", "train", *new, "--model", str(model), *more)


@with_mpi
def test_as_many_ranks_as_you_like_train_the_same_adder(tmp_path: Path) -> None:
    found = {}
    for ranks in (1, 3):
        path = tmp_path / f"{ranks}.safetensors"
        done = train(ranks, path, "--steps", "60")
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert sum("whole answers" in line for line in told) == 1  # of one rank alone
        assert ("3 ranks" in done.stdout) == (ranks == 3)
        found[ranks] = rk.load(path).params
    for name, one in found[1].items():
        np.testing.assert_allclose(found[3][name], one, rtol=1e-3, atol=2e-5)
    assert any(not np.array_equal(found[3][name], one) for name, one in found[1].items())


@with_mpi
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    assert train(2, whole, "--steps", "120", "--save-every", "0").returncode == 0
    assert MPIEXEC is not None
    running = subprocess.Popen(
        [MPIEXEC, "-n", "2", sys.executable, "-m", "rnnkern", "adder", "train", "--digits", "1",
         "--hidden", "16", "--batch", "37", "--share", "0.5", "--model", str(cut),
         "--steps", "120", "--save-every", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if int(rk.load_checkpoint(cut).extra["run"][0]) > 3:
                break
        except FileNotFoundError:
            time.sleep(0.01)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    lost = _descendants(children)[-1]
    os.kill(lost, signal.SIGKILL)
    out, _ = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "--resume" in out
    step = int(rk.load_checkpoint(cut).extra["run"][0])
    assert 3 < step < 120
    done = train(3, cut, "--resume")
    assert done.returncode == 0, done.stderr
    ours, theirs = rk.load(cut).params, rk.load(whole).params
    for name, p in ours.items():
        np.testing.assert_allclose(p, theirs[name], rtol=1e-2, atol=1e-3)


def _descendants(children: Path) -> list[int]:
    """The processes below one, deepest last."""
    found: list[int] = []
    for child in children.read_text().split():
        found += [int(child), *_descendants(Path(f"/proc/{child}/task/{child}/children"))]
    return found


@with_mpi
def test_average_is_the_weighted_mean_on_every_rank() -> None:
    done = program(
        3,
        """
        with rk.Ranks(MPI.COMM_WORLD) as ranks:
            rng = np.random.default_rng(0)
            a, b = rng.standard_normal((3, 4, 5)).astype("f"), rng.standard_normal((3, 7))
            weights = np.array([2.0, 0.0, 5.0])
            own = {"a": a[ranks.rank].copy(), "inner": {"b": b[ranks.rank].copy()}}
            (value,) = ranks.average(own, weights[ranks.rank], [float(ranks.rank)])
            share = weights / weights.sum()
            np.testing.assert_allclose(own["a"], np.tensordot(share, a, 1), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(own["inner"]["b"], share @ b, rtol=1e-14)
            assert value == 10.0 / 7.0
            bits = ranks.gather(own["a"].tobytes())
            assert bits[0] == bits[1] == bits[2]
            parts = ranks.gather(ranks.share(8))
            assert [p.stop - p.start for p in parts] == [2, 3, 3]
            assert ranks.first(ranks.rank) == 0
            lstm = rk.LSTM(2, 3, seed=ranks.rank)
            try:
                ranks.require_same(lstm)
                raise SystemExit("other values were not seen")
            except ValueError as error:
                assert "weight_ih_l0 on rank 1" in str(error), error
            ranks.broadcast(lstm)
            ranks.require_same(lstm)
            assert np.array_equal(lstm.params["bias_l0"], rk.LSTM(2, 3, seed=0).params["bias_l0"])
        """,
    )
    assert done.returncode == 0, done.stderr


@with_mpi
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ranks.average({'a': np.zeros(3 + ranks.rank, 'f')}, 1)", "same names and sizes"),
        ("ranks.average({'ab'[ranks.rank]: np.zeros(3, 'f')}, 1)", "same names and sizes"),
        ("ranks.average({'a': np.zeros(3, 'f')}, 0)", "above 0 on some rank"),
        ("ranks.broadcast({'a': np.zeros(3 + ranks.rank, 'f')})", "same shapes on all ranks"),
    ],
)
def test_ranks_that_do_not_agree_are_told(body: str, message: str) -> None:
    done = program(2, f"with rk.Ranks(MPI.COMM_WORLD) as ranks:\n    {body}\n")
    assert done.returncode != 0
    assert message in done.stderr


@with_mpi
def test_an_error_in_one_rank_ends_all() -> None:
    done = program(
        2,
        """
        with rk.Ranks(MPI.COMM_WORLD) as ranks:
            if ranks.rank == 1:
                raise KeyError("spoiled shard")
            ranks.average({"a": np.zeros(3, "f")}, 1.0)  # waits for the other
        """,
    )
    assert done.returncode != 0
    assert "rank 1 of 2 stopped, which ends them all: KeyError: 'spoiled shard'" in done.stderr
    assert "Traceback" in done.stderr


@with_mpi
def test_ranks_of_one_machine_share_its_processors() -> None:
    text = "ranks = rk.Ranks(MPI.COMM_WORLD); assert rk.get_num_threads() == {}, rk.info()"
    there = rk.get_num_threads()
    assert program(2, text.format(max(1, there // 2))).returncode == 0
    asked = "rk.set_num_threads(1); " + text.format(1)
    assert program(2, asked).returncode == 0


def test_alone_nothing_is_done() -> None:
    with rk.Ranks() as ranks:
        grads = {"a": np.arange(3.0)}
        assert ranks.average(grads, 5, [1.5]) == [1.5]
        assert grads["a"].tolist() == [0.0, 1.0, 2.0]
        assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)
        assert ranks.share(7) == slice(0, 7)
        assert ranks.gather("x") == ["x"]


def test_what_is_no_communicator_is_refused() -> None:
    with pytest.raises(TypeError, match=r"comm must be a communicator of mpi4py.*int"):
        rk.Ranks(3)


def test_without_mpi4py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)
    assert launched_ranks().size == 1
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"rnnkern\[mpi\]"):
        launched_ranks()
