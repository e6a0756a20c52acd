"""Saving and loading layers and models: one safetensors file, nothing ever unpickled.

A file is an 8-byte little-endian length, a JSON header of that length and the arrays' bytes, as
the safetensors format has it. The header's ``__metadata__`` holds the class and its constructor's
arguments, from which ``load`` builds the object anew, and a SHA-256 over header and arrays, so
that an altered file is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnnkern._checks import Array
from rnnkern.device import get_device, to_host
from rnnkern.layers import GRU, LSTM, RNN, SimplifiedGRU
from rnnkern.linear import Linear
from rnnkern.seq2seq import Seq2Seq

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (RNN, SimplifiedGRU, GRU, LSTM, Linear, Seq2Seq)
}
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 1 << 24  # bytes; a header takes about 100 per array
_EXTRA = "extra."  # prefix of the arrays that are not the model's

Arrays = dict[str, Array]


class FormatError(ValueError):
    """A file that is not what ``save`` wrote: foreign, truncated, altered or of another version."""


def save(
    path: str | os.PathLike[str],
    model: Any,
    *,
    extra: Mapping[str, Array] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a layer or model to one file. A file does not say on what device the model was.

    The file appears whole or not at all: it is written beside ``path`` and then takes its place,
    so a crash leaves the file that was there before.

    Args:
        path: The file to write or to replace.
        model: A layer, ``Linear`` or ``Seq2Seq``.
        extra: Further arrays of any device to keep with it, float32, float64 or int64, by name.
        notes: Further strings to keep with it, by name.

    Raises:
        TypeError: ``model`` is of another class, or an array of another dtype.
        OSError: The file cannot be written.

    """
    name = type(model).__name__
    if _CLASSES.get(name) is not type(model):
        raise TypeError(f"model must be one of {', '.join(_CLASSES)}, got {name}")
    arrays = {key: to_host(param) for key, param in model.params.items()}
    arrays.update({_EXTRA + key: to_host(value) for key, value in (extra or {}).items()})
    metadata = {
        "rnnkern.class": name,
        "rnnkern.config": json.dumps({**model.config(), "device": "cpu"}, sort_keys=True),
        **{f"note.{key}": value for key, value in (notes or {}).items()},
    }
    _replace(Path(path), _encode(arrays, metadata))


def load(path: str | os.PathLike[str], *, device: str = "cpu") -> Any:
    """The layer or model that ``save`` wrote to ``path``, on the device asked for.

    Raises:
        FormatError: The file is not what ``save`` wrote, or holds a model that the device cannot
            run; the message names it and says why.
        ValueError: The device cannot be used.
        OSError: The file cannot be read.

    """
    return load_checkpoint(path, device=device)[0]


def load_checkpoint(
    path: str | os.PathLike[str], *, device: str = "cpu"
) -> tuple[Any, Arrays, dict[str, str]]:
    """As ``load``, with the extra arrays, NumPy's, and the notes that were saved with the model."""
    place = get_device(device)
    try:
        arrays, metadata = _decode(Path(path))
        model = _build(metadata, device)
        for name, param in model.params.items():
            if name not in arrays:
                raise FormatError(f"lacks the array {name}")
            array = arrays.pop(name)
            if (array.shape, array.dtype) != (param.shape, param.dtype):
                raise FormatError(
                    f"has {name} as {array.dtype} of shape {array.shape}, "
                    f"expected {param.dtype} of shape {param.shape}"
                )
            param[...] = place.put(array)
        foreign = [name for name in arrays if not name.startswith(_EXTRA)]
        if foreign:
            raise FormatError(f"has the unknown array {foreign[0]}")
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from error
    extra = {name.removeprefix(_EXTRA): array.copy() for name, array in arrays.items()}
    notes = {
        key.removeprefix("note."): value
        for key, value in metadata.items()
        if key.startswith("note.")
    }
    return model, extra, notes


def _build(metadata: Mapping[str, str], device: str) -> Any:
    """A model of the class and configuration that the metadata name, on a device."""
    name = metadata["rnnkern.class"]
    if name not in _CLASSES:
        raise FormatError(f"holds a {name}, which this version does not know")
    try:
        return _CLASSES[name](**{**json.loads(metadata["rnnkern.config"]), "device": device})
    except (TypeError, ValueError, MemoryError) as error:
        raise FormatError(f"holds a {name} that cannot be built: {error}") from error


def _encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> list[bytes]:
    """The pieces of a file, in order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    data = []
    end = 0
    # Widest numbers first, so that every array is aligned for its dtype.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise TypeError(f"{name} must be float32, float64 or int64, got {array.dtype}")
        data.append(np.ascontiguousarray(array, dtype).tobytes())
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    header["__metadata__"]["rnnkern.sha256"] = _checksum(header, data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *data]


def _checksum(header: Mapping[str, Any], data: list[bytes]) -> str:
    """SHA-256 of the header, in one spelling, and of the arrays' bytes after it."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for piece in data:
        digest.update(piece)
    return digest.hexdigest()


def _decode(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays and metadata of a file, everything checked before it is trusted."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise FormatError("is not a safetensors file, or a truncated one")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"has a header that cannot be read: {error}") from error
        data = file.read()
    metadata = _metadata(header)
    arrays: Arrays = {}
    expected = 0
    entries = [(name, *_entry(name, header[name])) for name in header if name != "__metadata__"]
    for name, dtype, shape, start, end in sorted(entries, key=lambda entry: entry[3:]):
        if start != expected:
            raise FormatError(f"has overlapping arrays or a gap before {name}")
        if end > len(data):
            raise FormatError(f"is truncated: {name} ends at byte {end} of {len(data)}")
        if end - start != math.prod(shape) * dtype.itemsize:
            raise FormatError(f"has {end - start} bytes for {name}, a {dtype} of shape {shape}")
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        expected = end
    if expected != len(data):
        raise FormatError(f"has {len(data) - expected} bytes after its last array")
    if not {"rnnkern.class", "rnnkern.config", "rnnkern.sha256"} <= metadata.keys():
        raise FormatError("is a safetensors file, but not one that rnnkern wrote")
    if metadata.pop("rnnkern.sha256") != _checksum(header, [data]):
        raise FormatError("was altered: its checksum does not match")
    return arrays, metadata


def _metadata(header: Any) -> dict[str, str]:
    """The header's own dict of metadata, checked."""
    if not isinstance(header, dict):
        raise FormatError("has a header that is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("has metadata that are not strings by name")
    return metadata


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """One array's dtype, shape, first byte and last byte + 1, out of the header."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(f"has a header whose entry for {name} is not an array's") from error
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatError(f"has {name} of dtype {dtype}, expected one of {', '.join(_DTYPES)}")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise FormatError(f"has a shape or offset of {name} that is not a whole number")
    return _DTYPES[dtype], shape, start, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names all differ."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _replace(path: Path, pieces: list[bytes]) -> None:
    """Write a file so that ``path`` is at every moment the old one or the new one, whole."""
    # A name per process and thread: two writers must not share a half-written file.
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with beside.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
