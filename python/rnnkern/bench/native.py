# SPDX-License-Identifier: Apache-2.0
"""C++ libraries as peers: shared objects of bench/*.cpp, built where CMake has RNNKERN_BENCH=ON."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array
from rnnkern.bench.problems import Problem

LIBRARIES = ("onednn", "libxsmm")
# The adapters' names of the cells that one of them may have; each refuses those it lacks.
_NAMES = {"rnn": "rnn", "gru": "gru_before", "gru-after": "gru_after", "lstm": "lstm"}
_ERROR_BYTES = 256
_PARAMETERS = ("weight_ih", "weight_hh", "bias", "bias_hn")


class _Layer(ctypes.Structure):
    """PeerLayer of bench/peer.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("steps", "batch", "units")),
        *((name, ctypes.c_int32) for name in ("training", "threads")),
        *((name, ctypes.c_void_p) for name in _PARAMETERS),
    )


class Network:
    """One layer of a library, as the adapter's functions of bench/peer.h give it."""

    def __init__(self, library: ctypes.CDLL, handle: int, problem: Problem) -> None:
        self._library = library
        self._handle = ctypes.c_void_p(handle)
        shape = (problem.steps, problem.batch, problem.hidden)
        self._y, self._dx = _lines(shape), _lines(shape)
        self._training = problem.training
        weakref.finalize(self, library.peer_delete, self._handle)

    def run(self, x: Array, dy: Array) -> list[Array]:
        """Y, and dx when training; the same arrays in every call.

        Raises:
            RuntimeError: the library failed.

        """
        arrays = (x, dy, self._y, self._dx)
        if self._library.peer_run(self._handle, *(_pointer(array) for array in arrays)):
            raise RuntimeError("the library failed in the middle of a run")
        return [self._y, self._dx] if self._training else [self._y]


def network(name: str, layer: Any, problem: Problem, threads: int) -> Network | str:
    """A library's layer with the parameters of ``layer``, or why there is none."""
    library = _load(name)
    if library is None:
        return "has no adapter in this build (CMake option RNNKERN_BENCH)"
    if problem.cell not in _NAMES:
        return "has no such cell"
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    arrays = [layer.params.get(f"{kind}_l0") for kind in _PARAMETERS]
    given = _Layer(
        problem.steps,
        problem.batch,
        problem.hidden,
        problem.training,
        threads,
        *(None if array is None else _pointer(array) for array in arrays),
    )
    handle = library.peer_new(
        _NAMES[problem.cell].encode(), ctypes.byref(given), error, ctypes.c_int64(_ERROR_BYTES)
    )
    return Network(library, handle, problem) if handle else error.value.decode()


def versions() -> dict[str, str]:
    """Of the libraries that have an adapter in this build."""
    found = ((name, _load(name)) for name in LIBRARIES)
    return {name: library.peer_version().decode() for name, library in found if library}


def _load(name: str) -> ctypes.CDLL | None:
    path = Path(_core.__file__).with_name(f"libpeer_{name}.so")
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    library.peer_new.restype = ctypes.c_void_p
    library.peer_version.restype = ctypes.c_char_p
    return library


def _lines(shape: tuple[int, ...]) -> Array:
    """An array that begins with a cache line, as libxsmm must have those that it writes."""
    size, line = 4 * int(np.prod(shape)), 64
    memory = np.empty(size + line, np.uint8)
    begin = -memory.ctypes.data % line
    return memory[begin : begin + size].view(np.float32).reshape(shape)


def _pointer(array: Array) -> ctypes.c_void_p:
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
