# SPDX-License-Identifier: Apache-2.0
"""Optimizers and clipping take what holds arrays, nested as it may be, and check all before any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_same_bits

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "Adam": rk.Adam,
    "SGD": lambda params: rk.SGD(params, 0.1, momentum=0.9),
}


def layers() -> tuple[rk.LSTM, rk.Linear, rk.Linear]:
    return rk.LSTM(3, 4, seed=0), rk.Linear(4, 4, seed=1), rk.Linear(4, 2, seed=2)


def gradients(layer: Any) -> dict[str, Any]:
    return {n: np.full(p.shape, 0.5 + i, p.dtype) for i, (n, p) in enumerate(layer.params.items())}


NESTINGS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "a list": lambda *parts: list(parts),
    "a tuple": lambda *parts: parts,
    "names": lambda a, b, c: {"lstm": a, "between": b, "head": c},
    "within each other": lambda a, b, c: {"lstm": a, "heads": [b, c]},
    "some flat": lambda a, b, c: {
        "lstm": a,
        **{f"h.{n}": p for n, p in held(b).items()},
        "head": c,
    },
}


def held(part: Any) -> Any:
    return getattr(part, "params", part)


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_layers_are_trained_as_each_alone(name: str, nesting: str) -> None:
    """Two maps have parameters of the same names: none is lost."""
    together, alone, nest = layers(), layers(), NESTINGS[nesting]
    optimizer = OPTIMIZERS[name](nest(*together))
    for _ in range(2):
        optimizer.step(nest(*map(gradients, together)))
    pairs: Any = zip(together, alone, strict=True)
    for layer, single in pairs:
        own = OPTIMIZERS[name](single)
        for _ in range(2):
            own.step(gradients(single))
        for key, p in single.params.items():
            assert_same_bits(key, layer.params[key], p)
    again = OPTIMIZERS[name](nest(*layers()))
    again.load_state_dict(optimizer.state_dict())
    assert again.steps == 2


@pytest.mark.parametrize("give", [lambda o: o, lambda o: o.params, lambda o: dict(o.params)])
@pytest.mark.parametrize(
    "make", [rk.LSTM, rk.Linear, lambda i, h: rk.Seq2Seq(i, h, 2, bos=0, eos=1)]
)
def test_an_owner_its_params_and_a_dict_are_the_same(
    make: Callable[..., Any], give: Callable[[Any], Any]
) -> None:
    owner = make(3, 3)
    before = owner.params.copy()
    rk.SGD(give(owner), 1.0).step(gradients(owner))
    for i, (name, p) in enumerate(owner.params.items()):
        assert_same_bits(name, p, before[name] - np.float32(0.5 + i))


def test_arrays_without_names() -> None:
    array = np.zeros(3)
    rk.SGD([array], 1.0).step([np.ones(3)])
    assert np.all(array == -1.0)
    rk.SGD(rk.Linear(2, 2).params.values(), 1.0).step([np.ones((2, 2), "f4"), np.ones(2, "f4")])


NO_HOLDERS: list[tuple[Any, type[Exception], str]] = [
    (np.zeros(3), TypeError, "params must be a layer, a model, arrays by name, or a dict or list"),
    (3.0, TypeError, "params must be a layer"),
    ("weights", TypeError, "params must be a layer"),
    ([1.0, 2.0], TypeError, "params must be a layer"),
    ({"p": [1.0, 2.0]}, TypeError, r"params\['p'\] must be an array, got <class 'list'>"),
    ({"p": {"q": None}}, TypeError, r"params\['p\.q'\] must be an array, got <class 'None"),
    ({"p.q": np.zeros(1), "p": {"q": np.zeros(1)}}, ValueError, "got 'p.q' twice"),
    ({}, ValueError, "params must hold at least one array"),
    (iter([]), ValueError, "params must hold at least one array"),
]


@pytest.mark.parametrize(("params", "error", "message"), NO_HOLDERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_cannot_be_trained(
    name: str, params: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        OPTIMIZERS[name](params)


def test_one_array_is_not_trained_twice() -> None:
    layer = rk.Linear(2, 3)
    for twice in ([layer, layer], {"a": layer.params["weight"], "b": layer.params["weight"][1:]}):
        with pytest.raises(ValueError, match=r"params\['.*'\] and params\['.*'\] must not share"):
            rk.Adam(twice)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_checks_all_before_the_first_write(name: str) -> None:
    layer = rk.Linear(2, 3, seed=0)
    optimizer, before = OPTIMIZERS[name](layer), layer.params.copy()
    grads = gradients(layer)
    bad: list[tuple[Any, type[Exception], str]] = [
        ({**grads, "bias": [0.5] * 3}, TypeError, r"grads\['bias'\] must be float32, got float64"),
        ({**grads, "bias": None}, TypeError, r"grads\['bias'\] must be an array of numbers"),
        ({**grads, "bias": grads["bias"][:2]}, ValueError, r"grads\['bias'\] must have shape"),
        ({**grads, "bias": np.zeros(3)}, TypeError, r"grads\['bias'\] must be float32"),
        ({"weight": grads["weight"]}, ValueError, "grads lacks bias"),
        ([grads], ValueError, "grads lacks bias, weight"),
        (grads["bias"], TypeError, "grads must be a layer, a model, arrays by name"),
        (None, TypeError, "grads must be a layer, a model, arrays by name"),
    ]
    for given, error, message in bad:
        with pytest.raises(error, match=message):
            optimizer.step(given)
    optimizer.lr = float("nan")
    with pytest.raises(ValueError, match="lr must be a finite number"):
        optimizer.step(grads)
    assert (optimizer.steps, layer.params == before) == (0, True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_done_to_the_callers_view_stays_there(name: str) -> None:
    params = {"p": np.zeros((2, 3)), "q": np.zeros(3)}
    optimizer, view = OPTIMIZERS[name](params), params["p"].view()
    params["p"].shape = (6,)
    optimizer.step({"p": np.ones((2, 3)), "q": np.ones(3)})
    assert np.all(view < 0.0)


def test_a_state_is_taken_whole_or_not_at_all() -> None:
    layer = rk.Linear(2, 3)
    optimizer = rk.Adam(layer)
    optimizer.step(gradients(layer))
    state = optimizer.state_dict()
    bad: list[tuple[dict[str, Any], str]] = [
        ({"steps": np.array(-1)}, "steps'] must be at least 0, got -1"),
        ({"steps": 3}, "steps'] must be an array"),
        ({"second.bias": [0.0] * 3}, "second.bias'] must be an array"),
    ]
    for change, message in bad:
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.load_state_dict(
                {**state, "first.weight": state["first.weight"] + 1, **change}
            )
    for key, array in optimizer.state_dict().items():
        assert_same_bits(key, array, state[key])


# --- Clipping -------------------------------------------------------------------------------------


def backward(layer: Any) -> rk.Gradients:
    """The gradients of a layer as its tape gives them."""
    x = np.ones((2, 3, next(iter(layer.params.values())).shape[1]), np.float32)
    y, *_, tape = layer.forward(x)
    found: rk.Gradients = tape.backward(np.ones_like(y))
    return found


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_backward_gives_is_taken_as_it_is(name: str, nesting: str) -> None:
    nest = NESTINGS[nesting]
    whole, plain = layers(), layers()
    optimizers = OPTIMIZERS[name](nest(*whole)), OPTIMIZERS[name](nest(*plain))
    found = [backward(layer) for layer in whole]
    norm = rk.clip_grad_norm(nest(*([f.params for f in found])), 1e30)
    assert rk.clip_grad_norm(nest(*found), 1e30) == norm > 0.0
    optimizers[0].step(nest(*found))
    optimizers[1].step(nest(*(dict(f.params) for f in found)))
    pairs: Any = zip(whole, plain, strict=True)
    for one, other in pairs:
        for key, p in one.params.items():
            assert_same_bits(key, p, other.params[key])
    alone = OPTIMIZERS[name](whole[0])
    alone.step(found[0])
    rk.clip_grad_value(found[0], 1e-3)
    assert max(np.abs(g).max() for g in found[0].params.values()) == np.float32(1e-3)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_gradients_of_several_layers_are_clipped_together(nesting: str) -> None:
    parts = [gradients(layer) for layer in layers()]
    norm = np.sqrt(sum(float(np.square(g, dtype="f8").sum()) for p in parts for g in p.values()))
    want = [{n: g * (1.0 / norm) for n, g in part.items()} for part in parts]
    assert rk.clip_grad_norm(NESTINGS[nesting](*parts), 1.0) == pytest.approx(norm)
    for part, scaled in zip(parts, want, strict=True):
        for name, g in part.items():
            np.testing.assert_allclose(g, scaled[name], rtol=1e-6)
    rk.clip_grad_value(NESTINGS[nesting](*parts), 1e-3)
    assert max(g.max() for part in parts for g in part.values()) == np.float32(1e-3)


@pytest.mark.parametrize(
    "clip", [lambda g: rk.clip_grad_norm(g, 1e-3), lambda g: rk.clip_grad_value(g, 1e-3)]
)
def test_clipping_checks_all_before_the_first_write(clip: Callable[[Any], Any]) -> None:
    first, fixed = np.ones(3), np.ones(3)
    fixed.setflags(write=False)
    bad: list[tuple[Any, type[Exception], str]] = [
        ([first, fixed], ValueError, r"grads\['1'\] must be writeable"),
        ({"a": first, "b": np.ones(3, int)}, TypeError, r"grads\['b'\] must be a float32 or"),
        ({"a": first, "b": [1.0]}, TypeError, r"grads\['b'\] must be an array, got <class 'list'>"),
        ({"a": first, "b": None}, TypeError, r"grads\['b'\] must be an array"),
        (first, TypeError, "grads must be a layer, a model, arrays by name"),
        (None, TypeError, "grads must be a layer, a model, arrays by name"),
    ]
    for grads, error, message in bad:
        with pytest.raises(error, match=message):
            clip(grads)
    assert np.all(first == 1.0)
