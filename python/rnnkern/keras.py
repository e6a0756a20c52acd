# SPDX-License-Identifier: Apache-2.0
"""Keras' recurrent layers on our kernels, on the CPU: ``import rnnkern.keras``.

`LSTM`, `GRU` and `SimpleRNN` are Keras' own classes, whose loop over time is ours wherever ours can
be; `accelerate` makes those of an existing model so. For Keras 3 on PyTorch or JAX; both are, as
Keras is, no part of what rnnkern installs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rnnkern.cells import layer_classes
from rnnkern.interop.gates import Order
from rnnkern.layers.configured import spec_of
from rnnkern.layers.parameters import undrawn

try:
    import keras
except ImportError as error:
    raise ImportError("rnnkern.keras needs Keras 3: pip install keras") from error

__all__ = ["GRU", "LSTM", "SimpleRNN", "accelerate"]

Tensor = Any  # of Keras' backend
_Model = TypeVar("_Model")
# y (T, B, H) and the last states, of x, the initial states and weights that are stacked as ours.
_Run = Callable[[Any, Tensor, list[Tensor], list[Tensor]], tuple[Tensor, list[Tensor]]]


def _run_torch(layer: Any, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> Any:
    from rnnkern.torch.calls import Spec
    from rnnkern.torch.functions import run

    h, c = ([s[None] for s in states] + [None])[:2]
    y, *last = run(Spec.of(layer), x, h, c, weights, None, training=False)
    return y, [s[0] for s in last[: len(states)]]


def _run_jax(layer: Any, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> Any:
    from rnnkern.jax import Function

    given = [s[None] for s in states]
    params = dict(zip(layer.params, weights, strict=True))
    y, last = Function(layer)(params, x, given[0] if len(given) == 1 else tuple(given))
    return y, [s[0] for s in (last if isinstance(last, tuple) else (last,))]


_BACKENDS: dict[str, _Run] = {"torch": _run_torch, "jax": _run_jax}


class _OnKernels:
    """What the classes share: the loop over time."""

    _kind: str  # the name of our layers' class

    def inner_loop(
        self, sequences: Tensor, initial_state: Any, mask: Any, training: bool = False
    ) -> tuple[Tensor, Tensor, Any]:
        """Give the last output, all outputs and the last states, as Keras' own method does."""
        given: Any = self
        run = _BACKENDS.get(keras.backend.backend())
        if run is None or not _can(given, sequences, mask, training):
            inherited: Any = super()
            result: tuple[Tensor, Tensor, Any] = inherited.inner_loop(
                sequences, initial_state, mask, training=training
            )
            return result
        ops = keras.ops
        layer = _ours(given, sequences.shape[-1])
        sequences = ops.cast(sequences, given.cell.compute_dtype)
        if given.go_backwards:
            sequences = ops.flip(sequences, axis=1)
        states = (
            list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        )
        y, last = run(
            layer, ops.transpose(sequences, (1, 0, 2)), states, _weights(given.cell, layer)
        )
        outputs = ops.transpose(y, (1, 0, 2)) if given.return_sequences else y[-1][:, None]
        return y[-1], outputs, last


def _can(given: Any, sequences: Tensor, mask: Any, training: bool) -> bool:
    """Whether our kernels compute what this layer is asked for."""
    cell, known = given.cell, keras.activations
    if mask is not None and any(m is not None for m in keras.tree.flatten(mask)):
        return False
    activations = (known.tanh, known.relu) if given._kind == "RNN" else (known.tanh,)
    gates = getattr(cell, "recurrent_activation", known.sigmoid)
    dropped = training and (cell.dropout or cell.recurrent_dropout)
    return (
        cell.activation in activations
        and gates is known.sigmoid
        and not dropped
        and cell.compute_dtype in ("float32", "float64")
        and sequences.shape[1] != 0
        and _on_cpu(sequences)
    )


def _on_cpu(tensor: Tensor) -> bool:
    """Whether it is computed there, and not where shapes alone are asked for."""
    if keras.backend.backend() == "jax":  # what is traced has no device yet
        import jax

        return bool(jax.default_backend() == "cpu")
    return bool(tensor.device.type == "cpu")


