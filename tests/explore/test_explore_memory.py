# SPDX-License-Identifier: Apache-2.0
"""Gates that start with a memory keep a state for about as long as they are asked to."""

from __future__ import annotations

import numpy as np
import pytest

from rnnkern.cells import CELLS
from rnnkern.explore.memory import remember
from rnnkern.explore.ways import way_of


@pytest.mark.parametrize("cell", [n for n, c in CELLS.items() if way_of(c.build(1, 1))])
def test_a_state_stays_longer_than_it_would(cell: str) -> None:
    """With no input and no recurrent weights the gates' biases alone say what is kept."""
    left = []
    for asked in (None, 100):
        layer = CELLS[cell].build(1, 64, seed=0)
        layer.params["weight_hh_l0"][...] = 0
        if asked is not None:
            remember(layer, asked, np.random.default_rng(0))
        state = np.ones((1, 1, 64), np.float32)
        _, last = layer(
            np.zeros((10, 1, 1), np.float32), (state, state) if cell == "lstm" else state
        )
        left.append(np.median(last[1] if isinstance(last, tuple) else last))
    if cell == "rnn":
        assert left[0] == left[1]
    else:
        assert left[0] < 0.1
        assert 0.2 < left[1] < 0.6
