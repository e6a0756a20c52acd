# SPDX-License-Identifier: Apache-2.0
"""Files that are altered, forged or another's are refused, and cost little."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnkern as rk

from support.saved_files import forged, peak, small


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
    none = {"dtype": "F32", "shape": [0], "data_offsets": [12, 12]}

    def nested(depth: int) -> Any:
        return [] if depth == 0 else [nested(depth - 1)]

    return {
        "overlap": ("overlapping arrays or a gap", entry("weight", data_offsets=[0, 8])),
        "gap": ("overlapping arrays or a gap", entry("weight", data_offsets=[8, 16])),
        "beyond": (
            "truncated",
            entry("weight", shape=[1 << 58], data_offsets=[4, 4 + (1 << 60)]),
        ),
        "beyond any": (
            "not a whole number",
            entry("weight", shape=[1 << 62], data_offsets=[4, 4 + (1 << 64)]),
        ),
        "past its shape": ("bytes for weight", entry("weight", data_offsets=[4, 1 << 60])),
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
                "extra.other",
                {"dtype": "F32", "shape": [0] + [1 << 62] * 3, "data_offsets": [12, 12]},
            ),
        ),
        "a hundred axes": (
            "dimension",
            replace(
                "extra.other", {"dtype": "F32", "shape": [1] * 99 + [0], "data_offsets": [12, 12]}
            ),
        ),
        "a nested dtype": ("dtype list", entry("weight", dtype=nested(900))),
        "a nested shape": ("shape or offset of weight", entry("weight", shape=nested(900))),
        "a further word": ("not an array's", entry("weight", nested=nested(900))),
        "surrogates": ("cannot be read", replace("extra.\ud800", [])),
        "surrogates in a note": (
            "cannot be read",
            lambda header: header["__metadata__"].update({"note.a": "\ud800"}),
        ),
        "two optimizers": (
            "with names and of one without",
            lambda header: header.update(dict.fromkeys(("optimizer.a", "optimizers.a.b"), none)),
        ),
        "no optimizer": ("is no optimizer's", replace("optimizers..a", none)),
        "no optimizer's state": ("is no optimizer's", replace("optimizers.a", none)),
        "lacks one": ("overlapping|lacks", lambda header: header.pop("bias") and None),
        "class": ("holds a 'Transformer'", metadata(**{"class": "Transformer"})),
        "config": ("cannot be built", metadata(config=json.dumps({"in_features": 2}))),
        "config type": ("cannot be built", metadata(config="[]")),
        "config text": ("configuration that cannot be read", metadata(config="{")),
        "deep config": ("configuration that cannot be read", metadata(config="[" * 100_000)),
        "deeper config": ("configuration that cannot be read", metadata(config='{"a":' * 100_000)),
        "long number": ("configuration that cannot be read", metadata(config="9" * 5000)),
        "no number": ("NaN is not JSON", metadata(config='{"in_features": NaN}')),
        "config twice": ("a name comes twice", metadata(config='{"a": 1, "a": 1}')),
        "surrogates in the config": ("surrogates", metadata(config='{"dtype": "\\ud800"}')),
        "config with device": (
            "expected float32",
            metadata(config=json.dumps({**config, "device": "cuda", "in_features": 9})),
        ),
        "config value": ("cannot be built", metadata(config=json.dumps({**config, "bias": 1}))),
        "config to be parsed": (
            "cannot be built: dtype must be one of",
            metadata(config=json.dumps({**config, "dtype": "9" * 5000 + "f4,f4"})),
        ),
        "huge config": (
            "expected float32 of shape",
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
        ("{}".encode("utf-16"), "cannot be read"),
        (b"\xef\xbb\xbf{}", "cannot be read"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read|not an array's"),
        (b"{}", "not one that rnnkern wrote"),
    ],
)
def test_impossible_headers_are_refused(header: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(rk.FormatError, match=message):
        rk.load(path)


SEVERAL = {
    "not named": "[]",
    "at least one": "{}",
    "no dot": '{"a.b": ["Linear", {"in_features": 2, "out_features": 1}]}',
    "must have letters": '{"": ["Linear", {"in_features": 2, "out_features": 1}]}',
    "models.a that is not a class and its configuration": '{"a": "Linear"}',
    "models.b that is not a class and its configuration": '{"b": ["Linear", {}, 1]}',
    r"holds a \['Linear'\]": '{"a": [["Linear"], {}]}',
    "holds a 'dict'": '{"a": ["dict", {}]}',
    "its arguments are not named": '{"a": ["Linear", []]}',
    r"lacks the array models\.a\.weight": '{"a": ["Linear", {"in_features":2, "out_features":1}]}',
}


@pytest.mark.parametrize("message", SEVERAL)
def test_forged_models_by_name_are_refused(message: str, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["__metadata__"].update({"rnnkern.class": "dict", "rnnkern.config": SEVERAL[message]})

    with pytest.raises(rk.FormatError, match=message):
        rk.load(forged(tmp_path / "model", change))


# Of a few hundred bytes each; built, they would take from 400 MB to all there is.
HUGE: dict[str, tuple[str, dict[str, Any]]] = {
    "wide": ("Linear", {"in_features": 10_000, "out_features": 10_000}),
    "square": ("LSTM", {"input_size": 1, "hidden_size": 5_000}),
    "deep": ("RNN", {"input_size": 1, "hidden_size": 1, "num_layers": 500_000_000}),
    "deepest": ("GRU", {"input_size": 1, "hidden_size": 1, "num_layers": 10**30}),
    "model": (
        "Seq2Seq",
        {
            "source_vocab": 9,
            "target_vocab": 9,
            "hidden_size": 1,
            "bos": 0,
            "eos": 0,
            "num_layers": 10**8,
        },
    ),
}


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.parametrize("several", [False, True])
def test_small_files_cost_little_memory(case: str, several: bool, tmp_path: Path) -> None:
    kind, config = HUGE[case]

    def change(header: Any) -> None:
        header["__metadata__"]["rnnkern.class"] = "dict" if several else kind
        header["__metadata__"]["rnnkern.config"] = json.dumps(
            {"a": [kind, config]} if several else config
        )

    path = forged(tmp_path / "model", change)
    with peak() as most, pytest.raises(rk.FormatError):
        rk.load(path)
    assert most[0] < 200_000


def test_large_files_cost_their_size(tmp_path: Path) -> None:
    layer = rk.Linear(2000, 1000)
    path = tmp_path / "model"
    with peak() as most:
        rk.save(path, layer, extra={"a": np.zeros(10**6)})
    size = path.stat().st_size
    assert size > 16_000_000
    assert most[0] < 1.1 * size
    with peak() as most:
        rk.load(path)
    assert most[0] < 2.1 * size


def test_messages_are_short_and_can_be_printed(tmp_path: Path) -> None:
    config = {"in_features": 2, "out_features": 1}
    none = {"dtype": "F32", "shape": [0], "data_offsets": [12, 12]}
    for name in ("x" * 100_000, "\x1b[2J\n", "\u202e"):
        for changes in ({name: none}, {}):
            made = json.dumps(config if changes else {**config, name + "\udcff": 1})

            def change(header: Any, changes: Any = changes, made: str = made) -> None:
                header.update(changes)
                header["__metadata__"]["rnnkern.config"] = made.replace("udcff", "u00ff")

            with pytest.raises(rk.FormatError) as caught:
                rk.load(forged(tmp_path / "model", change))
            assert len(str(caught.value)) < 1000
            assert str(caught.value).isprintable()


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with path.open("wb") as file:  # sparse: the file takes no room
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 34)
    with pytest.raises(rk.FormatError, match="not a safetensors file"):
        rk.load(path)