def _ours(given: Any, inputs: int) -> Any:
    """Our layer like a layer of Keras', with parameters that hold nothing of use."""
    cell = given.cell
    config: dict[str, Any] = {
        "input_size": int(inputs),
        "hidden_size": cell.units,
        "bias": cell.use_bias,
        "dtype": cell.compute_dtype,
    }
    if given._kind == "GRU":
        config["reset"] = "after" if cell.reset_after else "before"
    if given._kind == "RNN":
        config["nonlinearity"] = "relu" if cell.activation is keras.activations.relu else "tanh"
    return undrawn(layer_classes()[given._kind], config)


def _weights(cell: Any, layer: Any) -> list[Tensor]:
    """The cell's, stacked as ours, by operations that can be differentiated."""
    ops = keras.ops
    facts = spec_of(layer).facts
    order = Order("Keras", type(layer).__name__, facts)

    def stacked(columns: Tensor) -> list[Tensor]:
        """Of (..., G·H) by our gates."""
        blocks = ops.split(columns, len(order.places), axis=-1)
        return [sign * blocks[k] for k, sign in zip(order.places, order.signs, strict=True)]

    def joined(blocks: list[Tensor]) -> Tensor:
        return blocks[0] if len(blocks) == 1 else ops.concatenate(blocks, axis=-1)

    kernels = (cell.kernel, cell.recurrent_kernel)
    weights = [
        ops.transpose(joined(stacked(ops.convert_to_tensor(kernel, cell.compute_dtype))))
        for kernel in kernels
    ]
    if not cell.use_bias:
        return weights
    bias = ops.convert_to_tensor(cell.bias, cell.compute_dtype)
    if facts.recurrent_bias_gate < 0:
        return [*weights, joined(stacked(bias))]
    first, second = stacked(bias[0]), stacked(bias[1])
    own = facts.recurrent_bias_gate
    both = [a if k == own else a + b for k, (a, b) in enumerate(zip(first, second, strict=True))]
    return [*weights, joined(both), second[own]]


@keras.saving.register_keras_serializable(package="rnnkern")
class LSTM(_OnKernels, keras.layers.LSTM):  # type: ignore[misc]
    """`keras.layers.LSTM`, with its arguments and weights, on our kernels.

    Where they cannot compute what it is asked for, the loop is Keras' own: with a mask, with
    dropout in training, with other activations than tanh and sigmoid, in half precision, and for
    other backends than PyTorch and JAX on a CPU. The numbers are the same but for rounding.

    Example:
        >>> layer = rnnkern.keras.LSTM(32, return_sequences=True)

    """

    _kind = "LSTM"


@keras.saving.register_keras_serializable(package="rnnkern")
class GRU(_OnKernels, keras.layers.GRU):  # type: ignore[misc]
    """`keras.layers.GRU`, ``reset_after`` or not, on our kernels: see `LSTM`."""

    _kind = "GRU"


@keras.saving.register_keras_serializable(package="rnnkern")
class SimpleRNN(_OnKernels, keras.layers.SimpleRNN):  # type: ignore[misc]
    """`keras.layers.SimpleRNN`, of tanh or relu, on our kernels: see `LSTM`."""

    _kind = "RNN"


_OURS: dict[type[Any], type[Any]] = {
    getattr(keras.layers, cls.__name__): cls for cls in (LSTM, GRU, SimpleRNN)
}


def accelerate(model: _Model) -> _Model:
    """Have a model's ``LSTM``, ``GRU`` and ``SimpleRNN`` layers run on our kernels.

    Layers become those of this module in place, also within ``Bidirectional``: their weights are
    the same variables, so that optimizers go on as they are. What was compiled is compiled anew.

    Args:
        model: any Keras layer or model.

    Returns:
        The model.

    Raises:
        TypeError: it is no layer of Keras'.

    Example:
        >>> model = rnnkern.keras.accelerate(model)

    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model must be a layer or model of Keras 3, got {type(model)!r}")
    for layer in model._flatten_layers():
        layer.__class__ = _OURS.get(type(layer), type(layer))
    for name in ("train_function", "test_function", "predict_function"):
        if hasattr(model, name):
            setattr(model, name, None)
    return model
