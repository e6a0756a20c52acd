# SPDX-License-Identifier: Apache-2.0
"""The optimizers against a plain reference and PyTorch, their resumption, and their refusals."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

# More numbers than the optimizers work on at a time, so that a parameter spans several blocks.
SHAPES: dict[str, tuple[int, ...]] = {"big": (300, 301), "small": (3,), "one": (), "none": (0, 2)}
RULES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "betas": (0.0, 0.0)}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.02, "decay": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.02, "momentum": 0.9}),
    ("RMSprop", {"lr": 0.02, "decay": 0.9, "centered": True, "momentum": 0.5, "eps": 1e-2}),
]
PEERS = {"SGD": "SGD", "Adam": "AdamW", "RMSprop": "RMSprop"}


def arrays(seed: int, dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.standard_normal(s), dtype) for name, s in SHAPES.items()}


class PlainSGD:
    """As PyTorch writes it, in float64: for one parameter at a time."""

    def __init__(
        self, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        self.lr, self.momentum, self.nesterov, self.decay = lr, momentum, nesterov, weight_decay
        self.velocity: Any = 0.0

    def stepped(self, p: Any, g: Any) -> Any:
        g = g + self.decay * p
        self.velocity = self.momentum * self.velocity + g
        return p - self.lr * (g + self.momentum * self.velocity if self.nesterov else self.velocity)


class PlainAdam:
    """Algorithm 1 of Kingma and Ba (2015), the decay of Loshchilov and Hutter (2019)."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, weight_decay
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.t = 0

    def stepped(self, p: Any, g: Any) -> Any:
        self.t += 1
        one, two = self.betas
        self.m = one * self.m + (1 - one) * g
        self.v = two * self.v + (1 - two) * g**2
        m, v = self.m / (1 - one**self.t), self.v / (1 - two**self.t)
        return p - self.lr * self.decay * p - self.lr * m / (np.sqrt(v) + self.eps)


