# SPDX-License-Identifier: Apache-2.0
"""Cells without a recurrent product: against PyTorch's operations, and what they have not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.layers import KINDS_WITHOUT_PRODUCT, WITHOUT_PRODUCT, make
from support.reference import Array
from support.threads import check_same_bits, using_threads

torch: Any = pytest.importorskip("torch")

STEPS, BATCH, INPUTS, UNITS = 12, 4, 5, 19


def _loop(cell: str, p: dict[str, Any], x: Any, h: Any) -> tuple[Any, Any]:
    """As its paper has it, step by step: y and the last h."""
    ys = []
    for x_t in x:
        a = x_t @ p["weight_ih_l0"].T + p["bias_l0"]
        if cell == "min_gru":
            u, n = a.chunk(2, -1)
            h = torch.sigmoid(u) * n + (1 - torch.sigmoid(u)) * h
        elif cell == "min_lstm":
            u, f, n = a.chunk(3, -1)
            u, f = torch.sigmoid(u), torch.sigmoid(f)
            h = u / (u + f) * n + f / (u + f) * h
        else:
            h = torch.relu(a + p["weight_u_l0"] * h)
        ys.append(h)
    return torch.stack(ys), h


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", WITHOUT_PRODUCT)
def test_pytorch_computes_the_same(cell: str, dtype: str) -> None:
    layer = make(cell, INPUTS, UNITS, dtype=dtype)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((STEPS, BATCH, n)).astype(dtype) for n in (INPUTS, UNITS))
    h, dh = (rng.standard_normal((1, BATCH, UNITS)).astype(dtype) for _ in range(2))
    y, last, tape = layer.forward(x, h)
    dx, dfirst, grads = tape.backward(dy, dh)

    params = {n: torch.tensor(p, dtype=torch.float64) for n, p in layer.params.items()}
    given = [torch.tensor(a, dtype=torch.float64) for a in (x, h[0])]
    for tensor in (*params.values(), *given):
        tensor.requires_grad_()
    want, end = _loop(cell, params, *given)
    ((want * torch.tensor(dy)).sum() + (end * torch.tensor(dh[0])).sum()).backward()
    near = 2e-6 if dtype == "float32" else 1e-13
    assert_close("y", y, want.detach().numpy(), near)
    assert_close("last", last[0], end.detach().numpy(), near)
    assert_close("dx", dx, given[0].grad.numpy(), near)
    assert_close("dh", dfirst[0], given[1].grad.numpy(), near)
    assert grads.keys() == params.keys()
    for name, tensor in params.items():
        assert_close(name, grads[name], tensor.grad.numpy(), near)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("cell", WITHOUT_PRODUCT)
def test_threads_change_no_bit(cell: str, batch: int) -> None:
    """Shared by rows or, without barriers, by units."""
    layer = make(cell, 64, 130, 2)
    x = np.random.default_rng(1).standard_normal((900, batch, 64), dtype=np.float32)

    def results() -> list[Array]:
        y, _, tape = layer.forward(x)
        return [y, *tape.backward(y).params.values()]

    check_same_bits(results, threads=(2, 4), teams=())


def test_units_that_wait_for_nobody_are_shared() -> None:
    with using_threads(2):
        plan = rk.MinGRU(256, 256).plan(1000, 1)
    assert (plan["row_groups"], plan["unit_groups"]) == (1, 2)
    assert "no barrier" in plan["reason"]


def test_closed_gates_share_alike() -> None:
    """Where both gates of a MinLSTM vanish, so do not the shares."""
    layer = rk.MinLSTM(1, 1, bias=False)
    layer.params["weight_ih_l0"][:, 0] = [-1000.0, -1000.0, 0.0]
    y, _, tape = layer.forward(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32))
    assert y.item() == 0.5
    assert np.isfinite(tape.backward(y).params["weight_ih_l0"]).all()


@pytest.mark.parametrize("cls", KINDS_WITHOUT_PRODUCT)
def test_what_there_is_not(cls: Any) -> None:
    layer = cls(3, 4, recurrent_init="orthogonal", seed=0)
    assert not any(name.startswith("weight_hh") for name in layer.params)
    with pytest.raises(ValueError, match=f"ONNX has no operator for a {cls.__name__}"):
        layer.to_onnx("never.onnx")
    with pytest.raises(ValueError, match=f"PyTorch has no cell like {cls.__name__}"):
        layer.to_torch(arrays=True)


def test_an_indrnns_own_weights_begin_between_0_and_1() -> None:
    own = rk.IndRNN(3, 400, seed=5).params["weight_u_l0"]
    assert own.shape == (1, 400)
    assert 0.0 <= own.min() < 0.05
    assert 0.95 < own.max() <= 1.0
    assert_same_bits("again", rk.IndRNN(3, 400, seed=5).params["weight_u_l0"], own)
