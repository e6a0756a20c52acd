# SPDX-License-Identifier: Apache-2.0
"""rnnkern.torch's modules against torch.nn's: values, gradients, state dicts, packed sequences."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close
from support.layers import CELLS, as_tuple, make
from support.processes import run_python

torch = pytest.importorskip("torch")
rt = pytest.importorskip("rnnkern.torch")

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {}),
    "rnn, relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
SHAPES: dict[str, dict[str, Any]] = {
    "one": {},
    "stacked, both ways": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "num_layers": 2},
    "batch first": {"batch_first": True, "bidirectional": True, "dtype": torch.float64},
}
LENGTHS = torch.tensor([3, 6, 1, 6])


def twins(kind: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """PyTorch's module and ours, which has its state dict."""
    cls, fixed = KINDS[kind]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cls)(5, 7, **fixed, **options)
    ours = getattr(rt, cls)(5, 7, **fixed, **options)
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return theirs, ours


def everything(module: Any, x: Any, hx: Any = None, **options: Any) -> list[Any]:
    """Outputs, last states and every gradient."""
    x = x.clone().requires_grad_()
    given = [s.clone().requires_grad_() for s in (as_tensors(hx) if hx is not None else ())]
    state = None if hx is None else tuple(given) if isinstance(hx, tuple) else given[0]
    module.zero_grad()
    y, last = module(x, state, **options)
    loss = (y * torch.cos(torch.arange(y.numel()).reshape(y.shape).to(y.dtype))).sum()
    for k, part in enumerate(as_tensors(last)):
        loss = loss + (k + 1) * part.pow(2).sum()
    loss.backward()
    grads = [t.grad for t in (*given, *module.parameters())]
    return [y, *as_tensors(last), x.grad, *grads]