class PlainRMSprop:
    """As PyTorch writes it, in float64."""

    def __init__(
        self,
        lr: float = 1e-2,
        decay: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr, self.decay, self.eps, self.momentum = lr, decay, eps, momentum
        self.centered, self.weight_decay = centered, weight_decay
        self.v: Any = 0.0
        self.m: Any = 0.0
        self.velocity: Any = 0.0

    def stepped(self, p: Any, g: Any) -> Any:
        g = g + self.weight_decay * p
        self.v = self.decay * self.v + (1 - self.decay) * g**2
        self.m = self.decay * self.m + (1 - self.decay) * g
        root = np.sqrt(self.v - self.m**2 if self.centered else self.v) + self.eps
        self.velocity = self.momentum * self.velocity + g / root
        return p - self.lr * self.velocity


PLAIN: dict[str, Any] = {"SGD": PlainSGD, "Adam": PlainAdam, "RMSprop": PlainRMSprop}


@pytest.mark.parametrize("scale", [1.0, 1e-7], ids=["usual", "tiny"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_agrees_with_a_plain_reference(
    rule: str, options: dict[str, Any], dtype: str, tolerance: float, scale: float
) -> None:
    """Gradients of 1e-7 are those that an epsilon of 1e-8 is not lost beside."""
    params = arrays(0, dtype)
    expected = {name: p.astype(np.float64) for name, p in params.items()}
    plain = {name: PLAIN[rule](**options) for name in params}
    ours = getattr(rk, rule)(params, **options)
    for step in range(1, 8):
        grads = {name: np.asarray(scale * g, dtype) for name, g in arrays(step, dtype).items()}
        ours.step(grads)
        for name, p in params.items():
            expected[name] = plain[name].stepped(expected[name], grads[name].astype(np.float64))
            np.testing.assert_allclose(p, expected[name], tolerance, tolerance, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_agrees_with_pytorch(
    rule: str, options: dict[str, Any], dtype: str, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    params = arrays(0, dtype)
    leaves = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    peer = getattr(torch.optim, PEERS[rule])
    named = {"alpha" if name == "decay" else name: value for name, value in options.items()}
    theirs = peer(leaves.values(), **{"weight_decay": 0.0, **named})
    ours = getattr(rk, rule)(params, **options)
    for step in range(1, 8):
        grads = arrays(step, dtype)
        for name, g in grads.items():
            leaves[name].grad = torch.tensor(g)
        theirs.step()
        ours.step(grads)
        for name, p in params.items():
            np.testing.assert_allclose(
                p, leaves[name].detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=name
            )


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_resumes_bit_for_bit(rule: str, options: dict[str, Any]) -> None:
    whole, halves = arrays(0, "float32"), arrays(0, "float32")
    uninterrupted = getattr(rk, rule)(whole, **options)
    optimizer = getattr(rk, rule)(halves, **options)
    for step in range(8):
        if step == 4:
            state = optimizer.state_dict()
            halves = copy.deepcopy(halves)
            optimizer.step(arrays(99, "float32"))  # the state must be a copy
            optimizer = getattr(rk, rule)(halves, **options)
            optimizer.load_state_dict(state)
        for o in (uninterrupted, optimizer):
            o.step(arrays(step, "float32"), lr=0.1 / (step + 1))
    assert optimizer.steps == 8
    for name, p in whole.items():
        assert p.tobytes() == halves[name].tobytes()


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_a_step_allocates_nothing(rule: str, options: dict[str, Any]) -> None:
    params, grads = arrays(0, "float32"), arrays(1, "float32")
    optimizer = getattr(rk, rule)(params, **options)
    optimizer.step(grads)
    tracemalloc.start()
    try:
        optimizer.step(grads)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8192  # views and numbers; a block is 128 KiB


def test_gradients_are_left_alone_and_the_rate_of_a_step_is_its_own() -> None:
    for rule, options in RULES:
        params, grads = arrays(0, "float32"), arrays(1, "float32")
        optimizer = getattr(rk, rule)(params, **options)
        optimizer.step(grads, lr=0.0)
        for name, p in arrays(0, "float32").items():
            assert p.tobytes() == params[name].tobytes()
            assert grads[name].tobytes() == arrays(1, "float32")[name].tobytes()
        optimizer.step(grads)
        assert params["big"].tobytes() != arrays(0, "float32")["big"].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_no_state_rests_among_the_denormal_numbers(
    rule: str, options: dict[str, Any], dtype: str
) -> None:
    params = {"p": np.ones(40, dtype)}
    optimizer = getattr(rk, rule)(params, **options)
    optimizer.step({"p": np.logspace(-3, 3, 40, dtype=dtype)})
    state = optimizer.state_dict()
    tiny = np.finfo(dtype).tiny
    for name, array in state.items():
        if name != "steps":  # as many steps later
            array *= tiny * 4
    optimizer.load_state_dict(state)
    for _ in range(400):
        optimizer.step({"p": np.zeros(40, dtype)})
    for name, array in optimizer.state_dict().items():
        if name != "steps":
            assert not np.any((array != 0.0) & (np.abs(array) < tiny)), name


def test_adam_gets_over_a_gradient_whose_square_is_infinite() -> None:
    p = {"p": np.zeros(2, np.float32)}
    adam = rk.Adam(p, lr=0.01, betas=(0.9, 0.99))
    adam.step({"p": np.array([2e19, -np.finfo(np.float32).max], np.float32)})
    np.testing.assert_allclose(p["p"], [-0.01, 0.01], rtol=1e-5)
    for _ in range(100):  # as large, so that the sum of the squares grows
        adam.step({"p": np.array([2e19, -2e19], np.float32)})
    for array in (*p.values(), *adam.state_dict().values()):
        assert np.all(np.isfinite(array))
    before = p["p"].copy()
    for _ in range(12_000):  # until what was so large is forgotten
        adam.step({"p": np.array([1.0, 1.0], np.float32)})
    assert np.all(p["p"] < before - 1.0)


def test_rmsprop_gets_over_a_gradient_whose_square_is_infinite() -> None:
    p = {"p": np.zeros(2, np.float32)}
    rmsprop = rk.RMSprop(p, lr=0.01, decay=0.9)
    rmsprop.step({"p": np.array([2e19, -np.finfo(np.float32).max], np.float32)})
    assert np.all(np.isfinite(p["p"]))
    assert np.all(np.isfinite(rmsprop.state_dict()["square.p"]))
    before = p["p"].copy()
    for _ in range(1000):
        rmsprop.step({"p": np.array([1.0, 1.0], np.float32)})
    assert np.all(p["p"] < before - 1.0)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_a_gradient_that_is_not_finite_shows(
    rule: str, options: dict[str, Any], bad: float
) -> None:
    params = {"p": np.ones(9, np.float32)}
    optimizer = getattr(rk, rule)(params, **options)
    for _ in range(2):
        with np.errstate(invalid="ignore"):
            optimizer.step({"p": np.array([1.0] * 8 + [bad], np.float32)})
        assert np.all(np.isfinite(params["p"][:8]))
        assert not np.isfinite(params["p"][8])


@pytest.mark.parametrize("bad", [-1e-3, np.nan, np.inf])
@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("SGD", "lr"),
        ("SGD", "momentum"),
        ("SGD", "weight_decay"),
        ("Adam", "lr"),
        ("Adam", "eps"),
        ("Adam", "weight_decay"),
        ("RMSprop", "decay"),
        ("RMSprop", "eps"),
        ("RMSprop", "momentum"),
        ("RMSprop", "weight_decay"),
    ],
)
def test_refused_hyper_parameters(rule: str, name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=name):
        getattr(rk, rule)(arrays(0, "float32"), **{"lr": 0.1, name: bad})
    optimizer = getattr(rk, rule)(arrays(0, "float32"), 0.1)
    with pytest.raises(ValueError, match="lr"):
        optimizer.step(arrays(1, "float32"), lr=bad)
    assert optimizer.steps == 0


@pytest.mark.parametrize("rule", ["Adam", "RMSprop"])
def test_an_eps_that_the_parameters_do_not_know_is_refused(rule: str) -> None:
    """It would be 0, and a parameter whose gradients are 0 not a number."""
    with pytest.raises(ValueError, match=r"eps must be above 0 in float32, got 1e-320"):
        getattr(rk, rule)(arrays(0, "float32"), eps=1e-320)
    params = arrays(0, "float64")
    getattr(rk, rule)(params, eps=1e-320).step({n: np.zeros_like(p) for n, p in params.items()})
    for name, array in arrays(0, "float64").items():
        np.testing.assert_array_equal(params[name], array)


def test_refused_betas_momentum_and_nesterov() -> None:
    params = arrays(0, "float32")
    for betas in [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (np.nan, 0.9)]:
        with pytest.raises(ValueError, match=r"betas\[[01]\]"):
            rk.Adam(params, 0.1, betas=betas)
    with pytest.raises(ValueError, match="betas must be two numbers"):
        rk.Adam(params, 0.1, betas=(0.9, 0.9, 0.9))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="momentum must be below 1"):
        rk.SGD(params, 0.1, momentum=1.0)
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        rk.SGD(params, 0.1, nesterov=True)
    with pytest.raises(TypeError, match="lr"):
        rk.SGD(params, "0.1")  # type: ignore[arg-type]


def test_refused_parameters() -> None:
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for params, error in [
        ({"p": np.zeros((4, 4)).T[:2]}, ValueError),
        ({"p": frozen}, ValueError),
        ({"p": np.zeros(3, int)}, TypeError),
        ({"p": [0.0]}, TypeError),
    ]:
        with pytest.raises(error, match=r"params\['p'\]"):
            rk.Adam(params)


def test_refused_gradients_change_nothing() -> None:
    params = arrays(0, "float32")
    optimizer = rk.Adam(params)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"small": None}, ValueError, "grads lacks small"),
        ({"other": np.zeros(1)}, ValueError, "grads has the unknown other"),
        (
            {"small": np.zeros(4, np.float32)},
            ValueError,
            r"grads\['small'\] must have shape \(3,\)",
        ),
        ({"small": np.zeros(3)}, TypeError, r"grads\['small'\] must be float32, got float64"),
    ]
    for change, error, message in cases:
        grads = {n: g for n, g in {**arrays(1, "float32"), **change}.items() if g is not None}
        with pytest.raises(error, match=message):
            optimizer.step(grads)
    assert optimizer.steps == 0
    for name, p in arrays(0, "float32").items():
        assert p.tobytes() == params[name].tobytes()


def test_refused_states() -> None:
    optimizer = rk.Adam(arrays(0, "float32"))
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"state lacks first\.small"):
        optimizer.load_state_dict({n: a for n, a in state.items() if n != "first.small"})
    with pytest.raises(ValueError, match="state has the unknown extra"):
        optimizer.load_state_dict({**state, "extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"state\['second.small'\] must be float32 of shape"):
        optimizer.load_state_dict({**state, "second.small": np.zeros(3)})
