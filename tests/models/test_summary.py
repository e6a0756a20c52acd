# SPDX-License-Identifier: Apache-2.0
"""What a model is made of, as a table; and texts of all that users meet."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern import layers
from rnnkern.cells import CELLS


def model() -> rk.Model:
    stack = rk.Stack([rk.GRU(8, 16, bidirectional=True), rk.LSTM(32, 32, batch_first=False)])
    return rk.Model(stack, rk.Linear(32, 2, seed=3), embedding=rk.Embedding(50, 8))


def columns(table: str) -> list[list[str]]:
    """The cells of each line: what two spaces part."""
    return [[part.strip() for part in line.split("  ") if part] for line in table.splitlines()]


def test_a_models_layers_are_listed_with_what_they_have() -> None:
    assert columns(rk.summary(model())) == [
        ["part", "layer", "output", "parameters"],
        ["embedding", "Embedding(50, 8)", "(..., 8)", "400"],
        ["recurrent.0", "GRU(8, 16, bidirectional=True)", "(T, B, 32)", "2,400"],
        ["recurrent.1", "LSTM(32, 32)", "(T, B, 32)", "8,320"],
        ["head", "Linear(32, 2)", "(..., 2)", "66"],
        ["total", "11,186", "float32, 43.7 KiB"],
    ]


def test_its_arrays_are_listed_where_that_is_wanted() -> None:
    listed = [line for line in columns(rk.summary(model(), arrays=True)) if len(line) == 3]
    params = model().params
    assert len(listed) == len(params) + 1
    for (name, shape, size), (own, array) in zip(listed, params.items(), strict=False):
        assert own.endswith(f".{name}")
        assert shape == str(array.shape)
        assert size == f"{array.size:,}"


@pytest.mark.parametrize("name", CELLS)
def test_every_layer_and_cell_has_a_line(name: str) -> None:
    layer, cell = CELLS[name].build(3, 4, 2, batch_first=True), CELLS[name].step(3, 4)
    _, line, total = columns(rk.summary({"mine": layer}))
    assert line[0] == "mine"
    assert line[2:] == ["(B, T, 4)", f"{rk.num_parameters(layer):,}"]
    assert total[1] == line[3]
    assert columns(rk.summary(cell))[1][2] == "(B, 4)"


def test_parts_of_a_seq2seq_and_of_several_models() -> None:
    seq2seq = rk.Seq2Seq(5, 6, 7, bos=0, eos=1)
    names = [line[0] for line in columns(rk.summary([seq2seq, rk.LayerNorm(3, dtype="float64")]))]
    assert names == ["part", "0.encoder", "0.decoder", "0.output", "1", "total"]
    table = columns(rk.summary([seq2seq, rk.LayerNorm(3, dtype="float64")]))
    assert table[-1][2].startswith("float32, float64, ")
    of_parts = [int(line[3].replace(",", "")) for line in table[1:-1]]
    assert sum(of_parts) == rk.num_parameters([seq2seq, rk.LayerNorm(3)])


def test_num_parameters_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    ours = rk.num_parameters(rk.LSTM(5, 7, 2, bidirectional=True))
    theirs = sum(p.numel() for p in torch.nn.LSTM(5, 7, 2, bidirectional=True).parameters())
    assert ours == theirs - 2 * 2 * 4 * 7  # PyTorch has two biases where one is enough
    assert rk.num_parameters({"a": np.zeros((2, 3)), "b": rk.Linear(3, 2)}) == 6 + 8
    assert rk.num_parameters(rk.Dropout(0.5)) == 0


def test_refusals() -> None:
    for wrong in (3, "model", None, rk.ConstantRate(0.1)):
        with pytest.raises(TypeError, match="model must be a layer, a model"):
            rk.summary(wrong)
        with pytest.raises(TypeError, match="model must be a layer, a model"):
            rk.num_parameters(wrong)
    with pytest.raises(TypeError, match="model must be a layer, a model, or a dict or list"):
        rk.summary({"a": np.zeros(3)})
    with pytest.raises(TypeError, match="arrays must be True or False"):
        rk.summary(rk.Linear(3, 2), arrays=1)  # type: ignore[arg-type]


# -- texts ----------------------------------------------------------------------------------------


def test_all_that_users_meet_says_what_it_is() -> None:
    found = {name: getattr(rk, name) for name in rk.__all__}
    for module in pkgutil.iter_modules(layers.__path__, "rnnkern.layers."):
        own = vars(importlib.import_module(module.name))
        found |= {name: value for name, value in own.items() if name.endswith("Tape")}
    for name, value in found.items():
        if isinstance(value, type):
            assert any("__repr__" in vars(base) for base in value.__mro__[:-1]), name


def made() -> dict[str, Any]:
    """Texts, and what has them."""
    f, tiny = np.float32, rk.GRU(3, 4)
    x = np.zeros((5, 2, 3), f)
    y, _, tape = rk.LSTM(3, 4).forward(x)
    small = rk.Model(tiny, rk.Linear(4, 2))
    adam = rk.Adam(tiny, lr=rk.ConstantRate(0.1), weight_decay=0.5)
    adam.step(tiny.forward(x)[2].backward(y))
    norm = rk.LayerNorm(3)
    return {
        "Tape(LSTM, steps=5, batch=2)": tape,
        "Gradients(x=float32 (5, 2, 3), state=(float32 (1, 2, 4), float32 (1, 2, 4)), params="
        "{weight_ih_l0: float32 (16, 3), weight_hh_l0: float32 (16, 4), bias_l0: float32 (16,)})": (
            tape.backward(y)
        ),
        "Gradients(x=None, params={weight: float32 (9, 2)})": rk.Embedding(9, 2)
        .forward([1])[1]
        .backward(np.zeros((1, 2), f)),
        "StateGradients(h=float32 (5, 2, 4), c=None, gates={h: float32 (5, 2, 4)})": rk.RNN(3, 4)
        .forward(x)[2]
        .backward(y, state_gradients=True)[3][0],
        "Stream(GRU, batch=3)": tiny.stream(3),
        "StackStream([Stream(GRU, batch=1)])": rk.Stack([tiny]).stream(),
        "StackTape([Tape(GRU, steps=5, batch=2)])": rk.Stack([tiny]).forward(x)[2],
        "CellTape(GRUCell, batch=(2,))": rk.GRUCell(3, 4).forward(x[0])[1],
        "LinearTape(Linear(3, 4), x=float32 (5, 2, 3))": rk.Linear(3, 4).forward(x)[1],
        "EmbeddingTape(Embedding(9, 2), x=int64 (1,))": rk.Embedding(9, 2).forward([1])[1],
        "DropoutTape(0.5, x=float32 (5, 2, 3))": rk.Dropout(0.5).forward(x, dropout_key=1)[1],
        "LayerNormTape(LayerNorm(3), x=float32 (5, 2, 3))": norm.forward(x)[1],
        "ModelTape(Tape(GRU, steps=5, batch=2))": small.forward(x)[2],
        "ModelStream(Stream(GRU, batch=1))": small.stream(),
        "Adam(3 arrays of 96 numbers, lr=ConstantRate(0.1), weight_decay=0.5, steps=1)": adam,
        "SGD(3 arrays of 96 numbers, lr=0.1, momentum=0.9, steps=0)": rk.SGD(tiny, 0.1, 0.9),
        "GRU(3, 4)": tiny,
        "GRU(3, 4, num_layers=2, reset='after', dtype='float64')": rk.GRU(
            3, 4, 2, reset="after", dtype="float64"
        ),
    }


def test_texts_say_what_something_is_and_no_numbers() -> None:
    for text, value in made().items():
        assert repr(value) == text


def test_the_text_of_a_checkpoint(tmp_path: Path) -> None:
    layer = rk.Linear(3, 2)
    rk.save(
        tmp_path / "all",
        layer,
        optimizer=rk.SGD(layer, 0.1, 0.9),
        extra={"table": np.zeros((2, 3))},
        notes={"why": "because"},
    )
    assert repr(rk.load_checkpoint(tmp_path / "all")) == (
        "Checkpoint(model=Linear(3, 2), optimizer={steps, velocity.bias, velocity.weight}, "
        "extra={table: float64 (2, 3)}, notes={why})"
    )