def as_tensors(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_all_close(got: list[Any], want: list[Any]) -> None:
    for k, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert ours.dtype == theirs.dtype
        tolerance = 1e-12 if theirs.dtype == torch.float64 else 1e-5
        assert_close(str(k), ours.detach().numpy(), theirs.detach().numpy(), tolerance)


def state_for(module: Any, batch: int) -> Any:
    count = module.num_layers * (2 if module.bidirectional else 1)
    shape, dtype = (count, batch, module.hidden_size), module.weight_ih_l0.dtype
    parts = tuple(torch.randn(shape, dtype=dtype) for _ in range(2))
    return parts if isinstance(module, torch.nn.LSTM) else parts[0]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", list(KINDS))
def test_values_and_gradients(kind: str, shape: str, with_state: bool) -> None:
    theirs, ours = twins(kind, SHAPES[shape])
    x = torch.randn(6, 4, 5, dtype=SHAPES[shape].get("dtype"))
    hx = state_for(theirs, 6 if theirs.batch_first else 4) if with_state else None
    assert_all_close(everything(ours, x, hx), everything(theirs, x, hx))
    with torch.no_grad():  # another path: nothing is kept
        got, want = ours(x, hx), theirs(x, hx)
    assert_all_close([got[0], *as_tensors(got[1])], [want[0], *as_tensors(want[1])])
    x = x[:, 0]  # without a batch
    one = None if hx is None else tuple(s[:, 0] for s in as_tensors(hx))
    one = one if one is None or kind == "lstm" else one[0]
    assert_all_close(everything(ours, x, one), everything(theirs, x, one))


@pytest.mark.parametrize("sorted_rows", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_sequences(kind: str, sorted_rows: bool) -> None:
    theirs, ours = twins(kind, SHAPES["stacked, both ways"])
    lengths = LENGTHS.sort(descending=True)[0] if sorted_rows else LENGTHS
    x, hx = torch.randn(6, 4, 5), state_for(theirs, 4)
    results = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        pack = torch.nn.utils.rnn.pack_padded_sequence(given, lengths, enforce_sorted=sorted_rows)
        module.zero_grad()
        y, last = module(pack, hx)
        assert isinstance(y, torch.nn.utils.rnn.PackedSequence)
        assert torch.equal(y.batch_sizes, pack.batch_sizes)
        for part in y[2:]:
            assert part is None if sorted_rows else part is not None
        (y.data.sin().sum() + sum(s.pow(2).sum() for s in as_tensors(last))).backward()
        grads = [p.grad for p in module.parameters()]
        results.append([y.data, *as_tensors(last), given.grad, *grads])
    assert_all_close(results[1], results[0])
    # The same without packing.
    y, last = ours(x, hx, lengths=lengths)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(pack, hx)[0])
    assert_close("y", y.detach().numpy(), padded.detach().numpy(), 1e-5)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("batched", [False, True])
def test_cells(kind: str, batched: bool) -> None:
    torch.manual_seed(0)
    theirs, ours = getattr(torch.nn, kind + "Cell")(5, 7), getattr(rt, kind + "Cell")(5, 7)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        shape = (4,) if batched else ()
        x = torch.randn(*shape, 5, requires_grad=True)
        state = tuple(torch.randn(*shape, 7) for _ in range(2))
        hx = state if kind == "LSTM" else state[0]
        found = as_tensors(module(x, module(x, hx)))  # two steps
        sum(s.sin().sum() for s in found).backward()
        grads = [p.grad for p in module.parameters()]
        results.append([*found, *as_tensors(module(x)), x.grad, *grads])
    assert_all_close(results[1], results[0])


@pytest.mark.parametrize("cell", CELLS)
def test_our_layers_as_modules(cell: str) -> None:
    """Cells that PyTorch lacks have no module of its own to be held against: our layers are."""
    layer = make(cell, 5, 7, 2, bidirectional=True, dtype="float64", batch_first=True)
    module = rt.from_layer(layer)
    x = np.random.default_rng(0).standard_normal((4, 6, 5))
    want_y, want_last, tape = layer.forward(x)
    given = torch.tensor(x, requires_grad=True)
    y, last = module(given)
    assert_close("y", y.detach().numpy(), want_y, 1e-14)
    for got, want in zip(as_tensors(last), as_tuple(want_last), strict=True):
        assert_close("last", got.detach().numpy(), want, 1e-14)
    dy = np.cos(np.arange(y.numel())).reshape(y.shape)
    dx, _, _ = tape.backward(dy)
    y.backward(torch.tensor(dy))
    assert_close("dx", given.grad.numpy(), dx, 1e-14)
    again = rk.from_torch(module)
    assert type(again) is type(layer)
    assert again.params == layer.params


@pytest.mark.parametrize("cls", ["SimplifiedGRU", "MGU", "GRU", "LSTM", "RNN"])
def test_gradients_by_finite_differences(cls: str) -> None:
    options: dict[str, Any] = {"reset": "before"} if cls == "GRU" else {}
    torch.manual_seed(0)
    module = getattr(rt, cls)(2, 3, 2, bidirectional=True, dtype=torch.float64, **options)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def outputs(x: Any, *weights: Any) -> Any:
        named = dict(zip(dict(module.named_parameters()), weights, strict=True))
        return torch.func.functional_call(module, named, (x,))[0]

    assert torch.autograd.gradcheck(outputs, (x, *module.parameters()))


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, True, True)]
)
def test_the_gradients_that_are_needed(needed: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    ours, theirs = rt.LSTM(3, 4), torch.nn.LSTM(3, 4)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        x, h, c = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
        given = [t.requires_grad_(need) for t, need in zip((x, h, c), needed, strict=True)]
        y, (_, c_n) = module(x, (h, c))
        (y.sin().sum() + c_n.sum()).backward()
        found.append([*(t.grad for t in given), *(p.grad for p in module.parameters())])
    assert [grad is not None for grad in found[0][:3]] == list(needed)
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close("gradient", got.numpy(), want.numpy(), 1e-6)


def test_training_goes_as_with_pytorch() -> None:
    results = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 8, 2), "head": torch.nn.Linear(8, 1)})
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        if accelerated:  # after the optimizer was made: it must go on
            before = list(model.parameters())
            assert rt.accelerate(model) is model
            assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
            assert type(model["rnn"]) is rt.GRU
        losses = []
        for _ in range(30):
            x = torch.randn(10, 8, 3)
            loss = (model["head"](model["rnn"](x)[0][-1]) - x.sum((0, 2))[:, None]).pow(2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
        results.append(losses)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-3)
    assert results[1][-1] != results[1][0]


def test_dropout_follows_pytorchs_seed() -> None:
    module = rt.LSTM(3, 50, 2, dropout=0.5)
    x = torch.randn(4, 2, 3)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(module(x)[0])
        with torch.no_grad():
            torch.manual_seed(seed)
            assert torch.equal(module(x)[0], found[-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])
    assert not torch.equal(module(x)[0], found[0])


def test_tokens_are_one_hot_rows() -> None:
    module = rt.LSTM(6, 4, batch_first=True)
    tokens = torch.randint(6, (3, 5))
    hot = torch.nn.functional.one_hot(tokens, 6).float()
    assert torch.allclose(module(tokens)[0], module(hot)[0], atol=1e-6)
    module(tokens)[0].sum().backward()
    assert module.weight_ih_l0.grad.abs().sum() > 0


def test_accelerate_of_what_it_meets() -> None:
    class Own(torch.nn.LSTM):  # type: ignore[misc, name-defined]
        pass

    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.LSTM(2, 4, proj_size=2), "b": Own(2, 4), "c": torch.nn.GRUCell(2, 4),
            "d": torch.nn.RNN(2, 4, dtype=torch.bfloat16), "e": torch.nn.Conv1d(2, 2, 1),
        }
    )  # fmt: skip
    kinds = {name: type(part) for name, part in model.items()}
    with pytest.warns(UserWarning, match=r"left as they are: d \(it is of torch\.bfloat16\)"):
        rt.accelerate(model)
    assert {n: type(p) for n, p in model.items()} == {**kinds, "a": rt.LSTM, "c": rt.GRUCell}
    with pytest.raises(TypeError, match="a torch\\.nn\\.Module, got <class 'dict'>"):
        rt.accelerate({})


