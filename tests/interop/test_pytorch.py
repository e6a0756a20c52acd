# SPDX-License-Identifier: Apache-2.0
"""Weights from PyTorch's modules, state dicts and files, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.layers import TOLERANCE, as_tuple
from support.processes import run_python

torch = pytest.importorskip("torch")

MODULES = {
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
SHAPES: dict[str, dict[str, Any]] = {
    "one": {},
    "stacked, both ways": {"num_layers": 3, "bidirectional": True},
    "without bias": {"bias": False, "num_layers": 2},
    "batch first, both ways": {"batch_first": True, "bidirectional": True},
}


def module(kind: str, options: dict[str, Any], dtype: str = "float32") -> Any:
    cls, fixed = MODULES[kind]
    torch.manual_seed(3)
    return getattr(torch.nn, cls)(5, 7, **fixed, **options, dtype=getattr(torch, dtype)).eval()


def tensors(state: Any) -> tuple[Any, ...]:
    """A state of PyTorch's, one tensor or a pair, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", list(MODULES))
def test_a_module_and_its_layer_compute_the_same(kind: str, shape: str, dtype: str) -> None:
    twin = module(kind, SHAPES[shape], dtype)
    x = np.random.default_rng(0).standard_normal((6, 4, 5)).astype(dtype)
    with torch.no_grad():
        want, want_state = twin(torch.from_numpy(x))
    options = {"batch_first": twin.batch_first, "nonlinearity": getattr(twin, "nonlinearity", None)}
    if kind != "rnn-relu":
        options.pop("nonlinearity")
    for layer in (rk.from_torch(twin), rk.from_torch(twin.state_dict(), **options)):
        assert layer.dtype == dtype
        y, state = layer(x)
        assert_close("y", y, want.numpy(), TOLERANCE[dtype])
        for got, expected in zip(as_tuple(state), tensors(want_state), strict=True):
            assert_close("state", got, expected.numpy(), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", list(MODULES))
def test_there_and_back_are_the_same_bits(kind: str) -> None:
    layer = rk.from_torch(module(kind, {"num_layers": 2, "bidirectional": True}))
    twin = module(kind, {"num_layers": 2, "bidirectional": True})
    twin.load_state_dict(layer.to_torch())  # strict: no name is missing, none too many
    again = rk.from_torch(twin)
    for name, array in layer.params.items():
        assert_same_bits(name, again.params[name], array)
    arrays = layer.to_torch(arrays=True)
    assert all(type(a) is np.ndarray for a in arrays.values())
    assert not any(np.shares_memory(a, p) for a in arrays.values() for p in layer.params.values())
    bias_hh = arrays["bias_hh_l0"]
    assert not bias_hh[: 14 if kind == "gru" else None].any(), "of two biases one is zero"


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_cell_is_a_layer_of_one_step(kind: str) -> None:
    cell = getattr(torch.nn, kind + "Cell")(5, 7)
    x = np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32)
    with torch.no_grad():
        want = tensors(cell(torch.from_numpy(x)))
    got = as_tuple(rk.from_torch(cell)(x[None])[1])
    for ours, theirs in zip(got, want, strict=True):
        assert_close("state", ours[0], theirs.numpy(), 1e-5)


def test_parts_of_a_model_by_their_prefix() -> None:
    model = torch.nn.ModuleDict(
        {"encoder": torch.nn.LSTM(2, 3, dtype=torch.float64), "head": torch.nn.Linear(3, 2)}
    )
    for source in (model, model.state_dict()):
        lstm, head = rk.from_torch(source, "encoder"), rk.from_torch(source, "head.")
        assert (lstm.hidden_size, lstm.dtype.name) == (3, "float64")
        x = np.ones((4, 3), np.float32)
        np.testing.assert_allclose(
            head(x), model["head"](torch.from_numpy(x)).detach().numpy(), rtol=1e-6
        )
        assert rk.from_torch(source, "encoder", dtype="float32").dtype == np.float32
    again = torch.nn.Linear(3, 2)
    again.load_state_dict(head.to_torch())
    assert torch.equal(again.weight, model["head"].weight)


