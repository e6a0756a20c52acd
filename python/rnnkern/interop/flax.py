# SPDX-License-Identifier: Apache-2.0
"""Flax's cells as layers of ours: those of ``flax.linen`` and of ``flax.nnx``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnkern._checks import Array, DType
from rnnkern.interop.building import dtype_for, recurrent
from rnnkern.interop.gates import Theirs
from rnnkern.interop.probing import check_near
from rnnkern.layers.base import Recurrent

# Our class, and the letters of the gates in the names of a cell's parts.
_CELLS: dict[str, tuple[str, str]] = {
    "SimpleCell": ("RNN", ""),
    "MGUCell": ("SimplifiedGRU", "fn"),
    "GRUCell": ("GRU", "rzn"),
    "LSTMCell": ("LSTM", "ifgo"),
    "OptimizedLSTMCell": ("LSTM", "ifgo"),
}
_FUNCTIONS = {"gate_fn": ("sigmoid",), "activation_fn": ("tanh",)}


def from_flax(
    cell: Any,
    params: Mapping[str, Any] | None = None,
    *,
    batch_first: bool = False,
    dtype: DType | None = None,
    device: str = "cpu",
) -> Recurrent:
    """A layer that runs a cell of Flax over sequences, with a copy of its parameters.

    ``SimpleCell``, ``GRUCell``, ``LSTMCell`` and ``OptimizedLSTMCell``, and ``MGUCell`` with
    ``reset_gate=False``, which is our `SimplifiedGRU`. With its reset gate an ``MGUCell`` is no
    cell of ours: it resets after the product.

    Args:
        cell: a module of ``flax.linen``, or one of ``flax.nnx``, which has its own parameters.
        params: of a linen module, as ``module.init(...)["params"]``.
        batch_first: of the layer.
        dtype: "float32" or "float64"; None for that of the parameters.
        device: of the layer.

    Raises:
        TypeError: the cell is none of Flax's, or lacks its parameters.
        ValueError: it has no like here, or its parameters do not fit; the message names it.

    Both have run a small random input, and agreed, before it returns.

    Example:
        >>> import flax
        >>> import jax
        >>> from flax import linen
        >>> cell, key, x = linen.GRUCell(3), jax.random.key(0), np.ones((2, 4), np.float32)
        >>> variables = cell.init(key, cell.initialize_carry(key, x.shape), x)
        >>> rk.from_flax(cell, variables["params"])
        GRU(4, 3, reset='after')

    """
    name = next((c.__name__ for c in type(cell).__mro__ if c.__name__ in _CELLS), None)
    if name is None:
        raise TypeError(f"cell must be one of Flax's {', '.join(_CELLS)}, got {type(cell)!r}")
    parts = _own_parts(cell) if params is None else _parts(params)
    if not parts:
        raise TypeError(f'params must be given for a linen {name}, as init(...)["params"] has them')
    fixed: dict[str, Any] = {}
    for option, known in _FUNCTIONS.items():
        function = getattr(getattr(cell, option, None), "__name__", known[0])
        if name == "SimpleCell" and function == "relu":
            fixed["nonlinearity"] = "relu"
        elif function not in known:
            raise ValueError(f"the {name} has {option}={function}: only {known[0]} is supported")
    if getattr(cell, "residual", False):
        raise ValueError("the SimpleCell has residual=True, which is not supported")
    if name == "MGUCell" and getattr(cell, "reset_gate", True):
        raise ValueError("the MGUCell has a reset gate after its product, which is not supported")
    if name == "GRUCell":
        fixed["reset"] = "after"
    kind, letters = _CELLS[name]
    if "dense_i" in parts:
        of_x, of_h = parts["dense_i"], parts["dense_h"]
    else:
        of_x, of_h = (_stacked(name, parts, begin, letters) for begin in "ih")
    weights = Theirs(of_x[0].T, of_h[0].T, of_x[1], of_h[1])
    chosen = dtype_for(dtype, [weights.weight_ih, weights.weight_hh])
    options = {**fixed, "batch_first": batch_first, "device": device, "dtype": chosen}
    layer = recurrent("Flax", kind, [weights], options=options)
    _probe(cell, params, layer)
    return layer


Part = tuple[Array, "Array | None"]


def _parts(params: Mapping[str, Any]) -> dict[str, Part]:
    """Kernel and bias of each dense part."""
    found = {}
    for name, part in params.items():
        if not isinstance(part, Mapping) or "kernel" not in part:
            raise ValueError(f"params[{name!r}] must have a kernel")
        bias = part.get("bias")
        kernel = np.asarray(part["kernel"])
        if kernel.ndim != 2:
            raise ValueError(f"the kernel of {name!r} must have two axes, got {kernel.shape}")
        found[name.rstrip("_")] = (kernel, None if bias is None else np.asarray(bias))
    return found


def _own_parts(cell: Any) -> dict[str, Part]:
    """Those of an nnx module, which has them as attributes."""
    found: dict[str, dict[str, Any]] = {}
    for name, part in vars(cell).items():
        if hasattr(part, "kernel") and hasattr(part, "in_features"):
            bias = getattr(part, "bias", None)
            own = {"kernel": part.kernel[...]}
            if bias is not None and getattr(bias, "value", bias) is not None:
                own["bias"] = bias[...]
            found[name] = own
    return _parts(found)


def _stacked(name: str, parts: Mapping[str, Part], begin: str, letters: str) -> Part:
    """The gates' parts side by side; a missing bias is zero where another has one."""
    keys = [begin + letter for letter in letters] or [begin]
    if missing := [key for key in keys if key not in parts]:
        raise ValueError(f"params of a {name} must have {', '.join(keys)}, and lack {missing[0]!r}")
    kernels = [parts[key][0] for key in keys]
    biases = [parts[key][1] for key in keys]
    if all(bias is None for bias in biases):
        return np.concatenate(kernels, axis=1), None
    filled = [
        np.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias
        for kernel, bias in zip(kernels, biases, strict=True)
    ]
    return np.concatenate(kernels, axis=1), np.concatenate(filled)


def _probe(cell: Any, params: Mapping[str, Any] | None, layer: Recurrent) -> None:
    """Run both for three steps."""
    import jax
    from flax import nnx

    x = np.random.default_rng(0).standard_normal((3, 2, layer.input_size)).astype(layer.dtype)
    if params is None:
        carry = cell.initialize_carry(x[0].shape, nnx.Rngs(0))
    else:
        carry = cell.initialize_carry(jax.random.key(0), x[0].shape)
    outputs = []
    for step in x:
        if params is None:
            carry, y = cell(carry, step)
        else:
            carry, y = cell.apply({"params": params}, carry, step)
        outputs.append(np.asarray(y))
    got = layer(x.swapaxes(0, 1) if layer.batch_first else x)[0]
    want = np.stack(outputs)
    check_near(type(cell).__name__, layer, want, got.swapaxes(0, 1) if layer.batch_first else got)
