# SPDX-License-Identifier: Apache-2.0
"""Gates that start with a memory.

Source: Tallec & Ollivier, "Can recurrent neural networks warp time?" (2018), arXiv:1804.11188.
"""

from __future__ import annotations

import numpy as np

from rnnkern.explore.ways import way_of
from rnnkern.layers.base import Recurrent


def remember(layer: Recurrent, steps: int, random: np.random.Generator) -> None:
    """Set the biases so that each unit at first keeps its state over about τ steps.

    log τ is uniform in 0..log(steps), for each unit its own, so that some count and some keep.
    The gate that writes is shut by as much as what keeps is opened. Nothing for a cell that keeps
    no state, or that is not known here.
    """
    way = way_of(layer)
    if way is None or way.writes is None:
        return
    shifts = {way.writes: -1.0, **({} if way.keeps else {"f": 1.0})}
    times = random.uniform(0.0, np.log(steps), layer.hidden_size)
    for name, array in layer.params.items():
        if name.startswith("bias_l"):
            for gate, part in zip(layer.gates, np.split(array, len(layer.gates)), strict=True):
                if gate in shifts:
                    part[...] = shifts[gate] * times