def test_frozen_modules_are_for_inference() -> None:
    model = rt.accelerate(torch.nn.LSTM(5, 7, 2), frozen=True)
    x = torch.randn(6, 4, 5)
    y, (h, c) = model(x)
    assert not y.requires_grad
    model.weight_ih_l0.data += 1.0  # of which it knows nothing
    assert torch.equal(model(x)[0], y)
    assert torch.equal(model(x, (h, c))[0], model(x, (h, c))[0])
    with pytest.raises(RuntimeError, match=r"frozen module has no gradients: unfreeze\(\)"):
        model(x.requires_grad_())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x.detach())[0], y)
    model.unfreeze()
    assert not torch.equal(model(x)[0], y)
    assert model(x)[0].requires_grad


def test_writing_to_weights_counts_and_memory_may_move() -> None:
    module = rt.GRU(3, 4)
    x = torch.randn(2, 1, 3)
    for change in (
        lambda: module.weight_ih_l0.data.mul_(2.0),
        lambda: module.bias_hh_l0.data.add_(1.0),
        lambda: setattr(module.weight_hh_l0, "data", torch.randn(12, 4)),
        lambda: setattr(module.weight_hh_l0, "data", torch.randn(4, 12).T),
        lambda: module.load_state_dict(rt.GRU(3, 4).state_dict(), assign=True),
        lambda: module.double().float(),
    ):
        change()
        reference = torch.nn.GRU(3, 4)
        reference.load_state_dict(module.state_dict())
        assert torch.allclose(module(x)[0], reference(x)[0], atol=1e-6)


def test_what_is_written_to_before_the_backward_pass_is_noticed() -> None:
    module = rt.LSTM(3, 4)
    for spoil in ("x", "y"):
        x = torch.randn(2, 1, 3)
        y, _ = module(x)
        with torch.no_grad():
            (x if spoil == "x" else y).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_second_derivatives_are_refused() -> None:
    module = rt.LSTM(3, 4)
    x = torch.randn(2, 1, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="rnnkern has first derivatives alone"):
        dx.sum().backward()
    (grad,) = torch.autograd.grad(
        module(x.detach())[0].sum(), module.weight_hh_l0, create_graph=True
    )
    with pytest.raises(RuntimeError, match="rnnkern has first derivatives alone"):
        (grad.sum() + module.bias_hh_l0.sum()).backward()


def test_autocast_rounds_products() -> None:
    module, reference = rt.LSTM(16, 32), torch.nn.LSTM(16, 32)
    reference.load_state_dict(module.state_dict())
    x = torch.randn(5, 4, 16)
    exact = module(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (x, x.bfloat16()):
            y = module(given)[0]
            assert y.dtype == torch.float32
            assert 0 < (y - exact).abs().max() < 2e-2
    with pytest.raises(TypeError, match=r"x must be float32|NumPy has"):
        module(x.bfloat16())


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "projection": (ValueError, "proj_size", lambda: rt.LSTM(2, 4, proj_size=4)),
    "compute": (ValueError, "compute must be one of", lambda: rt.GRU(2, 4, compute="int8")),
    "reset": (ValueError, "reset must be one of", lambda: rt.GRU(2, 4, reset="never")),
    "features": (
        ValueError, "input_size = 2 features", lambda: rt.LSTM(2, 4)(torch.zeros(3, 1, 5))
    ),
    "dtype": (TypeError, "x must be float32", lambda: rt.LSTM(2, 4)(torch.zeros(3, 1, 2).double())),
    "pair": (
        TypeError, r"the pair \(h_0, c_0\)",
        lambda: rt.LSTM(2, 4)(torch.zeros(3, 1, 2), torch.zeros(1)),
    ),
    "half": (
        TypeError, "parameters must be float32 or float64",
        lambda: rt.LSTM(2, 4, dtype=torch.float16)(torch.zeros(3, 1, 2)),
    ),
    "no layer": (TypeError, "must be a recurrent layer", lambda: rt.from_layer(rk.Linear(2, 3))),
    "layer norm": (
        ValueError, "rnnkern.torch has no layer with layer_norm=True",
        lambda: rt.from_layer(rk.LSTM(2, 4, layer_norm=True)),
    ),
    "zoneout": (
        ValueError, "rnnkern.torch has no layer with zoneout=0.1",
        lambda: rt.from_layer(rk.GRU(2, 4, zoneout=0.1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_is_named(case: str) -> None:
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_modules_can_be_copied_and_pickled() -> None:
    x = torch.randn(3, 1, 2)
    for module in (rt.GRU(2, 4, reset="before"), rt.SimplifiedGRU(2, 4), rt.LSTMCell(2, 4)):
        given = x[0] if isinstance(module, rt.LSTMCell) else x
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(as_tensors(twin(given))[0], as_tensors(module(given))[0])


def test_the_package_itself_does_not_import_pytorch() -> None:
    ran = run_python("import sys, rnnkern; print('torch' in sys.modules)")
    assert ran.stdout == "False\n", ran.stderr
