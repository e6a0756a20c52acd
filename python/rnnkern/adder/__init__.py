# SPDX-License-Identifier: Apache-2.0
"""A model that learns to add from examples of sums, as ``535+61`` and ``596``.

A question is read and an answer given in natural order and length. Inside, see ``Encoding``, both
numbers are filled with zeros to the same number of digits, the question is reversed and the answer
is produced from its last digit, as one adds on paper.
"""

from rnnkern.adder.model import Adder, Score
from rnnkern.adder.settings import Settings
from rnnkern.adder.task import Encoding, Pairs
from rnnkern.adder.training import Training, train

__all__ = ["Adder", "Encoding", "Pairs", "Score", "Settings", "Training", "train"]
