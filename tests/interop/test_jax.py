# SPDX-License-Identifier: Apache-2.0
"""Layers as functions of JAX: against loops that JAX itself runs and differentiates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import CELLS

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")

from rnnkern.jax import functional  # noqa: E402

RNG = np.random.default_rng
LENGTHS = [None, np.array([6, 2, 0])]


@pytest.fixture(autouse=True)
def wide() -> Any:
    with jax.enable_x64(True):
        yield


def loop(cell: str, w: list[Any], x: Any, h: Any, c: Any) -> Any:
    """One direction of a cell as JAX's users write it, for weights (ih, hh, b[, hn])."""
    sigmoid = jax.nn.sigmoid

    def step(carry: Any, x_t: Any) -> Any:
        h, c = carry
        apart = cell in ("mingru", "minlstm", "indrnn")  # whose weights are (ih, b[, u])
        a = x_t @ w[0].T + w[1 if apart else 2]
        if cell == "lstm":
            u, f, n, o = jnp.split(a + h @ w[1].T, 4, axis=-1)
            c = sigmoid(f) * c + sigmoid(u) * jnp.tanh(n)
            h = sigmoid(o) * jnp.tanh(c)
        elif cell == "mingru":
            u, n = jnp.split(a, 2, axis=-1)
            h = sigmoid(u) * n + (1 - sigmoid(u)) * h
        elif cell == "minlstm":
            u, f, n = jnp.split(a, 3, axis=-1)
            h = (sigmoid(u) * n + sigmoid(f) * h) / (sigmoid(u) + sigmoid(f))
        elif cell == "indrnn":
            h = jax.nn.relu(a + w[2][0] * h)
        elif cell == "rnn":
            h = jnp.tanh(a + h @ w[1].T)
        elif cell == "simplified-gru":
            u, n = jnp.split(a + h @ w[1].T, 2, axis=-1)
            u = sigmoid(u)
            h = u * jnp.tanh(n) + (1 - u) * h
        elif cell == "gru-after":
            r, u, n = jnp.split(a, 3, axis=-1)
            hr, hu, hn = jnp.split(h @ w[1].T, 3, axis=-1)
            r, u = sigmoid(r + hr), sigmoid(u + hu)
            h = u * jnp.tanh(n + r * (hn + w[3])) + (1 - u) * h
        elif cell == "gru":
            r, u, n = jnp.split(a, 3, axis=-1)
            wr, wu, wn = jnp.split(w[1], 3, axis=0)
            r, u = sigmoid(r + h @ wr.T), sigmoid(u + h @ wu.T)
            h = u * jnp.tanh(n + (r * h) @ wn.T) + (1 - u) * h
        else:
            f, n = jnp.split(a, 2, axis=-1)
            wf, wn = jnp.split(w[1], 2, axis=0)
            f = sigmoid(f + h @ wf.T)
            h = f * jnp.tanh(n + (f * h) @ wn.T) + (1 - f) * h
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (h, c), x)
    return y, h, c


def layer(cell: str, **options: Any) -> rk.Recurrent:
    return CELLS[cell].build(5, 7, dtype="float64", seed=1, **options)


@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_a_loop_of_jax(cell: str) -> None:
    apply, params = functional(layer(cell))
    rng = RNG(0)
    x, dy = rng.standard_normal((6, 3, 5)), rng.standard_normal((6, 3, 7))
    h, c = rng.standard_normal((2, 3, 7))
    lstm, order = cell == "lstm", tuple(params)

    def ours(params: Any, x: Any, h: Any, c: Any) -> Any:
        y, state = apply(params, x, (h[None], c[None]) if lstm else h[None])
        last = state[1][0] if lstm else 0.0
        return (y * dy).sum() + jnp.sum(last * dy[0]) + ((state[0] if lstm else state) ** 2).sum()

    def theirs(params: Any, x: Any, h: Any, c: Any) -> Any:
        y, h, c = loop(cell, [params[name] for name in order], x, h, c)
        last = c if lstm else 0.0
        return (y * dy).sum() + jnp.sum(last * dy[0]) + (h**2).sum()

    every = (0, 1, 2, 3) if lstm else (0, 1, 2)
    ours_, theirs_ = (
        jax.jit(jax.value_and_grad(f, every))(params, x, h, c) for f in (ours, theirs)
    )
    for mine, expected in zip(*(jax.tree.leaves(v) for v in (ours_, theirs_)), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS, ids=["whole", "ragged"])
