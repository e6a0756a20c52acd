# SPDX-License-Identifier: Apache-2.0
"""Layers and models as ONNX files, run by ONNX Runtime and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close, assert_same_bits
from support.layers import WITH_PRODUCT, as_layer_state, as_tuple, make, random_state

ort = pytest.importorskip("onnxruntime")

SHAPES: dict[str, dict[str, Any]] = {
    "one": {},
    "stacked, both ways": {"num_layers": 2, "bidirectional": True},
    "stacked, no bias": {"num_layers": 3, "bias": False},
    "batch first": {"batch_first": True, "bidirectional": True},
    "reverse": {"num_layers": 2, "reverse": True, "batch_first": True},
    **{
        f"{merge} of both ways": {"num_layers": 2, "bidirectional": True, "merge": merge}
        for merge in ("sum", "average", "product")
    },
}
LENGTHS = np.array([3, 7, 1, 5])


def run(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """The outputs of ONNX Runtime by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_onnxruntime_runs_a_layer(cell: str, shape: str, tmp_path: Path) -> None:
    layer = make(cell, 5, 6, **SHAPES[shape])
    layer.to_onnx(tmp_path / "layer.onnx", state=True, lengths=True)
    x = np.random.default_rng(0).standard_normal((7, 4, 5)).astype(np.float32)
    if layer.batch_first:
        x = x.swapaxes(0, 1).copy()
    state = random_state(cell, as_tuple(layer(x)[1])[0].shape)
    state = tuple(s.astype(np.float32) for s in state)
    feeds = {"x": x, "lengths": LENGTHS.astype(np.int32)}
    feeds |= dict(zip(("h_0", "c_0"), state, strict=False))
    y, last = layer(x, as_layer_state(state), LENGTHS)
    for got in (run(tmp_path / "layer.onnx", feeds), rk.from_onnx(tmp_path / "layer.onnx")(feeds)):
        assert list(got) == ["y", "h_n", "c_n"][: 1 + len(state)]
        for name, want in zip(got, (y, *as_tuple(last)), strict=True):
            assert_close(name, got[name], want, 3e-6)


