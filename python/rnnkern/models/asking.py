# SPDX-License-Identifier: Apache-2.0
"""The forms in which models are asked: one sequence, a batch, or a list of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnkern._checks import Array, positive_int
from rnnkern.devices import Device, get_device
from rnnkern.training.batches import Batches, checked_sequences, chosen_rows, pad, time_first, unpad

_ROWS = 256  # of a batch: more are hardly faster, and a list may be long


class Question(NamedTuple):
    """What a `Seq2Seq` is asked.

    Attributes:
        source: (S, B), tokens.
        lengths: (B,), or None.
        most: Tokens of an answer.
        alone: Whether it was one sequence, without an axis of rows.

    """

    source: Array
    lengths: Any
    most: int
    alone: bool

    def answered(self, *arrays: Array) -> tuple[Array, ...]:
        """What was found, whose last axis is that of the rows, in the form of the question."""
        return tuple(array[..., 0] for array in arrays) if self.alone else arrays


def question(device: Device, source: Any, lengths: Any, max_length: Any) -> Question:
    """A source (S, B), (S,) or a list of such, checked; an answer has at most 2·S + 10 tokens."""
    if is_list_of_sequences(source):
        refuse_of_list("source", {"source_lengths": lengths})
        padded, lengths = pad(list(checked_sequences("source", source)))
        source = device.put(padded)
    source = device.array("source", source)
    alone = source.ndim == 1
    source = checked_tokens(device, "source", source[:, None] if alone else source)
    most = 2 * len(source) + 10 if max_length is None else positive_int("max_length", max_length)
    return Question(source, lengths, most, alone)


def checked_tokens(device: Device, name: str, value: Any) -> Array:
    """`value` as the device's array (steps, B) of integers."""
    array = device.array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (steps, B), got {array.shape}")
    return array


def checked_token(name: str, value: Any, count: int) -> int:
    """`value`, which must be one of so many tokens."""
    token = positive_int(name, value, minimum=0)
    if token >= count:
        raise ValueError(f"{name} must be in 0..{count - 1}, got {token}")
    return token


def is_list_of_sequences(x: Any) -> bool:
    """Whether it is a list of sequences, and not of the numbers of one."""
    return isinstance(x, (list, tuple)) and not (x and isinstance(x[0], (int, float, np.generic)))


def refuse_of_list(name: str, given: Mapping[str, Any]) -> None:
    """Refuse what is said of the steps of an array, by its name, where there is a list."""
    for own, value in given.items():
        if value is not None:
            raise ValueError(
                f"{own} needs {name} as one array, got a list of sequences, whose lengths are known"
            )


def predicted(model: Any, x: Any) -> Any:
    """The outputs of a model for a list of sequences or `Batches`; see ``Model.predict``."""
    rows = x
    if isinstance(x, Batches):
        rows = x.x
        if isinstance(rows, np.ndarray):
            rows = [row[:length] for row, length in zip(rows, x.lengths, strict=True)]
    rows = checked_sequences("x", rows, model.dtype)
    lengths = np.array([len(row) for row in rows], np.int64)
    order = np.argsort(-lengths, kind="stable")  # of like lengths together, so little is padded
    device, found = get_device(model.device), []
    for start in range(0, len(rows), _ROWS):
        which = order[start : start + _ROWS]
        batch, own = (
            time_first(chosen_rows(rows, which, None, 0), model.batch_first),
            lengths[which],
        )
        outputs = model.predict(device.put(batch), own)
        if model.readout == "all":
            found += unpad(outputs, own, batch_first=model.batch_first)
        else:
            found.append(outputs)
    places = np.argsort(order)  # of the caller's rows among these
    if model.readout == "all":
        return [found[place] for place in places]
    return device.xp.concatenate(found)[device.put(places)]
