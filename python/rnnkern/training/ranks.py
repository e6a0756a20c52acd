# SPDX-License-Identifier: Apache-2.0
"""Training by several processes at once, on one machine or many, over MPI."""

from __future__ import annotations

import os
import sys
import traceback
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from rnnkern import _core
from rnnkern._checks import Array, finite_float, positive_int
from rnnkern.devices import device_of
from rnnkern.machine import get_num_threads, set_num_threads
from rnnkern.training.named import named_arrays

# How launchers tell a process how many there are: MPICH and its kin, Open MPI.
_LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


class Ranks:
    """The processes ("ranks") of an MPI run that train one model together.

    Every rank holds the whole model, takes its share of each batch, and meets the others once a
    step, when `average` makes the gradient of the whole batch out of theirs; each then takes the
    same step. For the same batch the model is the one that a single process trains, but for the
    order in which float numbers are summed. With one rank, or without `comm`, all of it does
    nothing, so that a program is written once.

    Used as a context, an error in one rank ends them all, with that error shown and a non-zero
    exit code; the others would otherwise wait for it for ever.

    Unless a number of threads was asked for, ranks that may run on the same processors share them.

    Args:
        comm: mpi4py's ``MPI.COMM_WORLD`` or another communicator; None for this process alone.

    Attributes:
        rank: Which this is, in 0..size-1.
        size: How many there are.

    Raises:
        TypeError: `comm` is no communicator of mpi4py's.

    Example:
        >>> comm = None  # MPI.COMM_WORLD in a program that mpiexec starts
        >>> lstm = rk.LSTM(2, 3, seed=0)
        >>> x = np.ones((4, 8, 2), np.float32)
        >>> with rk.Ranks(comm) as ranks:
        ...     ranks.broadcast(lstm.params)  # all begin alike
        ...     rows = ranks.share(8)
        ...     y, state, tape = lstm.forward(x[:, rows])
        ...     grads = tape.backward(np.ones_like(y))
        ...     (loss,) = ranks.average(grads, rows.stop - rows.start, [y.mean()])
        >>> ranks.size, rows
        (1, slice(0, 8, None))

    """

    def __init__(self, comm: Any = None) -> None:
        missing = [name for name in ("Allreduce", "Bcast", "allgather") if not hasattr(comm, name)]
        if comm is not None and missing:
            raise TypeError(
                f"comm must be a communicator of mpi4py, as MPI.COMM_WORLD, got {type(comm)!r}"
            )
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self._sent = self._received = np.empty(0, np.float32)
        if self.size > 1:
            self._share_processors()

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, size={self.size})"

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that shows progress and writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The part of `count` things that is this rank's; the parts differ by one at most.

        Raises:
            TypeError: `count` is not an integer.
            ValueError: `count` is negative.

        """
        count = positive_int("count", count, minimum=0)
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def average(self, grads: Any, weight: float, values: Sequence[float] = ()) -> list[float]:
        """Make `grads`, in place, the weighted mean of all ranks'; give the mean of `values`.

        With the number of rows, or of targets that count, as the weight, means over the shares
        become the mean over the whole batch. Every rank has the same bits afterwards. All
        gradients travel in one message.

        Args:
            grads: What a tape's ``backward`` gave, or arrays by name, or a mapping or list of
                such; the same names and shapes on all ranks.
            weight: At least 0, and above 0 on some rank.
            values: Numbers such as the loss.

        Raises:
            TypeError: A gradient is no array.
            ValueError: The weights are all 0, or one is negative, NaN or infinite, or the ranks do
                not have gradients of the same names and sizes.

        """
        weight = finite_float("weight", weight, minimum=0.0)
        named = named_arrays("grads", grads)
        if self.size == 1:
            return list(values)
        # A number that follows from the names and sizes, so small that its squares add up exactly.
        mark = zlib.crc32(str([(n, a.size) for n, a in named.items()]).encode()) % (1 << 20)
        own = [weight, mark, mark**2, *(float(value) * weight for value in values)]
        total, marks, squares, *sums = self._sum(np.array(own, np.float64)).tolist()
        if squares * self.size != marks**2:  # equal where all ranks' are, and nowhere else
            raise ValueError(
                "grads must have the same names and sizes on all ranks, got different ones: "
                f"{', '.join(named)} on rank {self.rank}"
            )
        if total == 0.0:
            raise ValueError("weight must be above 0 on some rank, got 0 on all")
        with np.errstate(all="ignore"):
            self._average_arrays(list(named.values()), weight / total)
        return [value / total for value in sums]

    def _average_arrays(self, arrays: list[Array], factor: float) -> None:
        """Each becomes Σ over the ranks of factor times it."""
        dtype = np.result_type(*arrays) if arrays else np.dtype(np.float32)
        numbers = sum(array.size for array in arrays)
        if self._sent.size != numbers or self._sent.dtype != dtype:
            self._sent, self._received = np.empty(numbers, dtype), np.empty(numbers, dtype)
        for part, array in self._parts(self._sent, arrays):
            np.multiply(device_of(array).get(array).reshape(-1), dtype.type(factor), out=part)
        self._comm.Allreduce(self._sent, self._received)
        for part, array in self._parts(self._received, arrays):
            array[...] = device_of(array).put(part.reshape(array.shape))

    @staticmethod
    def _parts(buffer: Array, arrays: list[Array]) -> list[tuple[Array, Array]]:
        ends = np.cumsum([array.size for array in arrays])
        return [(buffer[end - a.size : end], a) for end, a in zip(ends, arrays, strict=True)]

    def _sum(self, numbers: Array) -> Array:
        total = np.empty_like(numbers)
        self._comm.Allreduce(numbers, total)
        return total

    def broadcast(self, params: Any) -> None:
        """Make these arrays, in place, those of rank 0: a model's parameters before training.

        Raises:
            TypeError: Something is no array.
            ValueError: The ranks' names or shapes differ.

        """
        arrays = named_arrays("params", params)
        if self.size == 1:
            return
        self._require_same(
            "params", [(name, a.shape, a.dtype.str) for name, a in arrays.items()], "shapes"
        )
        for array in arrays.values():
            own = np.ascontiguousarray(device_of(array).get(array))
            self._comm.Bcast(own, root=0)
            array[...] = device_of(array).put(own)

    def require_same(self, params: Any) -> None:
        """Refuse to go on where these arrays are not the same bits on all ranks.

        It costs a pass over them and a short message: now and then, not every step.

        Raises:
            TypeError: Something is no array.
            ValueError: They differ.

        """
        arrays = named_arrays("params", params)
        if self.size > 1:
            sums = [(n, zlib.crc32(device_of(a).get(a).tobytes())) for n, a in arrays.items()]
            self._require_same("params", sums, "values")

    def _require_same(self, what: str, own: list[Any], kind: str) -> None:
        others = self._comm.allgather(own)
        for rank, theirs in enumerate(others):
            if theirs != others[0]:
                pairs = zip(theirs, others[0], strict=False)
                name = next((a[0] for a, b in pairs if a != b), "one that is missing")
                raise ValueError(
                    f"{what} must have the same {kind} on all ranks, got another {name} on rank "
                    f"{rank} than on rank 0: broadcast them at the beginning, and let every rank "
                    "take every step"
                )

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every rank; what others give is not looked at."""
        return value if self.size == 1 else self._comm.bcast(value, root=0)

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in their order, on every rank."""
        return [value] if self.size == 1 else list(self._comm.allgather(value))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or self.size == 1 or (isinstance(error, SystemExit) and not error.code):
            return
        traceback.print_exception(error)
        self.end(f"{type(error).__name__}: {error}")

    def end(self, why: str) -> None:
        """End all ranks now, in the middle of whatever they do, and say which of them asked."""
        print(
            f"rank {self.rank} of {self.size} stopped, which ends them all: {why}", file=sys.stderr
        )
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(1)

    def _share_processors(self) -> None:
        """Share the threads with those ranks of this machine that may use the same processors."""
        mask = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        where = (os.uname().nodename if hasattr(os, "uname") else "", mask)
        same = self._comm.allgather(where).count(where)
        if _core.process_threads() == 0:
            set_num_threads(max(1, get_num_threads() // same))


def launched_ranks() -> Ranks:
    """All that ``mpiexec`` started together with this process, which may be this one alone.

    Raises:
        ImportError: There are several, and mpi4py is not installed or finds no MPI.

    """
    if not any(int(os.environ.get(name, "1")) > 1 for name in _LAUNCHED):
        return Ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter where it finds no library of MPI's
        raise ImportError(
            "several processes were started together, as mpiexec does, and joining them needs "
            f"mpi4py: pip install 'rnnkern[mpi]' ({str(error).splitlines()[0]})"
        ) from error
    return Ranks(MPI.COMM_WORLD)
