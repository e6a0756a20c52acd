# SPDX-License-Identifier: Apache-2.0
"""Weights that others have trained and packages bring: the same outputs as their own runtimes'."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.compare import assert_close
from support.reference import Array


def brought(package: str, name: str) -> Path:
    """A file of a package, which is not imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / name


def test_silero_vad_by_onnxruntime() -> None:
    """Convolutions and an LSTM that hear whether somebody speaks: the whole model, and its LSTM."""
    ort: Any = pytest.importorskip("onnxruntime")
    path = brought("silero_vad", "data/silero_vad_16k_sequence.onnx")
    rng = np.random.default_rng(0)
    feeds = {
        "input": (0.1 * rng.standard_normal((40, 576))).astype(np.float32),
        "h": rng.standard_normal((1, 1, 128)).astype(np.float32),
        "c": rng.standard_normal((1, 1, 128)).astype(np.float32),
    }
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    want = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    model = rk.from_onnx(path)
    got = model(feeds)
    for name, array in want.items():
        assert_close(name, got[name], array, 1e-5)
    (lstm,) = model.layers.values()
    assert isinstance(lstm, rk.LSTM)
    assert (lstm.input_size, lstm.hidden_size) == (128, 128)


def test_silero_vads_safetensors() -> None:
    """Its weights as PyTorch keeps them, by PyTorch."""
    torch: Any = pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = brought("silero_vad", "data/silero_vad_16k.safetensors")
    state = load_file(path)
    prefix = next(name for name in state if "weight_ih" in name).rpartition(".")[0]
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name: state[f"{prefix}.{name}"] for name in cell.state_dict()})
    x = np.random.default_rng(0).standard_normal((20, 1, 128)).astype(np.float32)
    last: Any = None
    want = []
    with torch.no_grad():
        for step in torch.from_numpy(x):
            last = cell(step, last)
            want.append(last[0].numpy())
    assert_close("y", rk.from_torch(path, prefix)(x)[0], np.stack(want), 1e-5)


def gru_of_g2p_en(x: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Array:
    """The package's own GRU in NumPy, as its equations are: one row."""
    h = np.zeros(w_hh.shape[1])
    outputs = []
    for step in x:
        of_x, of_h = w_ih @ step + b_ih, w_hh @ h + b_hh
        r, z = np.split(1 / (1 + np.exp(-(of_x + of_h)[: 2 * len(h)])), 2)
        n = np.tanh(of_x[2 * len(h) :] + r * of_h[2 * len(h) :])
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize("part", ["enc", "dec"])
def test_g2p_en(part: str) -> None:
    """English spelling to sounds: an encoder and a decoder, both GRUs."""
    file = np.load(brought("g2p_en", "checkpoint20.npz"))
    kinds = ("w_ih", "w_hh", "b_ih", "b_hh")
    arrays = [file[f"{part}_{kind}"] for kind in kinds]
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    gru = rk.from_torch(dict(zip(names, arrays, strict=True)))
    assert isinstance(gru, rk.GRU)
    letters = file[f"{part}_emb"][np.random.default_rng(0).integers(20, size=12)]
    want = gru_of_g2p_en(letters.astype(np.float64), *arrays)
    assert_close("y", gru(letters.astype(np.float32)[:, None])[0][:, 0], want, 1e-5)