OPTIONS: list[tuple[type[Any], dict[str, Any]]] = [
    (rk.LSTM, {"peepholes": True}),
    (rk.LSTM, {"coupled": True, "peepholes": True, "clip": 0.8}),
    (rk.LSTM, {"activation": ("relu", "softsign"), "output_activation": "scaled_tanh(1.5, 0.7)"}),
    (rk.GRU, {"recurrent_activation": ("tanh", "hard_sigmoid"), "activation": "leaky_relu(0.2)"}),
    (rk.GRU, {"reset": "after", "clip": 0.5, "activation": "identity"}),
    (rk.RNN, {"nonlinearity": ("softplus", "thresholded_relu(0.3)")}),
    (rk.MGU, {"recurrent_activation": "hard_sigmoid(0.2, 0.5)", "clip": 0.6}),
    (rk.SimplifiedGRU, {"recurrent_activation": "hard_sigmoid", "activation": "elu(0.5)"}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_options_of_cells(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    layer = kind(5, 6, 2, bidirectional=True, seed=2, **options)
    layer.to_onnx(tmp_path / "layer.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((7, 4, 5)).astype(np.float32)}
    y = layer(feeds["x"])[0]
    assert_close("y", run(tmp_path / "layer.onnx", feeds)["y"], y, 3e-6)
    read = rk.from_onnx(tmp_path / "layer.onnx")
    assert_close("y, read", read(feeds)["y"], y, 3e-6)


def test_options_that_onnx_lacks(tmp_path: Path) -> None:
    for layer, word in (
        (rk.LSTM(2, 3, cell_clip=1.0), "cell_clip=1.0"),
        (rk.LSTM(2, 4, proj_size=2), "proj_size=2"),
        (rk.LSTM(2, 3, layer_norm=True), "layer_norm=True"),
        (rk.GRU(2, 3, zoneout=0.1), "zoneout=0.1"),
        (rk.LSTM(2, 3, cell_zoneout=0.1), "cell_zoneout=0.1"),
        (rk.MGU(2, 3, recurrent_activation="tanh"), "recurrent_activation='tanh'"),
        (rk.SimplifiedGRU(2, 3, clip=1.0), "clip=1.0"),
    ):
        with pytest.raises(ValueError, match=word):
            layer.to_onnx(tmp_path / "layer.onnx")


@pytest.mark.parametrize("cell", WITH_PRODUCT)
def test_tokens_and_nothing_else(cell: str, tmp_path: Path) -> None:
    layer = make(cell, 5, 6)
    layer.to_onnx(tmp_path / "layer.onnx", tokens=True)
    x = np.random.default_rng(0).integers(5, size=(7, 4))
    got = run(tmp_path / "layer.onnx", {"x": x})
    y, last = layer(x)
    assert_close("y", got["y"], y, 3e-6)
    assert_close("h_n", got["h_n"], as_tuple(last)[0], 3e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru_before", "gru_after", "lstm"])
def test_there_and_back_are_the_same_bits(cell: str, dtype: str, tmp_path: Path) -> None:
    layer = make(cell, 5, 6, bidirectional=True, dtype=dtype)
    layer.to_onnx(tmp_path / "layer.onnx")
    (again,) = rk.from_onnx(tmp_path / "layer.onnx").layers.values()
    assert type(again) is type(layer)
    assert again.params.keys() == layer.params.keys()
    for name, array in layer.params.items():
        assert_same_bits(name, again.params[name], array)


def test_a_head(tmp_path: Path) -> None:
    for bias in (True, False):
        head = rk.Linear(5, 3, bias=bias, seed=0)
        head.to_onnx(tmp_path / "head.onnx")
        x = np.random.default_rng(0).standard_normal((7, 4, 5)).astype(np.float32)
        model = rk.from_onnx(tmp_path / "head.onnx")
        assert_close("y", run(tmp_path / "head.onnx", {"x": x})["y"], head(x), 1e-6)
        assert_same_bits("y", model({"x": x})["y"], head(x))
        (again,) = model.layers.values()
        assert again.params == head.params


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("cells", [("LSTM", None), ("GRU", "LSTM"), ("LSTM", "GRU")])
def test_a_seq2seq(cells: tuple[str, str | None], both: bool, tmp_path: Path) -> None:
    model = rk.Seq2Seq(
        9, 8, 6, bos=0, eos=1, cell=cells[0], decoder_cell=cells[1], num_layers=2,
        bidirectional=both, seed=0,
    )  # fmt: skip
    model.to_onnx(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    source, target = rng.integers(9, size=(7, 4)), rng.integers(8, size=(5, 4))
    feeds = {"source": source, "source_lengths": LENGTHS.astype(np.int32), "target": target}
    want, _ = model.forward(source, LENGTHS, target)
    assert_close("logits", run(tmp_path / "model.onnx", feeds)["logits"], want, 3e-6)
    again = rk.from_onnx(tmp_path / "model.onnx")
    assert_close("logits", again(feeds)["logits"], want, 3e-6)
    assert list(again.layers) == [
        "encoder_l0", "encoder_l1", "decoder_l0", "decoder_l1", "output"
    ]  # fmt: skip


STACKS: dict[str, Any] = {
    "layer": lambda **o: rk.GRU(5, 6, 2, bidirectional=True, seed=0, **o),
    "stack": lambda **o: rk.Stack([rk.GRU(5, 6, seed=0, **o), rk.LSTM(6, 12, seed=1, **o)]),
    "residual": lambda **o: rk.Stack(
        [rk.LSTM(5, 6, bidirectional=True, seed=0, **o), rk.MGU(12, 12, seed=1, **o)],
        residual=True,
    ),
    "sum": lambda **o: rk.GRU(5, 12, 2, bidirectional=True, merge="sum", seed=0, **o),
    "product": lambda **o: rk.GRU(5, 12, bidirectional=True, merge="product", seed=0, **o),
}


@pytest.mark.parametrize("lengths", [None, np.array([3, 7, 0, 5])], ids=["whole", "ragged"])
@pytest.mark.parametrize("readout", ["all", "last", "mean", "max"])
@pytest.mark.parametrize("kind", list(STACKS))
def test_a_model(kind: str, readout: str, lengths: Any, tmp_path: Path) -> None:
    batch_first = readout == "all"
    recurrent = STACKS[kind](batch_first=batch_first)
    embedding = rk.Embedding(9, 5, seed=2) if kind == "stack" else None
    head = rk.Linear(12, 3, seed=3)
    model = rk.Model(recurrent, head, embedding=embedding, readout=readout)
    path, rng = tmp_path / "model.onnx", np.random.default_rng(0)
    if kind == "residual" and readout == "last":
        with pytest.raises(ValueError, match="a last layer without residual connection"):
            model.to_onnx(path)
        return
    model.to_onnx(path, lengths=lengths is not None)
    shape = (4, 7) if batch_first else (7, 4)
    x = rng.standard_normal((*shape, 5)).astype(np.float32)
    given = x if embedding is None else rng.integers(9, size=shape)
    feeds = {"x": given}
    if lengths is not None:
        feeds["lengths"] = lengths.astype(np.int32)
    want = model.predict(given, lengths)
    assert_close("onnxruntime", run(path, feeds)["y"], want, 3e-6)
    assert_close("rnnkern", rk.from_onnx(path)(feeds)["y"], want, 3e-6)
