# SPDX-License-Identifier: Apache-2.0
"""Recurrent networks at the speed of the machine, straight from NumPy."""

from typing import TYPE_CHECKING

from rnnkern import cells as _cells
from rnnkern._version import __version__
from rnnkern.cells import *  # noqa: F403
from rnnkern.layers.base import Recurrent
from rnnkern.layers.cell import RecurrentCell
from rnnkern.layers.gradients import Gradients, StateGradients
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.tape import Tape
from rnnkern.machine import (
    get_num_threads,
    info,
    register_threadpoolctl,
    set_num_threads,
    threads,
)

if TYPE_CHECKING:
    from rnnkern.interop.flax import from_flax
    from rnnkern.interop.keras import from_keras
    from rnnkern.interop.mlx import from_mlx
    from rnnkern.interop.onnx.model import OnnxModel, from_onnx
    from rnnkern.interop.pytorch import from_torch
    from rnnkern.layers.dropout import Dropout
    from rnnkern.layers.embedding import Embedding
    from rnnkern.layers.frozen import Frozen
    from rnnkern.layers.layer_norm import LayerNorm
    from rnnkern.layers.linear import FrozenLinear, Linear
    from rnnkern.layers.stack import FrozenStack, Stack
    from rnnkern.layers.stack_stream import StackStream
    from rnnkern.layers.stack_tape import StackTape
    from rnnkern.layers.stream import Stream
    from rnnkern.models.model import Model
    from rnnkern.models.model_tape import ModelTape
    from rnnkern.models.sampling import sample
    from rnnkern.models.seq2seq import Seq2Seq
    from rnnkern.models.stream import ModelStream
    from rnnkern.models.summary import num_parameters, summary
    from rnnkern.serialize import Checkpoint, FormatError, load, load_checkpoint, save
    from rnnkern.training.batches import Batches, batches, pad, unpad
    from rnnkern.training.clip import clip_grad_norm, clip_grad_value
    from rnnkern.training.fit import fit
    from rnnkern.training.history import History
    from rnnkern.training.losses import binary_cross_entropy, huber, mse, softmax_cross_entropy
    from rnnkern.training.optim import SGD, Adam
    from rnnkern.training.ranks import Ranks
    from rnnkern.training.rmsprop import RMSprop
    from rnnkern.training.schedules import (
        ConstantRate,
        CosineRate,
        LinearRate,
        Schedule,
        StepRate,
        WarmUp,
    )

__all__ = [
    "SGD",
    "Adam",
    "Batches",
    "Checkpoint",
    "ConstantRate",
    "CosineRate",
    "Dropout",
    "Embedding",
    "FormatError",
    "Frozen",
    "FrozenLinear",
    "FrozenStack",
    "Gradients",
    "History",
    "LayerNorm",
    "Linear",
    "LinearRate",
    "Model",
    "ModelStream",
    "ModelTape",
    "OnnxModel",
    "Parameters",
    "RMSprop",
    "Ranks",
    "Recurrent",
    "RecurrentCell",
    "Schedule",
    "Seq2Seq",
    "Stack",
    "StackStream",
    "StackTape",
    "StateGradients",
    "StepRate",
    "Stream",
    "Tape",
    "WarmUp",
    "__version__",
    "batches",
    "binary_cross_entropy",
    "clip_grad_norm",
    "clip_grad_value",
    "fit",
    "from_flax",
    "from_keras",
    "from_mlx",
    "from_onnx",
    "from_torch",
    "get_num_threads",
    "huber",
    "info",
    "load",
    "load_checkpoint",
    "mse",
    "num_parameters",
    "pad",
    "register_threadpoolctl",
    "sample",
    "save",
    "set_num_threads",
    "softmax_cross_entropy",
    "summary",
    "threads",
    "unpad",
]
__all__ += _cells.__all__

# Loaded when it is first asked for, so that a program with a layer does not wait for all else: the
# imports above once more, which type checkers and editors read.
_LATER = {
    "rnnkern.interop.flax": ("from_flax",),
    "rnnkern.interop.keras": ("from_keras",),
    "rnnkern.interop.mlx": ("from_mlx",),
    "rnnkern.interop.onnx.model": ("OnnxModel", "from_onnx"),
    "rnnkern.interop.pytorch": ("from_torch",),
    "rnnkern.layers.dropout": ("Dropout",),
    "rnnkern.layers.embedding": ("Embedding",),
    "rnnkern.layers.frozen": ("Frozen",),
    "rnnkern.layers.layer_norm": ("LayerNorm",),
    "rnnkern.layers.linear": ("FrozenLinear", "Linear"),
    "rnnkern.layers.stack": ("FrozenStack", "Stack"),
    "rnnkern.layers.stack_stream": ("StackStream",),
    "rnnkern.layers.stack_tape": ("StackTape",),
    "rnnkern.layers.stream": ("Stream",),
    "rnnkern.models.model": ("Model",),
    "rnnkern.models.model_tape": ("ModelTape",),
    "rnnkern.models.sampling": ("sample",),
    "rnnkern.models.seq2seq": ("Seq2Seq",),
    "rnnkern.models.stream": ("ModelStream",),
    "rnnkern.models.summary": ("num_parameters", "summary"),
    "rnnkern.serialize": ("Checkpoint", "FormatError", "load", "load_checkpoint", "save"),
    "rnnkern.training.batches": ("Batches", "batches", "pad", "unpad"),
    "rnnkern.training.clip": ("clip_grad_norm", "clip_grad_value"),
    "rnnkern.training.fit": ("fit",),
    "rnnkern.training.history": ("History",),
    "rnnkern.training.losses": ("binary_cross_entropy", "huber", "mse", "softmax_cross_entropy"),
    "rnnkern.training.optim": ("SGD", "Adam"),
    "rnnkern.training.ranks": ("Ranks",),
    "rnnkern.training.rmsprop": ("RMSprop",),
    "rnnkern.training.schedules": (
        "ConstantRate",
        "CosineRate",
        "LinearRate",
        "Schedule",
        "StepRate",
        "WarmUp",
    ),
}
_HOMES = {name: module for module, names in _LATER.items() for name in names}

if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'rnnkern' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
