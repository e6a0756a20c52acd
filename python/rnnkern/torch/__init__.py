# SPDX-License-Identifier: Apache-2.0
"""PyTorch's recurrent modules on our kernels: ``import rnnkern.torch``.

`LSTM`, `GRU`, `RNN` and their cells take the arguments of `torch.nn`'s, and their state dicts are
the same; `SimplifiedGRU`, `MGU`, `MinGRU`, `MinLSTM` and `IndRNN` are cells that it lacks.
`accelerate` exchanges those of a model that is there. All run on the CPU, forward and backward, in
eager mode and through ``torch.compile``, ``torch.export`` and ``DistributedDataParallel``. PyTorch
is no part of what rnnkern installs.
"""

from rnnkern.torch.accelerate import accelerate, from_layer
from rnnkern.torch.cells import GRUCell, LSTMCell, RNNCell
from rnnkern.torch.modules import GRU, LSTM, RNN
from rnnkern.torch.own import MGU, IndRNN, MinGRU, MinLSTM, SimplifiedGRU

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "GRUCell",
    "IndRNN",
    "LSTMCell",
    "MinGRU",
    "MinLSTM",
    "RNNCell",
    "SimplifiedGRU",
    "accelerate",
    "from_layer",
]