def test_modules_without_time() -> None:
    tokens = np.array([[1, 0], [2, 2]])
    module = torch.nn.Embedding(3, 4)
    want = module(torch.from_numpy(tokens)).detach().numpy()
    np.testing.assert_array_equal(rk.from_torch(module)(tokens), want)
    module = torch.nn.LayerNorm(4, eps=1e-2)
    with torch.no_grad():
        module.weight.uniform_()
        module.bias.uniform_()
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    want = module(torch.from_numpy(x)).detach().numpy()
    assert_close("y", rk.from_torch(module)(x), want, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_safetensors_files(dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_tensors

    model = torch.nn.ModuleDict({"rnn": module("gru", {}), "other": torch.nn.Conv1d(2, 2, 1)})
    state = {name: t.to(getattr(torch, dtype)) for name, t in model.state_dict().items()}
    save_tensors({**state, "steps": torch.tensor([3])}, tmp_path / "model.safetensors")
    layer = rk.from_torch(tmp_path / "model.safetensors", "rnn")
    want = rk.from_torch(state, "rnn")
    assert layer.dtype == ("float64" if dtype == "float64" else "float32")
    for name, array in want.params.items():
        assert_same_bits(name, layer.params[name], array)


def test_files_need_no_pytorch(tmp_path: Path) -> None:
    layer = rk.LSTM(2, 3, seed=0)
    save_file(layer.to_torch(arrays=True), tmp_path / "lstm.safetensors")
    code = f"""if True:
        import sys
        sys.modules["torch"] = None
        import rnnkern as rk
        layer = rk.from_torch({str(tmp_path / "lstm.safetensors")!r})
        print(layer.params == rk.LSTM(2, 3, seed=0).params)
    """
    ran = run_python(code)
    assert ran.stdout == "True\n", ran.stderr


def test_a_module_with_equations_of_its_own_is_noticed() -> None:
    class Half(torch.nn.LSTM):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, state: Any = None) -> Any:
            y, state = super().forward(x, state)
            return 0.5 * y, state

    twin = Half(2, 3).train()
    with pytest.raises(ValueError, match=r"Half must compute what a LSTM .* off by"):
        rk.from_torch(twin)
    assert twin.training, "it is left as it was"


REFUSED: dict[str, tuple[str, Any]] = {
    "several": (
        "no single layer, but at 'a', 'b': prefix",
        lambda: {f"{p}.{n}": t for p in "ab" for n, t in torch.nn.GRU(2, 3).state_dict().items()},
    ),
    "convolution": ("a Conv1d, which is no layer", lambda: torch.nn.Conv1d(2, 3, 1)),
    "embedding": ("with max_norm=1.0", lambda: torch.nn.Embedding(2, 3, max_norm=1.0)),
    "norm": (r"weights \(2, 3\): one axis", lambda: torch.nn.LayerNorm((2, 3))),
    "ours": ("names of PyTorch's layers alone, got 'bias_l0'", lambda: rk.LSTM(2, 3).params),
    "empty": ("none anywhere", dict),
    "gates": (
        "1, 3 or 4 gates",
        lambda: {"weight_ih_l0": np.zeros((6, 3)), "weight_hh_l0": np.zeros((6, 3))},
    ),
    "no bias": (
        "lacks 'bias_hh_l0', 'bias_ih_l0'",
        lambda: {
            name: tensor
            for name, tensor in torch.nn.GRU(2, 3, 2).state_dict().items()
            if name not in ("bias_hh_l0", "bias_ih_l0")
        },
    ),
    "no layer 0": (
        "lacks those of one below",
        lambda: {n.replace("l0", "l9"): t for n, t in torch.nn.GRU(2, 3).state_dict().items()},
    ),
    "shape": (
        r"bias_hh of layer 0 must have shape \(9,\) in a GRU .*got \(8,\)",
        lambda: {**torch.nn.GRU(2, 3).state_dict(), "bias_hh_l0": torch.zeros(8)},
    ),
    "second layer": (
        r"weight_ih of layer 1, the second direction, must have shape \(9, 6\)",
        lambda: {
            **torch.nn.GRU(2, 3, 2, bidirectional=True).state_dict(),
            "weight_ih_l1_reverse": torch.zeros(9, 3),
        },
    ),
    "pickle": (r"which is pickled: torch\.load", lambda: "model.pt"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_has_no_like_is_named(case: str) -> None:
    message, make = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        rk.from_torch(make())


def test_wrong_types_are_named() -> None:
    with pytest.raises(TypeError, match="a module of PyTorch, its state dict or the path"):
        rk.from_torch(3)
    integers = {n: t.long() for n, t in torch.nn.GRU(2, 3).state_dict().items()}
    with pytest.raises(TypeError, match=r"\w+ must be of floating numbers, got int64"):
        rk.from_torch(integers)
    with pytest.raises(ValueError, match="source has no module 'c', but at 'a'"):
        rk.from_torch(torch.nn.ModuleDict({"a": torch.nn.GRU(2, 3)}), "c")


@pytest.mark.parametrize(
    "layer", [rk.GRU(2, 3), rk.SimplifiedGRU(2, 3), rk.MGU(2, 3)], ids=lambda a: type(a).__name__
)
def test_cells_that_pytorch_lacks_are_not_given_as_others(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"rnnkern\.torch\.from_layer"):
        layer.to_torch()


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"zoneout": 0.1}], ids=str)
def test_options_that_pytorch_lacks_are_named(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"PyTorch has no layer with {name}={value}"):
        rk.LSTM(2, 3, **options).to_torch()


@pytest.mark.parametrize(("dtype", "off"), [("float64", 1e-7), ("float32", 1e-3)])
def test_a_module_that_computes_a_little_else_is_refused(dtype: str, off: float) -> None:
    class Own(torch.nn.GRU):  # type: ignore[misc, name-defined]
        """One whose outputs are off."""

        def forward(self, *given: Any) -> Any:
            y, h = super().forward(*given)
            return y + off, h

    with pytest.raises(ValueError, match="Own must compute what a GRU does, got outputs that are"):
        rk.from_torch(Own(3, 4, dtype=getattr(torch, dtype)))
    rk.from_torch(torch.nn.GRU(3, 4, dtype=getattr(torch, dtype)))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gru.safetensors"
    save_file(rk.GRU(1, 2, reset="after", seed=0).to_torch(arrays=True), path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    refused = unclear = 0
    for _ in range(2000):
        changed = bytearray(content[: random.integers(len(content) + 1)])
        if random.random() < 0.7:
            changed = bytearray(content)
            for place in random.integers(min(len(content), 500), size=random.integers(1, 6)):
                changed[place] = random.integers(256)
        path.write_bytes(changed)
        try:
            rk.from_torch(path)
        except (ValueError, TypeError) as error:
            refused += 1
            unclear += not re.search(r"gru\.safetensors|source|shape|float", str(error))
    assert refused > 1000
    assert unclear == 0
    header = {"weight_ih_l0": {"dtype": "F8_E4M3", "shape": [4, 1], "data_offsets": [0, 4]}}
    header["weight_hh_l0"] = {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [4, 20]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(20))
    with pytest.raises(rk.FormatError, match=r"gru\.safetensors: has weight.* of dtype F8_E4M3"):
        rk.from_torch(path)