@pytest.mark.parametrize("cell", CELLS)
def test_is_the_layer(cell: str, lengths: Any) -> None:
    lstm = layer(cell, num_layers=2, bidirectional=True, batch_first=True, bias=cell != "rnn")
    apply, params = functional(lstm)
    rng = RNG(2)
    x, dy = rng.standard_normal((3, 6, 5)), rng.standard_normal((3, 6, 14))
    y, state, tape = lstm.forward(x, None, lengths)
    mine, last = jax.jit(apply)(params, x, None, lengths)
    np.testing.assert_array_equal(mine, y)
    for a, b in zip(jax.tree.leaves(last), state if cell == "lstm" else (state,), strict=True):
        np.testing.assert_array_equal(a, b)
    dx, _, grads = tape.backward(dy)
    of_params, of_x = jax.grad(lambda p, x: (apply(p, x, None, lengths)[0] * dy).sum(), (0, 1))(
        params, x
    )
    np.testing.assert_allclose(of_x, dx, rtol=1e-12, atol=1e-13)
    assert of_params.keys() == grads.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(of_params[name], grad, rtol=1e-12, atol=1e-13)


def test_vmap_over_the_batch() -> None:
    apply, params = functional(layer("gru"))
    xs = RNG(3).standard_normal((4, 6, 5))
    y, _ = apply(params, xs.swapaxes(0, 1))
    mapped, last = jax.vmap(apply, (None, 0))(params, xs)
    np.testing.assert_array_equal(mapped, y.swapaxes(0, 1))
    np.testing.assert_array_equal(last[:, 0], y[-1])

    def total(params: Any, x: Any) -> Any:
        return (apply(params, x)[0] ** 2).sum()

    each = jax.vmap(jax.grad(total), (None, 0))(params, xs)
    whole = jax.grad(lambda p: jax.vmap(total, (None, 0))(p, xs).sum())(params)
    for name in params:
        alone = np.stack([jax.grad(total)(params, x)[name] for x in xs])
        np.testing.assert_allclose(each[name], alone, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(whole[name], alone.sum(axis=0), rtol=1e-11, atol=1e-12)
    # Other parameters for each example.
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    both = jax.vmap(apply, (0, None))(many, xs[0])[0]
    np.testing.assert_array_equal(both[0], apply(params, xs[0])[0])
    np.testing.assert_array_equal(both[1], apply({k: 2 * p for k, p in params.items()}, xs[0])[0])


def test_vmap_is_that_of_a_loop_of_jax() -> None:
    """Over x and the states, within a gradient and around one."""
    apply, params = functional(layer("lstm"))
    order = tuple(params)  # JAX gives them by the alphabet
    xs, hs, cs = (RNG(k).standard_normal(s) for k, s in enumerate([(4, 6, 2, 5), *[(4, 2, 7)] * 2]))

    def ours(params: Any, x: Any, h: Any, c: Any) -> Any:
        return jnp.sin(apply(params, x, (h[None], c[None]))[0]).sum()

    def theirs(params: Any, x: Any, h: Any, c: Any) -> Any:
        return jnp.sin(loop("lstm", [params[name] for name in order], x, h, c)[0]).sum()

    every = (0, 1, 2, 3)
    found = []
    for one in (ours, theirs):
        mapped = jax.vmap(one, (None, 0, 0, 0))
        around = jax.vmap(jax.grad(one, every), (None, 0, 0, 0))
        within = jax.grad(lambda *given, f=mapped: f(*given).sum(), every)
        results = [jax.jit(f)(params, xs, hs, cs) for f in (mapped, around, within)]
        found.append(jax.tree.leaves(results))
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def test_vmap_of_batches_with_lengths() -> None:
    apply, params = functional(layer("lstm"))
    xs, lengths = RNG(4).standard_normal((2, 6, 3, 5)), np.array([[6, 2, 0], [1, 5, 3]])
    y, (h, c) = jax.vmap(lambda x, n: apply(params, x, None, n))(xs, lengths)
    for k in range(2):
        one, (h_one, c_one) = apply(params, xs[k], None, lengths[k])
        for a, b in ((y, one), (h, h_one), (c, c_one)):
            np.testing.assert_array_equal(a[k], b)


def test_bfloat16_in_and_out_and_in_products() -> None:
    gru = rk.GRU(64, 64, compute="bfloat16", seed=0)
    apply, params = functional(gru)
    x = RNG(5).standard_normal((6, 3, 64), np.float32)
    y, _ = jax.jit(apply)(params, jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    narrow = np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(y, jnp.asarray(gru(narrow)[0], jnp.bfloat16))


def test_learns_under_jit() -> None:
    apply, params = functional(rk.LSTM(1, 16, seed=0))
    x = RNG(6).standard_normal((10, 64, 1), np.float32)
    target = x.sum(axis=0)

    def loss(params: Any) -> Any:
        y, _ = apply(params, x)
        return jnp.square(y[-1].sum(axis=-1, keepdims=True) - target).mean()

    first = loss(params)
    descend = jax.jit(
        lambda p: jax.tree.map(lambda a, g: a - np.float32(0.005) * g, p, jax.grad(loss)(p))
    )
    for _ in range(150):
        params = descend(params)
    assert loss(params) < first / 4


def test_functions_of_equal_layers_are_equal() -> None:
    one, two = functional(rk.GRU(2, 3))[0], functional(rk.GRU(2, 3))[0]
    assert one == two
    assert hash(one) == hash(two)
    assert one != functional(rk.GRU(2, 4))[0]
    assert (
        repr(one) == "Function(gru_before, 2, 3, num_layers=1, bidirectional=False, reverse=False, "
        "merge='concat', compute=None)"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, p: f(p, jnp.zeros((4, 3, 9))), ValueError, r"x must have shape \(T, B, 5\)"),
        (lambda f, p: f(p, jnp.zeros((4, 3), int)), TypeError, "embed tokens first"),
        (lambda f, p: f({}, jnp.zeros((4, 3, 5))), ValueError, "params must have the names"),
        (
            lambda f, p: f(p, jnp.zeros((4, 3, 5)), jnp.zeros((1, 2, 7))),
            ValueError,
            r"state must be h of shape \(1, 3, 7\)",
        ),
        (
            lambda f, p: f(p, jnp.zeros((4, 3, 5)), None, jnp.array([1, 2])),
            ValueError,
            "lengths must be 3 integers",
        ),
        (
            lambda f, p: f(p, jnp.zeros((4, 3, 5)), None, jnp.array([1, 2, 5])),
            Exception,
            r"lengths must lie in 0\.\.4, got 5 for row 2",
        ),
    ],
)
def test_mistakes_are_told(call: Any, error: type[Exception], message: str) -> None:
    apply, params = functional(layer("gru"))
    with pytest.raises(error, match=message):
        jax.block_until_ready(call(apply, params))


