"""Saving and loading: every class comes back, every damaged or foreign file is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk
from rnnkern.serialize import load_checkpoint

MODELS: dict[str, Any] = {
    "RNN": lambda: rk.RNN(3, 4, nonlinearity="relu", seed=0),
    "SimplifiedGRU": lambda: rk.SimplifiedGRU(3, 4, 2, bidirectional=True, dtype="float64", seed=0),
    "GRU": lambda: rk.GRU(3, 4, reset="after", bias=False, seed=0),
    "GRU with bias_hn": lambda: rk.GRU(3, 4, reset="after", seed=0),
    "LSTM": lambda: rk.LSTM(3, 4, 2, batch_first=True, dropout=0.1, forget_bias=1.0, seed=0),
    "Linear": lambda: rk.Linear(3, 4, seed=0),
    "Seq2Seq": lambda: rk.Seq2Seq(
        5, 4, 3, bos=0, eos=1, cell="GRU", cell_options={"reset": "after"}, decoder_cell="LSTM"
    ),
}


def small(path: Path) -> bytes:
    """The bytes of a small saved file."""
    rk.save(path, rk.Linear(2, 1, seed=0))
    return path.read_bytes()


def forged(path: Path, change: Any) -> Path:
    """A file whose header ``change`` altered, its checksum made to fit."""
    content = small(path)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    data = change(header) or data
    del header["__metadata__"]["rnnkern.sha256"]
    text = json.dumps(header, sort_keys=True).encode()
    header["__metadata__"]["rnnkern.sha256"] = hashlib.sha256(text + data).hexdigest()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


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
    _, arrays, notes = load_checkpoint(tmp_path / "model")
    assert notes == {"why": "für später"}
    assert arrays.keys() == extra.keys()
    for key, array in extra.items():
        assert arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(arrays[key], array)
        assert arrays[key].flags.writeable


def test_every_altered_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = small(path)
    for place in range(len(content)):
        for flip in (0x01, 0x80):
            path.write_bytes(
                content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]
            )
            with pytest.raises(rk.FormatError, match=r"model\.safetensors"):
                rk.load(path)


def test_every_truncation_and_an_addition_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = small(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(rk.FormatError, match=r"model\.safetensors"):
            rk.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(rk.FormatError, match="1 bytes after its last array"):
        rk.load(path)


class Trap:
    """Unpickling this fails the test."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("something was unpickled",)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    for content in (b"", b"PK\x03\x04 a zip archive", pickle.dumps(Trap()), b"\0" * 8, b"\0" * 99):
        path.write_bytes(content)
        with pytest.raises(rk.FormatError, match="foreign"):
            rk.load(path)
    np.save(tmp_path / "foreign.npy", np.zeros(3))
    with pytest.raises(rk.FormatError, match="not a safetensors file"):
        rk.load(tmp_path / "foreign.npy")
    with pytest.raises(FileNotFoundError):
        rk.load(tmp_path / "missing")


def test_anothers_safetensors_file_is_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"weight": np.zeros((1, 2), np.float32)}, tmp_path / "theirs")
    with pytest.raises(rk.FormatError, match="not one that rnnkern wrote"):
        rk.load(tmp_path / "theirs")


