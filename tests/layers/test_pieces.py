# SPDX-License-Identifier: Apache-2.0
"""Embedding, Dropout and LayerNorm: against PyTorch, finite differences, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.differences import check_gradients, weighted

PIECES: dict[str, Callable[..., Any]] = {
    "Embedding": lambda **options: rk.Embedding(7, 3, seed=1, **options),
    "Dropout": lambda **options: rk.Dropout(0.4),
    "LayerNorm": lambda **options: rk.LayerNorm(5, **options),
    "Linear": lambda **options: rk.Linear(5, 3, seed=1, **options),
}


@pytest.mark.parametrize("name", PIECES)
def test_a_repr_builds_an_equal_one(name: str) -> None:
    piece = PIECES[name]()
    text = repr(piece)
    assert text.startswith(f"{name}(")
    again = eval(text, {name: getattr(rk, name)})
    assert again.config() == piece.config()
    assert again.params == piece.params


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
@pytest.mark.parametrize("name", PIECES)
def test_copies_share_nothing(name: str, copied: Callable[[Any], Any]) -> None:
    piece = PIECES[name]()
    twin = copied(piece)
    x: Any = np.array([1, 2]) if name == "Embedding" else np.ones((2, 5), np.float32)
    assert_same_bits("y", twin(x), piece(x))
    for key in piece.params:
        twin.params[key] += 1.0
        assert not np.array_equal(twin.params[key], piece.params[key])


@pytest.mark.parametrize("name", PIECES)
def test_what_was_constructed_is_fixed(name: str) -> None:
    piece = PIECES[name]()
    with pytest.raises(AttributeError, match="is read-only"):
        piece.device = "cuda"


# -- Embedding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(), (0,), (6,), (5, 4), (3, 0)])
def test_an_embedding_picks_rows_and_sums_their_gradients(dtype: str, lead: tuple[int]) -> None:
    rng = np.random.default_rng(0)
    words = rk.Embedding(9, 3, dtype=dtype, seed=1)
    x = rng.integers(0, 9, lead)
    y, tape = words.forward(x)
    dy = rng.standard_normal(y.shape).astype(dtype)
    assert_same_bits("y", y, words.params["weight"][x])
    assert_same_bits("y of a call", words(x), y)
    dx, grads = tape.backward(dy)
    want = np.zeros((9, 3))
    np.add.at(want, x, dy)
    assert dx is None
    assert grads["weight"].dtype == dtype
    assert_close("dweight", grads["weight"], want, 1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_an_embedding_agrees_with_pytorch(dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    words = rk.Embedding(200, 16, seed=1)
    x = np.minimum(rng.zipf(1.3, (40, 30)) - 1, 199).astype(dtype)
    y, tape = words.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    weight = torch.tensor(words.params["weight"], requires_grad=True)
    want = torch.nn.functional.embedding(torch.tensor(x.astype(np.int64)), weight)
    want.backward(torch.tensor(dy))
    assert_same_bits("y", y, want.detach().numpy())
    assert_close("dweight", tape.backward(dy).params["weight"], weight.grad.numpy(), 1e-6)


def test_long_sums_of_one_token_keep_their_digits() -> None:
    words = rk.Embedding(3, 2, seed=1)
    x = np.ones(100_000, np.int64)
    x[::7] = 2
    dy = np.random.default_rng(0).uniform(0.5, 1.5, (len(x), 2)).astype(np.float32)
    got = words.forward(x)[1].backward(dy).params["weight"]
    want = np.stack([dy[x == token].sum(axis=0, dtype=np.float64) for token in range(3)])
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_an_embedding_starts_normal() -> None:
    first, second, other = (rk.Embedding(100, 50, seed=s).params["weight"] for s in (3, 3, 4))
    assert_same_bits("weight", first, second)
    assert not np.array_equal(first, other)
    assert abs(first.mean()) < 0.05
    assert abs(first.std() - 1.0) < 0.05


def test_what_an_embedding_refuses() -> None:
    words = rk.Embedding(9, 3)
    with pytest.raises(TypeError, match="x must be integers, which are tokens, got float32"):
        words(np.zeros(2, np.float32))
    for token in (-1, 9):
        with pytest.raises(ValueError, match=rf"x must hold tokens in 0\.\.8, got {token}"):
            words.forward(np.array([0, token, 8]))
    _, tape = words.forward(np.zeros((2, 4), np.int64))
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 4, 3\), got \(2, 4, 4\)"):
        tape.backward(np.zeros((2, 4, 4), np.float32))
    with pytest.raises(TypeError, match="dy must be float32, got float64"):
        tape.backward(np.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="tokens must be a positive integer, got 0"):
        rk.Embedding(0, 3)


# -- Dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_scales_what_it_leaves(dtype: str) -> None:
    dropout = rk.Dropout(0.25)
    x = np.random.default_rng(0).standard_normal((20, 30, 40)).astype(dtype)
    y, tape = dropout.forward(x, dropout_key=5)
    left = y != 0
    assert y.dtype == dtype
    assert abs(left.mean() - 0.75) < 0.01
    np.testing.assert_allclose(y[left], x[left] / 0.75, rtol=1e-6)
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
    dx, grads = tape.backward(dy)
    assert not grads
    np.testing.assert_allclose(dx, np.where(left, dy / 0.75, 0.0), rtol=1e-6)


def test_dropout_follows_from_its_key() -> None:
    dropout = rk.Dropout(0.5)
    x = np.ones((6, 5), np.float32)
    first, again, other = (dropout.forward(x, dropout_key=key)[0] for key in (1, 1, 2))
    assert_same_bits("y", first, again)
    assert not np.array_equal(first, other)
    # That of a layer with the same key is another.
    layer = rk.RNN(5, 5, 2, nonlinearity="relu", dropout=0.5)
    for name, p in layer.params.items():
        p[...] = np.eye(5) if name.startswith("weight_ih") else 0.0
    assert not np.array_equal(first, layer.forward(x[None], dropout_key=1)[0][0])


def test_dropout_in_inference_or_of_nothing_changes_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    assert rk.Dropout(0.5)(x) is x
    y, tape = rk.Dropout(0.0).forward(x)
    assert y is x
    assert_same_bits("dx", tape.backward(2.0 * x)[0], 2.0 * x)


def test_what_dropout_refuses() -> None:
    for share in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="share must be"):
            rk.Dropout(share)
    dropout = rk.Dropout(0.5)
    with pytest.raises(ValueError, match=r"dropout_key must be given when share is 0\.5"):
        dropout.forward(np.zeros(3))
    with pytest.raises(ValueError, match=r"dropout_key must be below 2\*\*64"):
        dropout.forward(np.zeros(3), dropout_key=2**64)
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        dropout(np.zeros(3, np.int64))
    _, tape = dropout.forward(np.zeros(3), dropout_key=1)
    with pytest.raises(ValueError, match=r"dy must have shape \(3,\), got \(4,\)"):
        tape.backward(np.zeros(4))


# -- LayerNorm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (0,), (300,), (5, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_layer_norm_agrees_with_pytorch(
    dtype: str, tolerance: float, lead: tuple[int, ...], bias: bool
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    norm = rk.LayerNorm(6, eps=1e-3, bias=bias, dtype=dtype)
    for p in norm.params.values():
        p[...] = rng.standard_normal(6)
    x = (3.0 + 2.0 * rng.standard_normal((*lead, 6))).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    y, tape = norm.forward(x)
    assert_same_bits("y of a call", norm(x), y)
    x_leaf, *leaves = (
        torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, *norm.params.values())
    )
    want = torch.nn.functional.layer_norm(x_leaf, (6,), *leaves, eps=1e-3)
    want.backward(torch.tensor(dy, dtype=torch.float64))
    dx, grads = tape.backward(dy)
    assert (y.dtype, dx.dtype, dx.shape) == (x.dtype, x.dtype, x.shape)
    assert_close("y", y, want.detach().numpy(), tolerance)
    assert_close("dx", dx, x_leaf.grad.numpy(), tolerance)
    for name, leaf in zip(norm.params, leaves, strict=True):
        assert_close(f"d{name}", grads[name], leaf.grad.numpy(), tolerance)


def test_layer_norm_gradients_agree_with_finite_differences() -> None:
    rng = np.random.default_rng(0)
    norm = rk.LayerNorm(5, dtype="float64")
    norm.params.update({name: rng.standard_normal(5) for name in norm.params})
    x, dy = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5))
    dx, grads = norm.forward(x)[1].backward(dy)
    claimed = {"x": (x, dx), **{name: (norm.params[name], grads[name]) for name in grads}}
    check_gradients(lambda: weighted([norm(x)], [dy]), claimed, rtol=1e-5, atol=1e-7)


def test_a_tape_of_layer_norm_keeps_what_it_needs() -> None:
    norm = rk.LayerNorm(4)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    _, tape = norm.forward(x)
    before = tape.backward(x.copy())[0]
    dy = x.copy()
    x[...] = 0.0
    norm.params["weight"] += 1.0
    assert_same_bits("dx", tape.backward(dy)[0], before)


def test_rows_do_not_depend_on_one_another() -> None:
    norm = rk.LayerNorm(37)
    x = np.random.default_rng(0).standard_normal((50, 37)).astype(np.float32)
    whole = norm(x)
    for row in (0, 7, 49):
        assert_same_bits("y", norm(x[row]), whole[row])


def test_layer_norm_of_a_constant_row_is_its_bias() -> None:
    norm = rk.LayerNorm(3)
    norm.params["bias"] = np.array([1.0, 2.0, 3.0], np.float32)
    np.testing.assert_array_equal(norm(np.full((2, 3), 7.0, np.float32)), [[1, 2, 3]] * 2)


def test_what_layer_norm_refuses() -> None:
    with pytest.raises(ValueError, match="eps must be a finite number above 0"):
        rk.LayerNorm(3, eps=0.0)
    norm = rk.LayerNorm(4)
    with pytest.raises(TypeError, match=r"x must be float32, got float64: .*dtype='float64'"):
        norm(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 4\), got \(2, 3\)"):
        norm.forward(np.zeros((2, 3), np.float32))
    _, tape = norm.forward(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 4\), got \(4,\)"):
        tape.backward(np.zeros(4, np.float32))


def test_an_eps_that_the_dtype_does_not_know_is_refused() -> None:
    """It would be 0, and a row that does not vary not a number."""
    with pytest.raises(ValueError, match=r"eps must be above 0 in float32, got 1e-320"):
        rk.LayerNorm(3, eps=1e-320)
    assert np.all(rk.LayerNorm(3, eps=1e-320, dtype="float64")(np.ones((2, 3))) == 0.0)
