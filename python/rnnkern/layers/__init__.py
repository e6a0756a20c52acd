# SPDX-License-Identifier: Apache-2.0
"""Layers and what is around them, and what is made from them: tapes, snapshots, streams."""

from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import CellTape, RecurrentCell
from rnnkern.layers.dropout import Dropout, DropoutTape
from rnnkern.layers.embedding import Embedding, EmbeddingTape
from rnnkern.layers.frozen import Frozen
from rnnkern.layers.gradients import Gradients, StateGradients
from rnnkern.layers.layer_norm import LayerNorm, LayerNormTape
from rnnkern.layers.linear import FrozenLinear, Linear, LinearTape
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.stack import FrozenStack, Stack
from rnnkern.layers.stack_stream import StackStream
from rnnkern.layers.stack_tape import StackTape
from rnnkern.layers.stream import Stream
from rnnkern.layers.tape import Tape

__all__ = [
    "CellTape",
    "Dropout",
    "DropoutTape",
    "Embedding",
    "EmbeddingTape",
    "Frozen",
    "FrozenLinear",
    "FrozenStack",
    "Gradients",
    "LayerNorm",
    "LayerNormTape",
    "Linear",
    "LinearTape",
    "Parameters",
    "Recurrent",
    "RecurrentCell",
    "Stack",
    "StackStream",
    "StackTape",
    "StateGradients",
    "Stream",
    "Tape",
]