class Held(rk.LSTM):
    """Whose config says nothing of its zoneout."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(2, hidden_size, zoneout=0.1)

    def config(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (rk.GRU(2, 3, zoneout=0.1), "zoneout=0.1"),
        (rk.LSTM(2, 3, cell_zoneout=0.1), "cell_zoneout=0.1"),
        (rk.GRU(2, 3, layer_norm=True), "layer_norm=True"),
        (rk.LSTM(2, 3, proj_size=2), "proj_size=2"),
        (rk.GRU(2, 3, clip=1.0), "clip=1.0"),
        (rk.LSTM(2, 3, cell_clip=1.0), "cell_clip=1.0"),
        (rk.GRU(2, 3, activation="relu"), "activation='relu'"),
        (rk.RNN(2, 3, nonlinearity="elu"), "nonlinearity='elu'"),
        (Held(3), "zoneout=0.1"),
    ],
    ids=str,
)
def test_options_that_the_function_has_not_are_named(given: rk.Recurrent, message: str) -> None:
    with pytest.raises(ValueError, match=f"rnnkern.jax has no layer with {message}"):
        functional(given)


def test_what_is_dropped_in_training_is_no_part_of_it() -> None:
    given = rk.RNN(2, 3, nonlinearity="relu", recurrent_dropout=0.5, weight_drop=0.5, reverse=True)
    apply, params = functional(given)
    x = RNG(7).standard_normal((4, 1, 2), np.float32)
    np.testing.assert_array_equal(apply(params, x)[0], given(x)[0])


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="layer must be a recurrent layer"):
        functional(rk.Linear(2, 3))  # type: ignore[arg-type]
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        functional(rk.GRU(2, 3, dtype="float64"))
