# SPDX-License-Identifier: Apache-2.0
"""Answers that are known, as a decoder learns from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnkern._checks import Array
from rnnkern.devices import Device
from rnnkern.models.decoding import lengths_of
from rnnkern.training.batches import checked_lengths


class Teaching(NamedTuple):
    """What ``Seq2Seq.teach`` makes of answers.

    Attributes:
        fed: (U, B), what the decoder is fed.
        targets: (U, B), what it is to say.
        lengths: (B,), how many of these count.

    """

    fed: Array
    targets: Array
    lengths: NDArray[np.int64]


def teach(device: Device, answers: Array, lengths: Any, bos: int, eos: int) -> Teaching:
    """See ``Seq2Seq.teach``."""
    xp, (steps, rows) = device.xp, answers.shape
    if lengths is None:
        ends = device.get(lengths_of(xp, answers, eos))
    else:
        ends = checked_lengths(lengths, rows, steps)
    most = int(ends.max(initial=0))
    whole = xp.concatenate([answers[:most].astype(np.int64), xp.full((1, rows), eos, np.int64)])
    inside = device.put(np.arange(most + 1)[:, None] < ends)
    targets = xp.where(inside, whole, np.int64(eos))
    fed = xp.concatenate([xp.full((1, rows), bos, np.int64), targets[:-1]])
    return Teaching(fed, targets, ends + 1)
