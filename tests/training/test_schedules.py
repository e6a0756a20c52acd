# SPDX-License-Identifier: Apache-2.0
"""Learning rates by the step: against PyTorch's schedulers, made of one another, and resumed."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

STEPS = 12


def rates_of_pytorch(make: Any) -> list[float]:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


PAIRS: dict[str, Any] = {
    "constant": (rk.ConstantRate(0.8), lambda s, o: s.LambdaLR(o, lambda step: 1.0)),
    "linear": (
        rk.LinearRate(0.8, 0.2, steps=8),
        lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.25, total_iters=8),
    ),
    "cosine": (
        rk.CosineRate(0.8, steps=STEPS, last=0.1),
        lambda s, o: s.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.1),
    ),
    "step": (rk.StepRate(0.8, steps=5, factor=0.5), lambda s, o: s.StepLR(o, 5, 0.5)),
    "warm-up": (
        rk.WarmUp(4, 0.8),
        lambda s, o: s.LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=3),
    ),
    "one after another": (
        rk.StepRate(0.8, 2, 0.5).then(6, rk.LinearRate(0.8, 0.4, steps=4)),
        lambda s, o: s.SequentialLR(
            o,
            [s.StepLR(o, 2, 0.5), s.LinearLR(o, 1.0, 0.5, total_iters=4)],
            milestones=[6],
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_pytorch(name: str) -> None:
    ours, peer = PAIRS[name]
    rates = rates_of_pytorch(peer)
    assert len({*rates}) > 1 or name == "constant"
    np.testing.assert_allclose([ours(step) for step in range(STEPS)], rates, rtol=1e-12)


def test_past_their_end_they_stay() -> None:
    for schedule in (rk.LinearRate(0.8, 0.2, steps=8), rk.CosineRate(0.8, steps=8, last=0.2)):
        assert schedule(8) == schedule(10**9) == 0.2
        assert schedule(0) == 0.8


def test_products() -> None:
    half = 0.5 * rk.CosineRate(0.8, steps=8)
    both = rk.WarmUp(2, 1.0) * rk.StepRate(0.8, 2, 0.5)
    assert [half(s) for s in range(9)] == [0.5 * rk.CosineRate(0.8, steps=8)(s) for s in range(9)]
    np.testing.assert_allclose([both(s) for s in range(5)], [0.4, 0.8, 0.4, 0.4, 0.2])


SCHEDULES = [
    *(ours for ours, _ in PAIRS.values()),
    0.5 * rk.WarmUp(3, rk.CosineRate(0.1, 5)),
    (0.5 * rk.ConstantRate(0.1)).then(2, rk.ConstantRate(0.2) * rk.StepRate(1.0, 3)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_reprs_and_copies_give_the_same_rates(schedule: Any) -> None:
    again = eval(repr(schedule), vars(rk).copy())
    assert again == schedule
    for twin in (again, copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert [twin(s) for s in range(9)] == [schedule(s) for s in range(9)]


def test_an_optimizer_takes_the_rate_of_each_step() -> None:
    schedule = rk.WarmUp(3, rk.CosineRate(0.5, steps=4))
    params = {"p": np.zeros(1)}
    for lr in (schedule, lambda step: schedule(step)):
        params["p"][...] = 0.0
        optimizer = rk.SGD(params, lr=lr)
        for step in range(8):
            assert optimizer.lr == schedule(step)
            before = params["p"].copy()
            optimizer.step({"p": np.ones(1)})
            np.testing.assert_allclose(before - params["p"], schedule(step), rtol=1e-12)
    optimizer.step({"p": np.ones(1)}, lr=0.25)  # a step's own comes first
    optimizer.lr = 0.125
    assert optimizer.lr == 0.125
    optimizer.lr = schedule
    assert optimizer.lr == schedule(9)


def test_a_saved_run_goes_on_with_its_rates_bit_for_bit(tmp_path: Path) -> None:
    schedule = rk.WarmUp(3, rk.CosineRate(0.1, steps=9))
    grads = np.random.default_rng(0).standard_normal((10, 4, 3)).astype(np.float32)
    whole, half = (rk.Linear(3, 4, bias=False, seed=0) for _ in range(2))
    optimizer = rk.Adam(whole, lr=schedule)
    for g in grads:
        optimizer.step({"weight": g})
    optimizer = rk.Adam(half, lr=schedule)
    for g in grads[:5]:
        optimizer.step({"weight": g})
    rk.save(tmp_path / "run", half, optimizer=optimizer)
    found = rk.load_checkpoint(tmp_path / "run")
    optimizer = rk.Adam(found.model, lr=schedule)
    optimizer.load_state_dict(found.optimizer)
    for g in grads[5:]:
        optimizer.step({"weight": g})
    assert found.model.params["weight"].tobytes() == whole.params["weight"].tobytes()


def test_fit_takes_the_optimizers_rates() -> None:
    x = np.random.default_rng(0).integers(0, 4, (16, 5))
    model = rk.Model(rk.GRU(4, 8, seed=0), rk.Linear(8, 4, seed=1), readout="last")
    schedule = rk.LinearRate(0.1, 0.0, steps=8)
    optimizer = rk.Adam(model, lr=schedule)
    history = rk.fit(model, rk.batches(x, x[:, -1], 4), epochs=2, optimizer=optimizer)
    assert history["lr"].tolist() == [schedule(3), schedule(7)]


def test_refusals() -> None:
    for make in (
        lambda rate: rk.ConstantRate(rate),
        lambda rate: rk.LinearRate(rate, 0.0, 3),
        lambda rate: rk.LinearRate(0.0, rate, 3),
        lambda rate: rk.CosineRate(rate, 3),
        lambda rate: rk.StepRate(0.1, 3, rate),
        lambda rate: rk.WarmUp(3, rate),
        lambda rate: rate * rk.ConstantRate(0.1),
    ):
        with pytest.raises(ValueError, match="must be a finite number of at least 0, got -1"):
            make(-1.0)
        with pytest.raises(TypeError, match="must be a finite number"):
            make("fast")
    for make_steps in (
        lambda n: rk.LinearRate(0.1, 0.0, n),
        lambda n: rk.CosineRate(0.1, n),
        lambda n: rk.StepRate(0.1, n),
        lambda n: rk.WarmUp(n, 0.1),
    ):
        with pytest.raises(ValueError, match="steps must be a positive integer, got 0"):
            make_steps(0)
    with pytest.raises(TypeError, match="following must be a Schedule, got <class 'float'>"):
        rk.ConstantRate(0.1).then(3, 0.1)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="steps of CosineRate is read-only"):
        rk.CosineRate(0.1, 3).steps = 4
    with pytest.raises(ValueError, match=r"lr must be a finite number of at least 0, got -0\.5"):
        rk.SGD({"p": np.zeros(1)}, lr=lambda step: -0.5)
    optimizer = rk.SGD({"p": np.zeros(1)}, lr=lambda step: 0.1 - step)
    optimizer.step({"p": np.ones(1)})
    with pytest.raises(ValueError, match=r"lr must be a finite number of at least 0, got -0\.9"):
        optimizer.step({"p": np.ones(1)})
    assert optimizer.steps == 1
