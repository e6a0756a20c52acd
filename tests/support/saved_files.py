# SPDX-License-Identifier: Apache-2.0
"""Small files, and what they cost to read."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rnnkern as rk


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


@contextmanager
def peak() -> Iterator[list[int]]:
    """Within, memory is counted; afterwards the list holds the most that was taken at once."""
    most = [0]
    tracemalloc.start()
    try:
        yield most
    finally:
        most[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
