# SPDX-License-Identifier: Apache-2.0
"""PyTorch: stacked, bidirectional and packed, outputs and every gradient, both dtypes.

The same problems go through reference.py, so that what the other tests are held against is itself
held against PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support import reference
from support.compare import assert_close
from support.layers import TOLERANCE, as_layer_state, as_tuple, cast, make, random_state
from support.reference import Array, State

torch = pytest.importorskip("torch")

CELLS = ["rnn_tanh", "rnn_relu", "gru_after", "lstm"]
LENGTHS = np.array([5, 8, 1, 8, 3, 6])
STEPS, BATCH, INPUTS, HIDDEN = 8, 6, 5, 7


def turn_update_rows(cell: str, rows: Array) -> Array:
    """PyTorch's z is 1 - u: a GRU's update rows change sign, either way."""
    if cell != "gru_after":
        return rows
    r, u, n = np.split(rows, 3)
    return np.concatenate([r, -u, n])


def torch_twin(
    cell: str, layer: Any, layers: int, *, bidirectional: bool, batch_first: bool
) -> Any:
    """The PyTorch module that computes what ``layer`` does."""
    options: dict[str, Any] = {"bidirectional": bidirectional, "batch_first": batch_first}
    if cell.startswith("rnn"):
        options["nonlinearity"] = cell.removeprefix("rnn_")
    cls = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lst": torch.nn.LSTM}[cell[:3]]
    dtype = torch.from_numpy(layer.params["weight_hh_l0"]).dtype
    twin = cls(INPUTS, HIDDEN, layers, dtype=dtype, **options)
    with torch.no_grad():
        for ending in reference.suffixes(layer.params):
            for kind in ("weight_ih", "weight_hh"):
                values = turn_update_rows(cell, layer.params[kind + ending])
                getattr(twin, kind + ending).copy_(torch.from_numpy(values))
            bias = turn_update_rows(cell, layer.params["bias" + ending])
            # Their two biases add up to our one, but in the candidate of a reset-after GRU.
            b_hh = np.linspace(-0.5, 0.5, len(bias), dtype=bias.dtype)
            if cell == "gru_after":
                b_hh[-HIDDEN:] = 0.0
            b_ih = bias - b_hh
            if cell == "gru_after":
                b_hh[-HIDDEN:] = layer.params["bias_hn" + ending]
            getattr(twin, "bias_ih" + ending).copy_(torch.from_numpy(b_ih))
            getattr(twin, "bias_hh" + ending).copy_(torch.from_numpy(b_hh))
    return twin


def torch_gradients(cell: str, twin: Any, layer: Any) -> dict[str, Array]:
    """The gradients of the twin's parameters under our names and in our signs."""
    grads = {}
    for name in layer.params:
        if name.startswith("bias_hn"):
            theirs = twin.get_parameter(name.replace("bias_hn", "bias_hh")).grad.numpy()
            grads[name] = theirs[-HIDDEN:]
        else:
            theirs = twin.get_parameter(name.replace("bias", "bias_ih")).grad.numpy()
            grads[name] = turn_update_rows(cell, theirs)
    return grads


def as_tensors(state: Any) -> tuple[Any, ...]:
    """A state of PyTorch's, ``h`` or ``(h, c)``, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("upstream", ["y", "state", "both"])
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first"),
    [(1, False, False), (1, True, True), (3, False, True), (2, True, False)],
    ids=["one", "one-bidirectional-batch-first", "three-batch-first", "two-bidirectional"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_against_torch(
    cell: str,
    dtype: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    ragged: bool,
    upstream: str,
) -> None:
    tolerance = TOLERANCE[dtype]
    layer = make(
        cell,
        INPUTS,
        HIDDEN,
        layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dtype=dtype,
    )
    directions = 2 if bidirectional else 1
    rng = np.random.default_rng(3)
    x = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(dtype)
    dy = rng.standard_normal((STEPS, BATCH, directions * HIDDEN)).astype(dtype)
    state_shape = (layers * directions, BATCH, HIDDEN)
    state = cast(random_state(cell, state_shape, seed=4), dtype)
    dstate = cast(random_state(cell, state_shape, seed=5), dtype)
    given_dy = dy if upstream != "state" else None
    given_dstate = dstate if upstream != "y" else None
    lengths = LENGTHS if ragged else None

    def ours(a: Array) -> Array:
        return a.swapaxes(0, 1) if batch_first else a

    # PyTorch.
    twin = torch_twin(cell, layer, layers, bidirectional=bidirectional, batch_first=batch_first)
    torch_x = torch.from_numpy(ours(x).copy()).requires_grad_()
    torch_state = tuple(torch.from_numpy(s.copy()).requires_grad_() for s in state)
    fed = torch_x
    if ragged:
        fed = torch.nn.utils.rnn.pack_padded_sequence(
            torch_x, torch.from_numpy(LENGTHS), batch_first=batch_first, enforce_sorted=False
        )
    torch_y, torch_last = twin(fed, as_layer_state(torch_state))
    if ragged:
        torch_y, _ = torch.nn.utils.rnn.pad_packed_sequence(
            torch_y, batch_first=batch_first, total_length=STEPS
        )
    loss = torch.zeros((), dtype=torch_y.dtype)
    if given_dy is not None:
        loss = loss + (torch_y * torch.from_numpy(ours(given_dy).copy())).sum()
    if given_dstate is not None:
        for one, d in zip(as_tensors(torch_last), given_dstate, strict=True):
            loss = loss + (one * torch.from_numpy(d)).sum()
    loss.backward()
    want_state: State = tuple(s.detach().numpy() for s in as_tensors(torch_last))
    want_dstate: State = tuple(s.grad.numpy() for s in torch_state)
    want_grads = torch_gradients(cell, twin, layer)

    # rnnkern.
    y, last, tape = layer.forward(ours(x), as_layer_state(state), lengths)
    dx, dfirst, grads = tape.backward(
        None if given_dy is None else ours(given_dy), as_layer_state(given_dstate)
    )
    # reference.py, which knows (T, B, I) alone.
    oracle = reference.Tape(cell, layer.params, x, state, lengths)
    oracle_dx, oracle_dfirst, oracle_grads = oracle.backward(given_dy, given_dstate)
    assert oracle_dx is not None

    for who, got_y, got_state, got_dx, got_dstate, got_grads in [
        ("rnnkern", y, as_tuple(last), dx, as_tuple(dfirst), grads),
        ("reference", ours(oracle.y), oracle.state, ours(oracle_dx), oracle_dfirst, oracle_grads),
    ]:
        assert_close(f"{who} y", got_y, torch_y.detach().numpy(), tolerance)
        assert_close(f"{who} dx", got_dx, torch_x.grad.numpy(), tolerance)
        for name, got, want in zip("hc", got_state, want_state, strict=False):
            assert_close(f"{who} {name}_n", got, want, tolerance)
        for name, got, want in zip("hc", got_dstate, want_dstate, strict=False):
            assert_close(f"{who} d{name}_0", got, want, tolerance)
        assert got_grads.keys() == want_grads.keys()
        for name, want in want_grads.items():
            assert_close(f"{who} {name}", got_grads[name], want, tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_unbatched_against_torch(cell: str) -> None:
    layer = make(cell, INPUTS, HIDDEN, 2, bidirectional=True, dtype="float64")
    twin = torch_twin(cell, layer, 2, bidirectional=True, batch_first=False)
    x = np.random.default_rng(6).standard_normal((STEPS, INPUTS))
    state = tuple(s[:, 0] for s in random_state(cell, (4, 1, HIDDEN)))
    with torch.no_grad():
        want, want_last = twin(
            torch.from_numpy(x), as_layer_state(tuple(torch.from_numpy(s) for s in state))
        )
    y, last = layer(x, as_layer_state(state))
    assert_close("y", y, want.numpy(), TOLERANCE["float64"])
    for got, theirs in zip(as_tuple(last), as_tensors(want_last), strict=True):
        assert_close("state", got, theirs.numpy(), TOLERANCE["float64"])
