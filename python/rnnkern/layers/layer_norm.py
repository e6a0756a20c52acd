# SPDX-License-Identifier: Apache-2.0
"""Layer normalization over the last axis, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnkern._checks import (
    Array,
    DType,
    boolean,
    explains_options,
    float_dtype,
    positive_float,
    positive_int,
)
from rnnkern.devices import get_device
from rnnkern.layers.fixed import Fixed
from rnnkern.layers.gradients import Gradients
from rnnkern.layers.parameter import Parameter
from rnnkern.layers.parameters import Parameters
from rnnkern.layers.rows import as_rows, column_sums


class LayerNorm(Fixed):
    """``y = weight·(x - mean) / √(variance + eps) + bias``, of each row of the last axis by itself.

    For what a recurrent layer gives or is given: rows of y are normalized step by step, so that
    streams, lengths and batches have no part in it.

    Args:
        features: Size of the last axis, at least 1.
        eps: Above 0; added to the variance, the mean of the squares of x - mean.
        bias: Whether a bias is added.
        dtype: ``"float32"`` or ``"float64"``, of the parameters, of ``x`` and of ``y``.
        device: ``"cpu"`` or ``"cuda"``, as for the recurrent layers.

    Attributes:
        params: ``weight`` (features,), ones at first, and, with a bias, ``bias`` (features,), zeros
            at first. Change the arrays in place to learn (see `Parameters`).

    Raises:
        TypeError: A size that is not an integer, or ``eps`` no number.
        ValueError: A size below 1, an ``eps`` of 0 or less, an unknown dtype or a device that
            cannot be used.

    Example:
        >>> norm = rk.LayerNorm(128)
        >>> y, tape = norm.forward(np.ones((5, 3, 128), np.float32))
        >>> dx, grads = tape.backward(np.ones_like(y))

    Source: Ba, Kiros and Hinton, "Layer normalization" (2016), arXiv:1607.06450.

    """

    @explains_options
    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        dtype: DType = "float32",
        device: str = "cpu",
    ) -> None:
        self.features = positive_int("features", features)
        self.bias = boolean("bias", bias)
        self.dtype = float_dtype("dtype", dtype)
        self.eps = positive_float("eps", eps, [self.dtype])
        self._device = get_device(device)
        self.device = self._device.name
        names = ("weight", "bias") if self.bias else ("weight",)
        shape = (self.features,)
        parameters = {n: Parameter(n, shape, self.dtype, self._device) for n in names}
        self._weight, self._bias = parameters["weight"], parameters.get("bias")
        self.params = Parameters(parameters, self._initial_values())
        self._settle()

    def _initial_values(self) -> Iterator[Array]:
        yield np.ones(self.features, self.dtype)
        if self.bias:
            yield np.zeros(self.features, self.dtype)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "features": self.features,
            "eps": self.eps,
            "bias": self.bias,
            "dtype": self.dtype.name,
            "device": self.device,
        }

    def __call__(self, x: Any) -> Array:
        """``y`` for ``x``, both (..., features); there may be no rows.

        Raises:
            TypeError: ``x`` is of another dtype than the parameters.
            ValueError: The last axis of ``x`` is not ``features`` long.

        """
        array = self._device.array("x", x)
        return self._of(self._normalized(array)[0]).reshape(array.shape)

    def forward(self, x: Any) -> tuple[Array, LayerNormTape]:
        """As a call, and a tape, which keeps the normalized rows: ``x`` may change."""
        array = self._device.array("x", x)
        normalized, scale = self._normalized(array)
        tape = LayerNormTape(self, array.shape, normalized, scale)
        return self._of(normalized).reshape(array.shape), tape

    def _normalized(self, x: Array) -> tuple[Array, Array]:
        """(x - mean) / √(variance + eps), and one over that root, by row."""
        rows = as_rows(self._device, "x", x, self.features, self.dtype)
        with np.errstate(all="ignore"):  # squares may overflow or vanish
            centred = rows - rows.mean(axis=1, keepdims=True)
            variance = np.square(centred).mean(axis=1, keepdims=True)
            scale = 1 / np.sqrt(variance + self.dtype.type(self.eps))
            centred *= scale
        return centred, scale

    def _of(self, normalized: Array) -> Array:
        with np.errstate(all="ignore"):
            y: Array = normalized * self._weight.own
            if self._bias is not None:
                y += self._bias.own
        return y


class LayerNormTape:
    """What one ``LayerNorm.forward`` kept. ``backward`` may be called any number of times."""

    def __init__(
        self, layer: LayerNorm, shape: tuple[int, ...], normalized: Array, scale: Array
    ) -> None:
        self._layer = layer
        self._weight = layer._weight.own.copy()
        self._shape = shape
        self._normalized = normalized
        self._scale = scale

    def __repr__(self) -> str:
        return f"LayerNormTape({self._layer!r}, x={self._layer.dtype.name} {self._shape})"

    def backward(self, dy: Any) -> Gradients:
        """`Gradients`, which unpacks to ``dx``, shaped like ``x``, and those of ``params``.

        Args:
            dy: Gradient of the loss in ``y`` (..., features), of the parameters' dtype.

        Raises:
            TypeError: ``dy`` is of another dtype than the parameters.
            ValueError: ``dy`` is not shaped like ``y``.

        """
        layer, device, normalized = self._layer, self._layer._device, self._normalized
        dy = device.shaped("dy", dy, self._shape, layer.dtype)
        rows = device.contiguous(dy).reshape(-1, layer.features)
        with np.errstate(all="ignore"):
            grads = {"weight": column_sums(rows * normalized)}
            if layer.bias:
                grads["bias"] = column_sums(rows)
            # What changes a row's mean or its length has no part in dx.
            dx = rows * self._weight
            along = (dx * normalized).mean(axis=1, keepdims=True)
            dx -= dx.mean(axis=1, keepdims=True)
            dx -= normalized * along
            dx *= self._scale
        return Gradients(params=grads, x=dx.reshape(self._shape))
