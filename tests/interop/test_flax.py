# SPDX-License-Identifier: Apache-2.0
"""Flax's cells and MLX's layers as ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close
from support.reference import Array

flax: Any = pytest.importorskip("flax")
jax: Any = pytest.importorskip("jax")

pytestmark = pytest.mark.filterwarnings("ignore")  # JAX's own

X = np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32)


def varied(params: Any) -> Any:
    """With biases that are not zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32) * 0.5, params)


def linen(name: str, **options: Any) -> tuple[Any, Any]:
    import flax.linen

    cell = getattr(flax.linen, name)(3, **options)
    carry = cell.initialize_carry(jax.random.key(0), X[0].shape)
    return cell, varied(cell.init(jax.random.key(0), carry, X[0])["params"])


def run(step: Any, carry: Any) -> Array:
    outputs = []
    for x in X:
        carry, y = step(carry, x)
        outputs.append(np.asarray(y))
    return np.stack(outputs)


LINEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "simple": ("SimpleCell", {}, "RNN"),
    "simplified GRU": ("MGUCell", {"reset_gate": False}, "SimplifiedGRU"),
    "gru": ("GRUCell", {}, "GRU"),
    "lstm": ("LSTMCell", {}, "LSTM"),
    "optimized lstm": ("OptimizedLSTMCell", {}, "LSTM"),
}


@pytest.mark.parametrize("name", list(LINEN))
def test_linen_cells(name: str) -> None:
    cls, options, ours = LINEN[name]
    cell, params = linen(cls, **options)
    layer = rk.from_flax(cell, params)
    assert type(layer).__name__ == ours
    carry = cell.initialize_carry(jax.random.key(0), X[0].shape)
    want = run(lambda carry, x: cell.apply({"params": params}, carry, x), carry)
    assert_close("y", layer(X)[0], want, 1e-6)


@pytest.mark.parametrize("name", ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"])
def test_nnx_cells(name: str) -> None:
    from flax import nnx

    cell = getattr(nnx, name)(4, 3, rngs=nnx.Rngs(0))
    nnx.update(cell, varied(nnx.state(cell, nnx.Param)))
    layer = rk.from_flax(cell, batch_first=True)
    want = run(cell, cell.initialize_carry(X[0].shape, nnx.Rngs(0)))
    assert_close("y", layer(X.swapaxes(0, 1))[0].swapaxes(0, 1), want, 1e-6)


def test_what_has_no_like_is_named() -> None:
    cell, params = linen("MGUCell")
    with pytest.raises(ValueError, match="the MGUCell has a reset gate after its product"):
        rk.from_flax(cell, params)
    cell, params = linen("GRUCell", gate_fn=jax.nn.hard_sigmoid)
    with pytest.raises(ValueError, match="gate_fn=hard_sigmoid: only sigmoid"):
        rk.from_flax(cell, params)
    cell, params = linen("GRUCell")
    with pytest.raises(TypeError, match="params must be given for a linen GRUCell"):
        rk.from_flax(cell)
    del params["hn"]
    with pytest.raises(ValueError, match=r"must have hr, hz, hn, and lack 'hn'"):
        rk.from_flax(cell, params)
    with pytest.raises(TypeError, match="cell must be one of Flax's"):
        rk.from_flax(3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_mlx_layers(name: str, bias: bool) -> None:
    nn: Any = pytest.importorskip("mlx.nn")
    import mlx.core as mx

    module = getattr(nn, name)(4, 3, bias=bias)
    layer = rk.from_mlx(module)
    theirs = module(mx.array(X.swapaxes(0, 1)))
    theirs = theirs[0] if name == "LSTM" else theirs
    assert_close("y", layer(X.swapaxes(0, 1))[0], np.array(theirs), 1e-5)


def test_mlx_functions() -> None:
    nn: Any = pytest.importorskip("mlx.nn")
    assert rk.from_mlx(nn.RNN(4, 3, nonlinearity=nn.relu)).config()["nonlinearity"] == "relu"
    with pytest.raises(ValueError, match="RNN must compute what a RNN does"):
        rk.from_mlx(nn.RNN(4, 3, nonlinearity=nn.sigmoid))
    with pytest.raises(TypeError, match=r"module must be mlx\.nn\.RNN, GRU or LSTM"):
        rk.from_mlx(nn.Linear(2, 3))
