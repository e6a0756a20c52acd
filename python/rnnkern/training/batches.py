# SPDX-License-Identifier: Apache-2.0
"""Sequences of many lengths as batches that layers take: shuffled, padded, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import (
    Array,
    DType,
    boolean,
    float_dtype,
    host_array,
    on_gpu,
    positive_int,
)
from rnnkern.devices import device_of

Rows = Union[Array, "list[Array]"]  # (N, T, ...), or N arrays (T_n, ...)


class Batch(NamedTuple):
    """What a step of training takes.

    Attributes:
        x: Tokens (T, B), or features (T, B, I).
        lengths: (B,); ``None`` where every row has T steps.
        targets: (B, ...) of whole rows, or (T, B, ...) of steps; ``None`` where there are none.

    """

    x: Array
    lengths: Any
    targets: Any


@dataclass(eq=False, repr=False)
class Batches:
    """Batches of a set of sequences, epoch after epoch; see ``batches``, which makes it.

    ``for x, lengths, targets in data`` is one epoch, and the next such loop the next one.
    ``epoch(n)`` is the n-th whenever it is asked for: what it holds follows from the seed and n.

    Example:
        >>> data = rk.batches([[1, 2, 3], [4], [5, 6]], batch_size=2, shuffle=False)
        >>> len(data), [lengths.tolist() for _, lengths, _ in data]
        (2, [[3, 1], [2]])

    """

    x: Rows
    lengths: NDArray[np.int64]
    targets: Rows | None
    batch_size: int
    shuffle: bool
    seed: int
    bucket: int
    pad: float
    target_pad: float
    batch_first: bool
    drop_last: bool
    per_step: bool  # whether targets are sequences themselves
    ragged: bool  # whether lengths are told
    begun: int = 0  # epochs that ``for`` went through, or is in

    def __repr__(self) -> str:
        least, most = int(self.lengths.min()), int(self.lengths.max())
        steps = f"{most}" if least == most else f"{least} to {most}"
        options = f"batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed}"
        text = f"Batches({len(self.lengths)} sequences of {steps} steps, {options}"
        return f"{text}, bucket={self.bucket})" if self.bucket > 1 else f"{text})"

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def fills_targets(self) -> bool:
        """Whether targets of fewer steps than others are filled with ``target_pad``."""
        return (
            self.per_step and isinstance(self.targets, list) and len({*map(len, self.targets)}) > 1
        )

    def __iter__(self) -> Iterator[Batch]:
        self.begun += 1
        return self.epoch(self.begun - 1)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from the ``start``-th on; those before are not made.

        Raises:
            TypeError, ValueError: ``number`` or ``start`` is no integer of at least 0.

        """
        number = positive_int("number", number, minimum=0)
        start = positive_int("start", start, minimum=0)
        rows = self._order(np.random.default_rng([self.seed, number]))
        return (self._batch(chosen) for chosen in rows[start:])

    def _order(self, random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Which rows are in each batch."""
        count, size = len(self.lengths), self.batch_size
        order = random.permutation(count) if self.shuffle else np.arange(count)
        if self.bucket > 1:
            pool = self.bucket * size
            pools = [order[start : start + pool] for start in range(0, count, pool)]
            order = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools])
        batches = [order[start : start + size] for start in range(0, count, size)][: len(self)]
        if self.bucket > 1 and self.shuffle:  # sorted by length, they would come short to long
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        lengths = self.lengths[rows]
        steps = int(lengths.max(initial=0))
        x = time_first(chosen_rows(self.x, rows, steps, self.pad), self.batch_first)
        targets = None
        if self.targets is not None:
            steps_of_targets = self._target_steps(steps)
            targets = chosen_rows(self.targets, rows, steps_of_targets, self.target_pad)
            if self.per_step:
                targets = time_first(targets, self.batch_first)
        return Batch(x, lengths if self.ragged else None, targets)

    def _target_steps(self, steps: int) -> int | None:
        """Steps that are left of one array of targets: as many as of x, where it has as many."""
        x, targets = self.x, self.targets
        if not (self.per_step and isinstance(x, np.ndarray) and isinstance(targets, np.ndarray)):
            return None
        return steps if targets.shape[1] == x.shape[1] else None


def batches(
    x: Any,
    targets: Any = None,
    batch_size: int = 32,
    *,
    lengths: Any = None,
    shuffle: bool = False,
    seed: int | None = None,
    bucket: int = 1,
    pad: float = 0,
    target_pad: float = 0,
    batch_first: bool = False,
    drop_last: bool = False,
    dtype: DType = "float32",
) -> Batches:
    """Batches ``x, lengths, targets`` of N sequences, in the layout that layers take.

    Args:
        x: A list of N arrays, tokens (T_n,) or features (T_n, I), of any lengths; or one array
            (N, T) of tokens or (N, T, I) of features.
        targets: One item a sequence. Integers and rows of numbers are of the whole sequence: an
            array (N,), or (N, K) of floats. Integers (T_n,) and rows of numbers (T_n, K), in a list
            or one array, are of its steps, or the answers of a `Seq2Seq`. ``None`` has none.
        batch_size: B; the last batch may be smaller.
        lengths: (N,) integers, of the rows of an array x; those of a list are known.
        shuffle: Whether each epoch has an order of its own.
        seed: Of those orders; ``None`` draws one.
        bucket: So many batches' rows are sorted by length before they are cut into batches, whose
            rows are then about equally long, and little is padded. The batches come in any order.
        pad: What fills x past a row's length.
        target_pad: What fills targets of steps; for a `Seq2Seq` give its ``eos``.
        batch_first: Whether x and targets of steps are (B, T, ...), for layers that take it so.
        drop_last: Whether a last batch of fewer rows is left out.
        dtype: "float32" or "float64", what floats are converted to. Integers become int64.

    Returns:
        `Batches`: ``for x, lengths, targets in data`` goes through one epoch, ``len(data)`` tells
        its number of batches. x is (T, B) or (T, B, I) with T the batch's longest row; lengths are
        ``None`` where x is one array and none were given.

    Raises:
        TypeError: Something is neither integers nor floats.
        ValueError: There is no sequence; items differ in number or form; a length is out of range.

    Example:
        >>> data = rk.batches([[1, 2, 3], [4]], [0, 1], batch_size=2)
        >>> for x, lengths, targets in data:
        ...     print(x.tolist(), lengths, targets)
        [[1, 4], [2, 0], [3, 0]] [3 1] [0 1]

    """
    kind = float_dtype("dtype", dtype)
    rows = checked_sequences("x", x, kind)
    count = len(rows)
    own = np.array([len(row) for row in rows], np.int64)
    if lengths is not None:
        if not isinstance(rows, np.ndarray):
            raise ValueError("lengths are for an x that is one array, got a list, whose are known")
        own = checked_lengths(lengths, *rows.shape[:2])
    answers, per_step = None, False
    if targets is not None:
        answers = _rows("targets", targets, kind)
        if len(answers) != count:
            raise ValueError(f"targets must have one for each x, {count}, got {len(answers)}")
        per_step = answers[0].ndim > (0 if answers[0].dtype.kind in "iu" else 1)
        if answers[0].ndim == 0 and answers[0].dtype.kind == "f":
            raise ValueError(
                "targets must be integers or rows of numbers, got one float a sequence: "
                "targets[:, None] makes rows of one number"
            )
        if not per_step and not isinstance(answers, np.ndarray):
            answers = np.stack(answers)
    return Batches(
        x=rows,
        lengths=own,
        targets=answers,
        batch_size=positive_int("batch_size", batch_size),
        shuffle=boolean("shuffle", shuffle),
        seed=_seed(seed),
        bucket=positive_int("bucket", bucket),
        pad=pad,
        target_pad=target_pad,
        batch_first=boolean("batch_first", batch_first),
        drop_last=boolean("drop_last", drop_last),
        per_step=per_step,
        ragged=lengths is not None or not isinstance(rows, np.ndarray),
    )


def pad(
    sequences: Sequence[Any], value: float = 0, *, batch_first: bool = False
) -> tuple[Array, NDArray[np.int64]]:
    """Sequences of many lengths as one array, and their lengths.

    Args:
        sequences: Arrays (T_n, ...), alike but for their lengths.
        value: What fills an array past its length.
        batch_first: Whether the result is (N, T, ...).

    Returns:
        (T, N, ...) with T the greatest length, and (N,).

    Raises:
        TypeError: A sequence is of neither integers nor floats.
        ValueError: There is none, or they differ in more than their lengths.

    Example:
        >>> x, lengths = rk.pad([[1, 2, 3], [4]])
        >>> x.tolist(), lengths.tolist()
        ([[1, 4], [2, 0], [3, 0]], [3, 1])

    """
    rows = _rows("sequences", list(sequences), None)
    if not rows or rows[0].ndim == 0:
        raise ValueError("sequences must hold arrays with an axis of steps, and at least one")
    lengths = np.array([len(row) for row in rows], np.int64)
    batch_first = boolean("batch_first", batch_first)
    padded = chosen_rows(rows, np.arange(len(rows)), int(lengths.max()), value)
    return time_first(padded, batch_first), lengths


def unpad(padded: Any, lengths: Any, *, batch_first: bool = False) -> list[Array]:
    """The sequences of an array without what fills it: the way back of ``pad``.

    Args:
        padded: (T, N, ...), of this device or a GPU's.
        lengths: (N,), integers in 0..T.
        batch_first: Whether the array is (N, T, ...).

    Returns:
        A list of N arrays (T_n, ...), copies.

    Raises:
        TypeError, ValueError: There are no such axes, or lengths do not fit.

    Example:
        >>> tokens = np.array([[5, 7], [6, 0], [0, 0]])
        >>> [row.tolist() for row in rk.unpad(tokens, [2, 1])]
        [[5, 6], [7]]

    """
    array = device_of(padded).array("padded", padded)
    if array.ndim < 2:
        raise ValueError(f"padded must have axes of steps and of rows, got shape {array.shape}")
    rows = array if boolean("batch_first", batch_first) else array.swapaxes(0, 1)
    ends = device_of(lengths).get(lengths) if on_gpu(lengths) else lengths
    ends = checked_lengths(ends, *rows.shape[:2])
    return [row[:end].copy() for row, end in zip(rows, ends.tolist(), strict=True)]


def checked_sequences(name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Rows:
    """What sequences (T,) of integers or (T, I) of floats there are, at least one."""
    rows = _rows(name, value, dtype)
    if len(rows) == 0:
        raise ValueError(f"{name} must hold at least one sequence, got none")
    axes = rows[0].ndim
    if axes != (1 if rows[0].dtype.kind in "iu" else 2):
        hint = f": {name}[..., None] makes one feature a step" if axes == 1 else ""
        raise ValueError(
            f"{name} must hold sequences (T,) of integers or (T, I) of floats, "
            f"got {rows[0].shape}{hint}"
        )
    return rows


def _rows(name: str, value: Any, dtype: np.dtype[Any] | None) -> Rows:
    """One array with a first axis of rows, or a list of arrays that differ in length alone."""
    if isinstance(value, (list, tuple)):
        arrays = [_numbers(f"{name}[{i}]", item, dtype) for i, item in enumerate(value)]
        # An empty list has no type of its own.
        kinds = {a.dtype for a in arrays if a.size}
        if len(kinds) > 1:
            raise TypeError(f"{name} must be all integers or all floats, got {kinds}")
        for kind in kinds:
            arrays = [a.astype(kind, copy=False) for a in arrays]
        for i, array in enumerate(arrays):
            if array.ndim != arrays[0].ndim or array.shape[1:] != arrays[0].shape[1:]:
                raise ValueError(
                    f"{name} must hold arrays that differ in length alone, got {name}[0] of shape "
                    f"{arrays[0].shape} and {name}[{i}] of shape {array.shape}"
                )
        return arrays
    array = _numbers(name, value, dtype)
    if array.ndim == 0:
        raise ValueError(f"{name} must have one item for each sequence, got {value!r}")
    return array


def _numbers(name: str, value: Any, dtype: np.dtype[Any] | None) -> Array:
    """Integers as int64, floats as ``dtype``, if any."""
    array = host_array(name, value)
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be integers or floats, got {array.dtype}")
    return array if dtype is None else array.astype(dtype, copy=False)


def chosen_rows(rows: Rows, which: NDArray[np.int64], steps: int | None, value: float) -> Array:
    """Some rows as one array, cut or filled to so many steps, or to the longest of them."""
    if isinstance(rows, np.ndarray):
        return rows[which] if steps is None else rows[which, :steps]
    some = [rows[i] for i in which]
    if steps is None:
        steps = max(len(row) for row in some)
    filled = np.full((len(some), steps, *some[0].shape[1:]), value, some[0].dtype)
    for to, row in zip(filled, some, strict=True):
        to[: len(row)] = row
    return filled


def time_first(array: Array, batch_first: bool) -> Array:
    """(B, T, ...) as it is wanted, in one piece."""
    return np.ascontiguousarray(array if batch_first else array.swapaxes(0, 1))


def checked_lengths(lengths: Any, rows: int, steps: int) -> NDArray[np.int64]:
    """The lengths of so many sequences, each of at most so many steps."""
    array = host_array("lengths", lengths)
    if array.dtype.kind not in "iu" or array.shape != (rows,):
        raise ValueError(
            f"lengths must be integers ({rows},), got {array.dtype} of shape {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() > steps):
        raise ValueError(f"lengths must lie in 0..{steps}, got {array.min()}..{array.max()}")
    return array.astype(np.int64)


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return positive_int("seed", seed, minimum=0)