def headers() -> dict[str, tuple[str, Any]]:
    """Forgeries: what the error says, and how the header of a saved Linear(2, 1) is changed."""

    def entry(name: str, **changes: Any) -> Any:
        return lambda header: header[name].update(changes)

    def metadata(**changes: str) -> Any:
        return lambda header: header["__metadata__"].update(
            {f"rnnkern.{key}": value for key, value in changes.items()}
        )

    def replace(name: str, value: Any) -> Any:
        return lambda header: header.update({name: value})

    config = {"in_features": 2, "out_features": 1, "bias": True, "dtype": "float32", "seed": 0}
    return {
        "overlap": ("overlapping arrays or a gap", entry("weight", data_offsets=[0, 8])),
        "gap": ("overlapping arrays or a gap", entry("weight", data_offsets=[8, 16])),
        "beyond": ("truncated", entry("weight", data_offsets=[4, 1 << 60])),
        "backwards": ("bytes for weight", entry("weight", data_offsets=[4, 0])),
        "negative": ("shape or offset of weight", entry("weight", data_offsets=[-4, 12])),
        "fraction": ("shape or offset of weight", entry("weight", shape=[1.0, 2])),
        "truth": ("shape or offset of weight", entry("weight", shape=[True, 2])),
        "bytes": ("bytes for weight", entry("weight", shape=[1, 3])),
        "enormous": ("bytes for weight", entry("weight", shape=[1 << 62, 1 << 62])),
        "shape": ("expected float32 of shape", entry("weight", shape=[2, 1])),
        "half": ("dtype F16", entry("weight", dtype="F16", shape=[1, 4])),
        "no dtype": ("dtype None", entry("weight", dtype=None)),
        "three offsets": ("not an array's", entry("weight", data_offsets=[0, 4, 8])),
        "no shape": ("not an array's", lambda header: header["weight"].pop("shape") and None),
        "a list": ("not an array's", replace("weight", [1])),
        "unknown array": (
            "unknown array other",
            replace("other", {"dtype": "F32", "shape": [0], "data_offsets": [12, 12]}),
        ),
        "no array of 2**62 x 0": (
            "dimension|too big",
            replace(
                "other", {"dtype": "F32", "shape": [0] + [1 << 62] * 3, "data_offsets": [12, 12]}
            ),
        ),
        "lacks one": ("overlapping|lacks", lambda header: header.pop("bias") and None),
        "class": ("holds a Transformer", metadata(**{"class": "Transformer"})),
        "config": ("cannot be built", metadata(config=json.dumps({"in_features": 2}))),
        "config type": ("cannot be built", metadata(config="[]")),
        "config text": ("cannot be built", metadata(config="{")),
        "config value": ("cannot be built", metadata(config=json.dumps({**config, "bias": 1}))),
        "huge config": (
            "cannot be built",
            metadata(config=json.dumps({**config, "in_features": 1 << 60})),
        ),
        "another size": (
            r"weight as float32 of shape \(1, 2\)",
            metadata(config=json.dumps({**config, "in_features": 3})),
        ),
    }


@pytest.mark.parametrize("case", headers())
def test_forged_headers_are_refused(case: str, tmp_path: Path) -> None:
    message, change = headers()[case]
    with pytest.raises(rk.FormatError, match=rf"model\.safetensors: .*({message})"):
        rk.load(forged(tmp_path / "model.safetensors", change))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not a JSON object"),
        (b'{"__metadata__": 1}', "metadata that are not strings"),
        (b'{"__metadata__": {"a": 1}}', "metadata that are not strings"),
        (b'{"__metadata__": {"a": "1", "a": "2"}}', "a name comes twice"),
        (b"{" * 100_000, "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"{}", "not one that rnnkern wrote"),
    ],
)
def test_impossible_headers_are_refused(header: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(rk.FormatError, match=message):
        rk.load(path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with path.open("wb") as file:  # sparse: the file takes no room
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 34)
    with pytest.raises(rk.FormatError, match="not a safetensors file"):
        rk.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model"
    content = small(path)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    for step in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(step, fail)
            with pytest.raises(OSError, match="no space left"):
                rk.save(path, rk.Linear(3, 3))
        assert path.read_bytes() == content
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_refused_arguments(tmp_path: Path) -> None:
    class Mine(rk.Linear):
        pass

    for model in ({"weight": np.zeros(3)}, Mine(2, 2)):
        with pytest.raises(TypeError, match="model must be one of RNN, "):
            rk.save(tmp_path / "model", model)
    with pytest.raises(TypeError, match=r"extra.flags must be float32, float64 or int64, got bool"):
        rk.save(tmp_path / "model", rk.Linear(2, 2), extra={"flags": np.zeros(3, bool)})
    with pytest.raises(FileNotFoundError):
        rk.save(tmp_path / "no" / "model", rk.Linear(2, 2))
    assert not list(tmp_path.iterdir())
