# SPDX-License-Identifier: Apache-2.0
"""The adder, trained."""

from __future__ import annotations

import numpy as np

from rnnkern.adder import Adder, Settings, Training


def share_learnt(settings: Settings) -> float:
    """The share of the pairs it is trained on that it adds rightly at the end of the run."""
    training = Training(Adder(settings))
    while training.fraction < 1.0:
        training.advance()
    pairs = training.adder.pairs
    score = training.adder.evaluate(*pairs.at(np.arange(pairs.trained)))
    return score.right / score.total
