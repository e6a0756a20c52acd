# SPDX-License-Identifier: Apache-2.0
"""Safetensors files of other programs: every array of numbers, checked before it is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from rnnkern._checks import Array
from rnnkern._files import open_regular
from rnnkern._safetensors import Entry, FormatError, read_foreign_header, refusal


class SafeTensors(Mapping[str, Array]):
    """The arrays of a file by name; each is read when it is asked for, bfloat16 as float32.

    Raises:
        FormatError: the file is none, or is truncated.
        OSError: the file cannot be read.

    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        try:
            with open_regular(path) as file:
                self._entries, self._begin = read_foreign_header(file)
        except FormatError as error:
            raise refusal(path, str(error)) from error

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        with open_regular(self._path) as file:
            file.seek(self._begin + entry.start)
            raw = file.read(entry.size)
        try:
            return _numbers(name, raw, entry)
        except FormatError as error:
            raise refusal(self._path, str(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _numbers(name: str, raw: bytes, entry: Entry) -> Array:
    if len(raw) != entry.size:
        raise FormatError(f"was truncated while it was read, before the end of {name}")
    array: Array = np.frombuffer(raw, entry.dtype)
    fields = entry.dtype.names
    if fields == ("BF16",):
        array = bfloat16_as_float32(array["BF16"])
    elif fields is not None:
        raise FormatError(f"has {name} of dtype {fields[0]}, which NumPy cannot hold")
    try:
        return array.astype(array.dtype.newbyteorder("="), copy=False).reshape(entry.shape)
    except ValueError as error:
        raise FormatError(f"has {name} of shape {entry.shape}: {error}") from error


def bfloat16_as_float32(bits: Array) -> Array:
    """The float32 numbers whose upper halves are these 16 bits."""
    numbers: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers
