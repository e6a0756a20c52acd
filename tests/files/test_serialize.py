# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: every class comes back, every damaged or foreign file is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.cells import CELLS

from support import files_of_0_1
from support.saved_files import small

MODELS: dict[str, Any] = {
    **{name: partial(cell.build, 3, 4, 2, seed=0) for name, cell in CELLS.items()},
    **{
        f"a step of {name}": partial(cell.step, 3, 4, **cell.options, seed=0)
        for name, cell in CELLS.items()
    },
    "RNN": lambda: rk.RNN(3, 4, nonlinearity="relu", bidirectional=True, dtype="float64", seed=0),
    "GRU without biases": lambda: rk.GRU(3, 4, reset="after", bias=False, seed=0),
    "LSTM": lambda: rk.LSTM(3, 4, 2, batch_first=True, dropout=0.1, forget_bias=1.0, seed=0),
    "Linear": lambda: rk.Linear(3, 4, seed=0),
    "LSTMCell of a layer": lambda: rk.LSTMCell.of(rk.LSTM(3, 4, 2, bidirectional=True), 1),
    "Embedding": lambda: rk.Embedding(5, 3, dtype="float64", seed=0),
    "Dropout": lambda: rk.Dropout(0.25),
    "LayerNorm": lambda: rk.LayerNorm(4, eps=1e-3, bias=False),
    "Seq2Seq": lambda: rk.Seq2Seq(
        5, 4, 3, bos=0, eos=1, cell="GRU", cell_options={"reset": "after"}, decoder_cell="LSTM"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_comes_back_the_same(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    rk.save(tmp_path / "model.safetensors", model)
    again = rk.load(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert again.config() == model.config()
    assert again.params.keys() == model.params.keys()
    for key, p in model.params.items():
        assert (again.params[key].dtype, again.params[key].shape) == (p.dtype, p.shape)
        assert again.params[key].tobytes() == p.tobytes()
        again.params[key] += 1.0  # a loaded model can go on learning


@pytest.mark.parametrize("name", MODELS)
def test_the_safetensors_package_reads_it(name: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    model = MODELS[name]()
    rk.save(tmp_path / "model.safetensors", model, extra={"empty": np.zeros((0, 3))})
    arrays = safetensors.load_file(tmp_path / "model.safetensors")
    assert not arrays.pop("extra.empty").size
    assert arrays.keys() == model.params.keys()
    for key, p in model.params.items():
        np.testing.assert_array_equal(arrays[key], p)


def test_a_loaded_seq2seq_shares_its_arrays_with_its_parts(tmp_path: Path) -> None:
    model = MODELS["Seq2Seq"]()
    rk.save(tmp_path / "model", model)
    again = rk.load(tmp_path / "model")
    source = np.zeros((3, 2), np.int64)
    for got, want in zip(again.greedy(source, None, 4), model.greedy(source, None, 4), strict=True):
        np.testing.assert_array_equal(got, want)
    assert again.params["output.weight"] is again.output.params["weight"]


def test_every_array_is_aligned_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    rk.save(path, rk.Linear(3, 1), extra={"wide": np.zeros(3), "steps": np.array(1)})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert 8 * entry["data_offsets"][0] % int(entry["dtype"][1:]) == 0, name


def test_extra_arrays_and_notes_come_back(tmp_path: Path) -> None:
    extra = {
        "steps": np.array(7),
        "mean": np.arange(6.0).reshape(2, 3).T,
        "small": np.arange(3, dtype=np.float32),
        "empty": np.zeros((0, 2)),
    }
    rk.save(tmp_path / "model", rk.Linear(2, 1), extra=extra, notes={"why": "für später"})
    _, _, arrays, notes = rk.load_checkpoint(tmp_path / "model")
    assert notes == {"why": "für später"}
    assert arrays.keys() == extra.keys()
    for key, array in extra.items():
        assert arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(arrays[key], array)
        assert arrays[key].flags.writeable


def test_files_of_version_0_1_load_and_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(files_of_0_1.content(files_of_0_1.LSTM))
    assert_is_the_lstm(*rk.load_checkpoint(path))
    model, _, extra, notes = rk.load_checkpoint(path)
    rk.save(path, model, extra=extra, notes=notes)  # with the options that came later
    assert_is_the_lstm(*rk.load_checkpoint(path))


def assert_is_the_lstm(model: Any, optimizer: Any, extra: dict[str, Any], notes: Any) -> None:
    assert model.config() == rk.LSTM(2, 1, forget_bias=1.0, seed=3).config()
    assert optimizer is None
    assert {name: array.tolist() for name, array in extra.items()} == {
        "mean": [0.0, 1.0, 2.0],
        "steps": 7,
    }
    assert notes == {"why": "für später"}
    for name, p in rk.LSTM(2, 1, forget_bias=1.0, seed=3).params.items():
        assert model.params[name].tobytes() == p.tobytes()


# -- several models, optimizers -------------------------------------------------------------------


class Program:
    """A layer and a head, trained on noise by the optimizers that ``make`` gives."""

    def __init__(self, make: Any) -> None:
        self.models: dict[str, Any] = {
            "lstm": rk.LSTM(3, 4, seed=1),
            "head": rk.Linear(4, 2, seed=2),
        }
        self.make = make
        self.optimizer = make(self.models)
        self.steps = 0

    def advance(self) -> None:
        rng = np.random.default_rng(self.steps)
        y, _, tape = self.models["lstm"].forward(rng.standard_normal((5, 2, 3), np.float32))
        logits, head_tape = self.models["head"].forward(y)
        dy, head_grads = head_tape.backward(logits)
        grads = {"lstm": tape.backward(dy)[2], "head": head_grads}
        if isinstance(self.optimizer, dict):
            for name, optimizer in self.optimizer.items():
                optimizer.step(grads[name])
        else:
            self.optimizer.step(flat(grads))
        self.steps += 1

    def save(self, path: Path) -> None:
        rk.save(path, self.models, optimizer=self.optimizer, notes={"steps": str(self.steps)})

    def load(self, path: Path) -> None:
        found = rk.load_checkpoint(path)
        self.models, self.steps = found.model, int(found.notes["steps"])
        self.optimizer = self.make(self.models)
        if isinstance(self.optimizer, dict):
            for name, optimizer in self.optimizer.items():
                optimizer.load_state_dict(found.optimizer[name])
        else:
            self.optimizer.load_state_dict(found.optimizer)


def flat(parts: Any) -> dict[str, Any]:
    """The parts' arrays as one dict."""
    return {f"{part}.{name}": a for part, arrays in parts.items() for name, a in arrays.items()}


def together(kind: Any, **options: Any) -> Any:
    return lambda models: kind(flat({n: m.params for n, m in models.items()}), **options)


OPTIMIZERS: dict[str, Any] = {
    "Adam": together(rk.Adam, lr=0.01, weight_decay=0.1),
    "SGD": together(rk.SGD, lr=0.01),
    "momentum": together(rk.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "two": lambda models: {
        "lstm": rk.Adam(models["lstm"].params),
        "head": rk.SGD(models["head"].params, 0.1, momentum=0.9),
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_file_for_what_one_program_trains(name: str, tmp_path: Path) -> None:
    whole, half, again = (Program(OPTIMIZERS[name]) for _ in range(3))
    for _ in range(3):
        half.advance()
    half.save(tmp_path / "run")
    again.load(tmp_path / "run")
    assert {n: type(m) for n, m in again.models.items()} == {"lstm": rk.LSTM, "head": rk.Linear}
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "run").read_bytes()
    for _ in range(3):
        again.advance()
    for _ in range(6):
        whole.advance()
    whole.save(tmp_path / "whole")
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_single_model_may_have_optimizers(tmp_path: Path) -> None:
    layer = rk.Linear(2, 2)
    optimizers = {"a": rk.SGD({"x": np.zeros(2)}, 0.1), "b": rk.Adam(layer.params)}
    rk.save(tmp_path / "model", layer, optimizer=optimizers)
    found = rk.load_checkpoint(tmp_path / "model")
    assert isinstance(found.model, rk.Linear)
    assert found.optimizer.keys() == {"a", "b"}
    assert found.optimizer["a"] == {"steps": 0}
    optimizers["b"].load_state_dict(found.optimizer["b"])
    assert isinstance(rk.load(tmp_path / "model"), rk.Linear)
    rk.save(tmp_path / "model", layer)
    assert rk.load_checkpoint(tmp_path / "model").optimizer is None


def test_every_class_at_once(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    models = {name.replace(" ", "-"): make() for name, make in MODELS.items()}
    rk.save(tmp_path / "models", models)
    again = rk.load(tmp_path / "models")
    assert again.keys() == models.keys()
    arrays = safetensors.load_file(tmp_path / "models")
    for name, model in models.items():
        assert again[name].config() == model.config()
        for key, p in model.params.items():
            assert again[name].params[key].tobytes() == p.tobytes()
            assert arrays.pop(f"models.{name}.{key}").tobytes() == p.tobytes()
    assert not arrays


# -- what save refuses ----------------------------------------------------------------------------


def misshapen() -> rk.Linear:
    """A layer whose arguments are not those of its arrays, as only force can make one."""
    layer = rk.Linear(2, 2)
    vars(layer)["in_features"] = 3
    return layer


SHARED = rk.Linear(2, 2)
REFUSED: dict[str, tuple[type[Exception], str, Any, dict[str, Any]]] = {
    "note": (TypeError, r"notes\['a'\] must be a string, got int", SHARED, {"notes": {"a": 1}}),
    "none": (TypeError, r"notes\['a'\] must be a string", SHARED, {"notes": {"a": None}}),
    "note's name": (TypeError, "a name in notes must be a str", SHARED, {"notes": {1: "a"}}),
    "long note": (
        ValueError,
        "must take at most 16777216 bytes as JSON, got 17",
        SHARED,
        {"notes": {"a": "x" * 17_000_000}},
    ),
    "surrogates": (ValueError, "lone surrogates", SHARED, {"notes": {"a": "\udcff"}}),
    "shape": (ValueError, r"weight as float32 of shape \(2, 2\), expected", misshapen(), {}),
    "extra's name": (TypeError, "a name in extra must be", SHARED, {"extra": {1: np.zeros(2)}}),
    "bool": (
        TypeError,
        r"extra.flags must be float32, float64 or int64, got bool",
        SHARED,
        {"extra": {"flags": np.zeros(3, bool)}},
    ),
    "mask": (
        TypeError,
        r"extra\['a'\] must have no mask",
        SHARED,
        {"extra": {"a": np.ma.masked_equal([1.0, 2.0], 1.0)}},
    ),
    "arrays": (TypeError, "model must be one of RNN, .*got ndarray", {"a": np.zeros(3)}, {}),
    "no model": (ValueError, "model must hold at least one", {}, {}),
    "dot": (ValueError, "a name in model must .*no dot, got 'a.b'", {"a.b": SHARED}, {}),
    "nameless": (ValueError, "a name in model must have letters", {"": SHARED}, {}),
    "number": (TypeError, "a name in model must be a string, got int", {1: SHARED}, {}),
    "twice": (
        ValueError,
        "one array twice, as a.weight and b.weight",
        {"a": SHARED, "b": SHARED},
        {},
    ),
    "optimizer": (TypeError, "optimizer must be an rnnkern optimizer", SHARED, {"optimizer": 1}),
    "no optimizer": (ValueError, "optimizer must hold at least", SHARED, {"optimizer": {}}),
    "state": (
        TypeError,
        "optimizer must be an rnnkern optimizer or a dict of them, got ndarray",
        SHARED,
        {"optimizer": rk.Adam(SHARED.params).state_dict()},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_old_file(case: str, tmp_path: Path) -> None:
    error, message, model, rest = REFUSED[case]
    path = tmp_path / "model"
    content = small(path)
    with pytest.raises(error, match=message):
        rk.save(path, model, **rest)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_longest_header_is_the_same_for_both(tmp_path: Path) -> None:
    path = tmp_path / "model"
    room = (1 << 24) - int.from_bytes(small(path)[:8], "little")
    rk.save(path, rk.Linear(2, 1, seed=0), notes={"a": "x" * (room - 40)})
    assert len(rk.load_checkpoint(path).notes["a"]) == room - 40
    content = path.read_bytes()
    with pytest.raises(ValueError, match="must take at most"):
        rk.save(path, rk.Linear(2, 1, seed=0), notes={"a": "x" * room})
    assert path.read_bytes() == content


def test_numbers_that_are_none_are_kept(tmp_path: Path) -> None:
    layer = rk.Linear(2, 1)
    layer.params["weight"][...] = [[np.nan, -np.inf]]
    rk.save(tmp_path / "model", layer)
    again = rk.load(tmp_path / "model")
    assert again.params["weight"].tobytes() == layer.params["weight"].tobytes()


def test_a_class_of_another_is_refused(tmp_path: Path) -> None:
    class Mine(rk.Linear):
        pass

    with pytest.raises(TypeError, match=r"model must be one of RNN, .*got Mine"):
        rk.save(tmp_path / "model", Mine(2, 2))
    with pytest.raises(FileNotFoundError):
        rk.save(tmp_path / "no" / "model", rk.Linear(2, 2))
    assert not list(tmp_path.iterdir())
