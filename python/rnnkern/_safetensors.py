# SPDX-License-Identifier: Apache-2.0
"""Files of arrays and strings in the safetensors format, checked before anything is believed.

A file is an 8-byte little-endian length, a JSON header of that length and the arrays' bytes. The
header's ``__metadata__`` holds strings: what the arrays are of, and a SHA-256 over header and
arrays, so that an altered file is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from typing import Any, NamedTuple

import numpy as np

from rnnkern._checks import Array

Arrays = dict[str, Array]

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Of other programs' files, too; those that NumPy lacks are fields of their bytes.
FOREIGN: dict[str, np.dtype[Any]] = {
    **_DTYPES,
    **{name: np.dtype(code) for name, code in {"F16": "<f2", "BOOL": "?", "I8": "i1"}.items()},
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (2, 4)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    "BF16": np.dtype([("BF16", "<u2")]),
    **{name: np.dtype([(name, "u1")]) for name in ("F8_E4M3", "F8_E5M2", "F8_E8M0")},
}
LONGEST_HEADER = 1 << 24  # bytes; a header takes about 100 per array
_LONGEST_MESSAGE = 500  # characters of a file's own that an error shows

# Keys of the metadata that every file has.
CLASS, CONFIG, SUM = "rnnkern.class", "rnnkern.config", "rnnkern.sha256"


class FormatError(ValueError):
    """A file that is not what ``save`` wrote: foreign, truncated, altered or of another version.

    Example:
        >>> with open("model.safetensors", "wb") as file:
        ...     n = file.write(b"no model")
        >>> rk.load("model.safetensors")
        Traceback (most recent call last):
        rnnkern._safetensors.FormatError: ...

    """


class Entry(NamedTuple):
    """An array as the header describes it: ``size`` bytes from ``start`` on."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    size: int


def refusal(path: str | os.PathLike[str], text: str) -> FormatError:
    """The error of a file, named; what the file has it say is short and harms no terminal."""
    if len(text) > _LONGEST_MESSAGE:
        text = f"{text[:_LONGEST_MESSAGE]}..."
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return FormatError(f"{os.fspath(path)}: {text}")


# -- writing ----------------------------------------------------------------------------------


def header_of(arrays: Arrays, metadata: dict[str, str]) -> tuple[dict[str, Any], Arrays]:
    """The header, but for the checksum, and the arrays in the order in which it lists them."""
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = {}
    end = 0
    # Widest numbers first, so that every array is aligned for its dtype.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise TypeError(f"{name} must be float32, float64 or int64, got {array.dtype}")
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        ordered[name] = array
    return header, ordered


def header_text(header: dict[str, Any]) -> bytes:
    """The header's bytes, as long without the checksum as with it."""
    metadata = {**header["__metadata__"]}
    metadata.setdefault(SUM, "0" * 64)
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    return text + b" " * (-len(text) % 8)


def digest_of(header: Mapping[str, Any]) -> Any:
    """A SHA-256 that has taken the header, in one spelling; the arrays' bytes come next."""
    metadata = {key: value for key, value in header["__metadata__"].items() if key != SUM}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(text.encode())


# -- reading ----------------------------------------------------------------------------------


def read_header(file: BufferedReader) -> tuple[dict[str, Entry], dict[str, str], Any]:
    """The entries, in the order of their bytes, the metadata and the digest that has taken both."""
    header, size = _read_json(file)
    return *parsed(header, size), digest_of(header)


def read_foreign_header(file: BufferedReader) -> tuple[dict[str, Entry], int]:
    """Of a file that anybody wrote: the entries, and where their bytes begin."""
    header, size = _read_json(file)
    return _entries(header, size, FOREIGN)[0], os.fstat(file.fileno()).st_size - size


def _read_json(file: BufferedReader) -> tuple[Any, int]:
    """The header, unchecked, and how many bytes come after it."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise FormatError("is not a safetensors file, or a truncated one")
    return parsed_json("a header", file.read(length)), size - 8 - length


def parsed(header: Any, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries, in the order of their bytes, of which there are ``size``, and the metadata."""
    entries, metadata = _entries(header, size, _DTYPES)
    if not {CLASS, CONFIG, SUM} <= metadata.keys():
        raise FormatError("is a safetensors file, but not one that rnnkern wrote")
    return entries, metadata


def _entries(
    header: Any, size: int, dtypes: Mapping[str, np.dtype[Any]]
) -> tuple[dict[str, Entry], dict[str, str]]:
    if not isinstance(header, dict):
        raise FormatError("has a header that is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("has metadata that are not strings by name")
    entries = {
        name: _entry(name, header[name], dtypes) for name in header if name != "__metadata__"
    }
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)))
    expected = 0
    for name, entry in entries.items():
        if entry.start != expected:
            raise FormatError(f"has overlapping arrays or a gap before {name}")
        expected += entry.size
        if expected > size:
            raise FormatError(f"is truncated: {name} ends at byte {expected} of {size}")
    if expected != size:
        raise FormatError(f"has {size - expected} bytes after its last array")
    return entries, metadata


def _entry(name: str, entry: Any, dtypes: Mapping[str, np.dtype[Any]]) -> Entry:
    """One array's entry of the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"has a header whose entry for {name} is not an array's")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise FormatError(f"has a header whose entry for {name} is not an array's")
    if not isinstance(dtype, str) or dtype not in dtypes:
        found = dtype if isinstance(dtype, str) else type(dtype).__name__
        raise FormatError(f"has {name} of dtype {found}, expected one of {', '.join(dtypes)}")
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, *offsets)):
        raise FormatError(f"has a shape or offset of {name} that is not a whole number")
    start, size = offsets[0], offsets[1] - offsets[0]
    if size != math.prod(shape) * dtypes[dtype].itemsize:
        raise FormatError(f"has {size} bytes for {name}, {dtype} of shape {shape}")
    return Entry(dtypes[dtype], tuple(shape), start, size)


def read_arrays(file: BufferedReader, entries: Mapping[str, Entry], digest: Any) -> Arrays:
    """The arrays whose bytes come next; the digest takes them too."""
    arrays: Arrays = {}
    for name, entry in entries.items():
        try:
            arrays[name] = np.empty(entry.shape, entry.dtype)
        except ValueError as error:
            raise FormatError(f"has {name} of shape {entry.shape}: {error}") from error
        raw: Any = arrays[name].reshape(-1).view(np.uint8)
        if file.readinto(raw) != entry.size:
            raise FormatError(f"was truncated while it was read, before the end of {name}")
        digest.update(raw)
    return arrays


def parsed_json(what: str, text: bytes) -> Any:
    """What JSON in UTF-8 says, if it says it once and without lone surrogates."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"has {what} that cannot be read: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names all differ."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    for text in (*made.keys(), *made.values()):
        if isinstance(text, str):
            text.encode()
    return made


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
