# SPDX-License-Identifier: Apache-2.0
"""MLX's recurrent layers as layers of ours."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkern._checks import Array, DType
from rnnkern.interop.building import dtype_for, recurrent
from rnnkern.interop.gates import Theirs
from rnnkern.interop.probing import check_near
from rnnkern.layers.base import Recurrent

# Our class, and MLX's names of the arrays.
_NAMES = {
    "RNN": ("Wxh", "Whh", "bias"),
    "GRU": ("Wx", "Wh", "b"),
    "LSTM": ("Wx", "Wh", "bias"),
}


def from_mlx(
    module: Any, *, batch_first: bool = True, dtype: DType | None = None, device: str = "cpu"
) -> Recurrent:
    """A layer with a copy of the parameters of ``mlx.nn.RNN``, ``GRU`` or ``LSTM``.

    Args:
        module: one of these.
        batch_first: of the layer; MLX has the batch first.
        dtype: "float32" or "float64"; None for float32, as MLX has it.
        device: of the layer.

    Raises:
        TypeError: the module is none of these.
        ValueError: its arrays do not fit, or it computes something else: both have run a small
            random input.

    Example:
        >>> import mlx
        >>> from mlx import nn
        >>> rk.from_mlx(nn.LSTM(4, 8))
        LSTM(4, 8, batch_first=True)

    """
    kind = next((c.__name__ for c in type(module).__mro__ if c.__name__ in _NAMES), None)
    if kind is None or not hasattr(module, "parameters"):
        raise TypeError(f"module must be mlx.nn.RNN, GRU or LSTM, got {type(module)!r}")
    own = dict(module.parameters())
    weight_ih, weight_hh, bias = _NAMES[kind]
    if weight_ih not in own or weight_hh not in own:
        raise ValueError(f"a {kind} must have {weight_ih} and {weight_hh}, got {sorted(own)}")
    arrays = {name: np.array(value, np.float32) for name, value in own.items()}
    second: Array | None = None
    if "bhn" in arrays:  # the candidate's alone: the last rows of a second bias
        second = np.zeros(arrays[weight_ih].shape[0], np.float32)
        second[-len(arrays["bhn"]) :] = arrays["bhn"]
    weights = Theirs(arrays[weight_ih], arrays[weight_hh], arrays.get(bias), second)
    chosen = dtype_for(dtype, [weights.weight_ih])
    options: dict[str, Any] = {"batch_first": batch_first, "device": device, "dtype": chosen}
    if kind == "RNN":
        name = getattr(getattr(module, "nonlinearity", None), "__name__", "tanh")
        options["nonlinearity"] = "relu" if name == "relu" else "tanh"
    if kind == "GRU":
        options["reset"] = "after"
    layer = recurrent("MLX", kind, [weights], options=options)
    _probe(module, layer)
    return layer


def _probe(module: Any, layer: Recurrent) -> None:
    """Run both."""
    import mlx.core

    x = np.random.default_rng(0).standard_normal((2, 3, layer.input_size)).astype(np.float32)
    theirs = module(mlx.core.array(x))
    theirs = theirs[0] if isinstance(theirs, (tuple, list)) else theirs
    x = x.astype(layer.dtype)
    got = layer(x if layer.batch_first else x.swapaxes(0, 1))[0]
    got = got if layer.batch_first else got.swapaxes(0, 1)
    check_near(type(module).__name__, layer, np.array(theirs), got)
